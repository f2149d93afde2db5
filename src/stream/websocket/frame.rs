//! The header of a message that a server sends: one frame, not masked (RFC 6455, section 5.2).

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;

/// The header and how much of it counts.
pub fn header(opcode: u8, length: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = 0x80 | opcode;
    let used = match length {
        0..=125 => {
            header[1] = length as u8;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    (header, used)
}

/// A close frame with its code.
pub fn close(code: u16) -> [u8; 4] {
    let [a, b] = code.to_be_bytes();
    [0x80 | CLOSE, 2, a, b]
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;

    #[test]
    fn headers_are_those_of_the_library() {
        for length in [0, 1, 125, 126, 127, 65535, 65536, 70_000] {
            let frame = Frame::message(vec![0u8; length], OpCode::Data(Data::Binary), true);
            let mut theirs = Vec::new();
            frame.format(&mut theirs).unwrap();
            let (header, used) = header(BINARY, length);
            assert_eq!(&theirs[..used], &header[..used]);
            assert_eq!(theirs.len(), used + length);
        }
    }
}
