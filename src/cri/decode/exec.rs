//! ExecSync.

use std::time::Duration;

use crate::cri::decode::{seconds, text};
use crate::error::{Error, Result};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_needed() {
        assert!(exec_sync(vec![], 0).is_err());
        assert!(exec_sync(vec![String::new()], 0).is_err());
        assert!(exec_sync(vec!["a\0b".into()], 0).is_err());
        assert!(exec_sync(vec!["true".into()], -1).is_err());
        assert_eq!(exec_sync(vec!["true".into()], 2).unwrap().1, Duration::from_secs(2));
    }
}
