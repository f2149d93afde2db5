//! ExecSync's answer.

use crate::container::exec::Output;
use crate::cri::server::MAX_MESSAGE;
use crate::cri::wire::ExecSyncResponse;

/// Of the response's tags, lengths and exit code.
const OVERHEAD: usize = 64;

/// Two streams at their limits do not fit the message that clients take: what is too much is cut off
/// the longer one, since an answer without the rest is worth more than none (BEHAVIOUR 15).
pub(in crate::cri) fn response(mut output: Output) -> ExecSyncResponse {
    let room = MAX_MESSAGE - OVERHEAD;
    output.stderr.truncate((room / 2).max(room.saturating_sub(output.stdout.len())));
    output.stdout.truncate(room - output.stderr.len());
    ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn behaviour_15_the_answer_fits_a_message() {
        for (out, err) in
            [(0, 0), (10, 20), (16 << 20, 0), (0, 16 << 20), (16 << 20, 16 << 20), (16 << 20, 9)]
        {
            let output = Output { stdout: vec![1; out], stderr: vec![2; err], exit_code: -1 };
            let response = response(output);
            assert!(response.encoded_len() <= MAX_MESSAGE);
            let kept = response.stdout.len() + response.stderr.len();
            assert_eq!(kept, (out + err).min(MAX_MESSAGE - OVERHEAD));
            assert!(response.stdout.len() == out || response.stderr.len() <= MAX_MESSAGE / 2);
        }
    }
}
