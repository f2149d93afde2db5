//! ExecSync, Exec, Attach, PortForward.

use std::time::Duration;

use crate::cri::decode::{id, seconds, text};
use crate::cri::wire::{AttachRequest, ExecRequest};
use crate::error::{Error, Result};
use crate::stream::{Attach, Exec, Wanted};

/// Zero seconds: no limit.
pub(in crate::cri) fn exec_sync(cmd: Vec<String>, timeout: i64) -> Result<(Vec<String>, Duration)> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("cmd is empty"));
    }
    // A negative limit, taken for none, would let a probe run for ever.
    if timeout < 0 {
        return Err(Error::invalid(format!("timeout is negative: {timeout}")));
    }
    Ok((text::each("cmd", cmd, text::plain)?, seconds(timeout)))
}

pub(in crate::cri) fn exec(request: ExecRequest) -> Result<Exec> {
    let container_id = id("container_id", &request.container_id)?.to_owned();
    let (argv, _) = exec_sync(request.cmd, 0)?;
    let ExecRequest { stdin, stdout, stderr, tty, .. } = request;
    Ok(Exec { container_id, argv, wanted: wanted(Wanted { stdin, stdout, stderr, tty })? })
}

pub(in crate::cri) fn attach(request: AttachRequest) -> Result<Attach> {
    let container_id = id("container_id", &request.container_id)?.to_owned();
    let AttachRequest { stdin, stdout, stderr, tty, .. } = request;
    Ok(Attach { container_id, wanted: wanted(Wanted { stdin, stdout, stderr, tty })? })
}

/// Of a PortForwardRequest; none is fine, where the client's streams name theirs.
pub(in crate::cri) fn ports(ports: &[i32]) -> Result<Vec<u16>> {
    let port = |port: &i32| match u16::try_from(*port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Error::invalid(format!("port {port} is not between 1 and 65535"))),
    };
    ports.iter().map(port).collect()
}

/// What the proto asks of every request for streams.
fn wanted(wanted: Wanted) -> Result<Wanted> {
    if wanted.tty && wanted.stderr {
        return Err(Error::invalid("tty and stderr: a terminal has one output"));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Error::invalid("one of stdin, stdout and stderr must be asked for"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_ports() {
        assert!(ports(&[]).unwrap().is_empty());
        assert_eq!(ports(&[80, 1, 65535]).unwrap(), [80, 1, 65535]);
        for wrong in [0, -1, 65536] {
            assert!(ports(&[80, wrong]).unwrap_err().message.contains(&wrong.to_string()));
        }
    }

    #[test]
    fn streams_are_asked_for_in_ways_that_make_sense() {
        let request = |stdin, stdout, stderr, tty| AttachRequest {
            container_id: "c".into(),
            stdin,
            tty,
            stdout,
            stderr,
        };
        assert!(attach(request(false, false, false, false)).is_err());
        assert!(attach(request(false, true, true, true)).is_err());
        assert!(attach(request(true, false, false, true)).unwrap().wanted.stdin);
        let exec = |cmd: &[&str]| {
            let cmd = cmd.iter().map(|a| (*a).to_owned()).collect();
            exec(ExecRequest { container_id: "c".into(), cmd, stdout: true, ..ExecRequest::default() })
        };
        assert!(exec(&[]).is_err());
        assert_eq!(exec(&["true"]).unwrap().argv, ["true"]);
    }

    #[test]
    fn a_command_is_needed() {
        assert!(exec_sync(vec![], 0).is_err());
        assert!(exec_sync(vec![String::new()], 0).is_err());
        assert!(exec_sync(vec!["a\0b".into()], 0).is_err());
        assert!(exec_sync(vec!["true".into()], -1).is_err());
        assert_eq!(exec_sync(vec!["true".into()], 2).unwrap().1, Duration::from_secs(2));
    }
}
