//! Running one plugin: environment and stdin in, a result or an error out, within a deadline.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::Error;
use crate::error::{Kind, Result, Step};

/// How long one plugin may take before it is killed with all that it started.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// The same for GC, which pods have to wait for.
pub const GC_DEADLINE: Duration = Duration::from_secs(10);
/// After a plugin's end, how long what it left behind may go on holding its output.
const LINGER: Duration = Duration::from_secs(1);
/// More output than this is cut: no result comes near it.
const MOST_OUTPUT: u64 = 4 << 20;

/// What a plugin is asked to do (CNI_COMMAND).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Gc,
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// Where plugins are looked for, in order, and how long each may take.
#[derive(Debug, Clone)]
pub struct Plugins {
    pub dirs: Vec<PathBuf>,
    pub deadline: Duration,
}

impl Plugins {
    /// The executable of a plugin type.
    ///
    /// # Errors
    /// UNAVAILABLE, naming the directories: it may be installed later.
    pub fn find(&self, kind: &str) -> Result<PathBuf> {
        let is_executable =
            |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
        self.dirs.iter().map(|dir| dir.join(kind)).find(|path| is_executable(path)).ok_or_else(|| {
            let dirs: Vec<_> = self.dirs.iter().map(|d| d.display().to_string()).collect();
            Error::unavailable(format!("CNI plugin {kind} is not in {}", dirs.join(" or ")))
        })
    }

    /// CNI_PATH
    pub fn search_path(&self) -> String {
        let dirs: Vec<_> = self.dirs.iter().map(|d| d.display().to_string()).collect();
        dirs.join(":")
    }

    /// Runs a plugin; its output is None where it wrote nothing. Dropping the future kills it.
    ///
    /// # Errors
    /// Say which plugin failed at what, with its code and words; DEADLINE_EXCEEDED for a hung one.
    pub async fn run(
        &self,
        kind: &str,
        verb: Verb,
        environment: &[(&str, String)],
        config: &Value,
    ) -> Result<Option<Value>> {
        let path = self.find(kind)?;
        let mut command = Command::new(&path);
        command
            .envs(environment.iter().map(|(k, v)| (k, v)))
            .env("CNI_COMMAND", verb.to_string())
            .env("CNI_PATH", self.search_path())
            // What systemd told the daemon is not for plugins.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().step(|| format!("starting CNI plugin {}", path.display()))?;
        let input = config.to_string();
        let ended = tokio::time::timeout(self.deadline, converse(child, input.as_bytes())).await;
        let Ok(ended) = ended else {
            let seconds = self.deadline.as_secs_f32();
            return Err(Error::new(
                Kind::DeadlineExceeded,
                format!("CNI plugin {kind} did not end its {verb} within {seconds} s and was killed"),
            ));
        };
        let (status, output, complaint) = ended.step(|| format!("running CNI plugin {}", path.display()))?;
        judge(kind, verb, status, &output, &complaint)
    }
}

/// A plugin and what it started, to be killed unless it ended by itself.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Dropped before the child is, hence before that is reaped: the number is its own.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Feeds the plugin and collects what it says until it ends.
async fn converse(mut child: Child, input: &[u8]) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut group = Group::of(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its configuration says what is wrong by its exit.
            let _ = stdin.write_all(input).await;
        }
    };
    let status = {
        let talk = async {
            tokio::join!(feed, collect(stdout, &mut output), collect(stderr, &mut complaint));
        };
        tokio::pin!(talk);
        tokio::select! {
            () = &mut talk => child.wait().await?,
            status = child.wait() => {
                // Something that it left running may hold the pipes open for ever.
                let _ = tokio::time::timeout(LINGER, &mut talk).await;
                status?
            }
        }
    };
    group.0 = None;
    Ok((status, output, complaint))
}

async fn collect(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    // A pipe that fails to be read ends there; the exit status says whether that matters.
    let _ = (&mut pipe).take(MOST_OUTPUT).read_to_end(into).await;
    // Beyond the limit it is read and dropped, so that the plugin is not stopped by a full pipe.
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
}

fn judge(
    kind: &str,
    verb: Verb,
    status: ExitStatus,
    output: &[u8],
    complaint: &[u8],
) -> Result<Option<Value>> {
    let parsed: Option<Value> = serde_json::from_slice(output).ok();
    if status.success() {
        if parsed.is_none() && !output.trim_ascii().is_empty() {
            let said = excerpt(output);
            return Err(Error::internal(format!("CNI plugin {kind} answered {verb} with no JSON: {said}")));
        }
        return Ok(parsed);
    }
    let text = |key: &str| {
        let value = parsed.as_ref()?.get(key)?.as_str()?.trim();
        (!value.is_empty()).then(|| value.to_owned())
    };
    let code = parsed.as_ref().and_then(|v| v.get("code")).and_then(Value::as_u64);
    let how = code.map_or_else(|| status.to_string(), |code| format!("code {code}"));
    let why = match (text("msg"), text("details")) {
        (Some(msg), Some(details)) => format!("{msg}: {details}"),
        (Some(why), None) | (None, Some(why)) => why,
        (None, None) if complaint.trim_ascii().is_empty() => excerpt(output),
        (None, None) => excerpt(complaint),
    };
    // Codes of the specification: 1 is a version that the plugin does not speak, 11 "try again".
    let kind_of = if code == Some(11) { Kind::Unavailable } else { Kind::Internal };
    Err(Error::new(kind_of, format!("CNI plugin {kind} failed to {verb} ({how}): {why}")))
}

/// The end of what was said, where the reason usually is, on one line.
fn excerpt(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return "it said nothing".into();
    }
    let skip = text.char_indices().rev().nth(511).map_or(0, |(at, _)| at);
    text[skip..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn failure(output: &str, complaint: &str) -> Error {
        judge("p", Verb::Add, ExitStatus::from_raw(1 << 8), output.as_bytes(), complaint.as_bytes())
            .unwrap_err()
    }

    #[test]
    fn a_failure_reads_as_a_sentence() {
        let said = failure(r#"{"code":7,"msg":"bad net","details":"no subnet"}"#, "");
        assert_eq!(said.message, "CNI plugin p failed to ADD (code 7): bad net: no subnet");
        let again = failure(r#"{"code":11,"msg":"later"}"#, "");
        assert_eq!(again.kind, Kind::Unavailable);
        let crash = failure("", "panic: oh\n no");
        assert_eq!(crash.message, "CNI plugin p failed to ADD (exit status: 1): panic: oh no");
        assert!(failure("", "").message.ends_with("it said nothing"));
        assert!(failure("", &"ä".repeat(5000)).message.len() < 1200);
    }

    #[test]
    fn a_result_is_json_or_nothing() {
        let ok = |output: &str| judge("p", Verb::Add, ExitStatus::from_raw(0), output.as_bytes(), b"");
        assert_eq!(ok("").unwrap(), None);
        assert!(ok(r#"{"ips":[]}"#).unwrap().is_some());
        assert!(ok("hello").unwrap_err().message.contains("hello"));
    }
}
