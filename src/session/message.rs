//! Puts messages together from the frames of one direction, and frames from messages: for sessions whose policies look
//! at them. All other sessions pass frames on as they come.

use crate::session::frame::{Sender, Tracker};

/// Puts messages together. It is fed what a [`Tracker`] has let through, so that the frames are in order.
#[derive(Debug)]
pub(crate) struct Assembler {
    sender: Sender,
    /// Largest message in bytes.
    limit: usize,
    /// A header of which a part has come.
    head: Vec<u8>,
    frame: Option<Frame>,
    is_text: bool,
    payload: Vec<u8>,
}

/// A frame that was begun.
#[derive(Debug)]
struct Frame {
    left: u64,
    mask: Option<[u8; 4]>,
    /// Which byte of the mask is next.
    at: usize,
    is_last: bool,
}

/// A message is larger than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Assembler {
    pub(crate) fn new(sender: Sender, limit: usize) -> Self {
        Assembler { sender, limit, head: Vec::new(), frame: None, is_text: false, payload: Vec::new() }
    }

    /// Takes the next message off the front of `input`: whether it is text, and what it says; `None` once all is used up.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Option<(bool, Vec<u8>)>, TooLarge> {
        loop {
            if let Some(frame) = &mut self.frame {
                let run = usize::try_from(frame.left).unwrap_or(usize::MAX).min(input.len());
                let start = self.payload.len();
                self.payload.extend_from_slice(&input[..run]);
                if let Some(mask) = frame.mask {
                    for byte in &mut self.payload[start..] {
                        *byte ^= mask[frame.at % 4];
                        frame.at += 1;
                    }
                }
                *input = &input[run..];
                frame.left -= run as u64;
                if frame.left > 0 {
                    return Ok(None);
                }
                let is_last = frame.is_last;
                self.frame = None;
                if is_last {
                    return Ok(Some((self.is_text, std::mem::take(&mut self.payload))));
                }
            }
            let Some((&first, rest)) = input.split_first() else { return Ok(None) };
            self.head.push(first);
            *input = rest;
            let Some(header) = Tracker::read(self.sender, &self.head) else { continue };
            self.head.clear();
            if header.payload > (self.limit - self.payload.len()) as u64 {
                return Err(TooLarge);
            }
            if header.opcode != 0 {
                self.is_text = header.opcode == 1;
            }
            self.frame = Some(Frame { left: header.payload, mask: header.mask, at: 0, is_last: header.fin });
        }
    }

    /// Forgets a message that was begun: its sender is gone.
    pub(crate) fn forget(&mut self) {
        *self = Assembler::new(self.sender, self.limit);
    }
}

/// Appends a message as one frame; `mask` for what goes to a server.
pub(crate) fn encode(out: &mut Vec<u8>, is_text: bool, payload: &[u8], mask: Option<[u8; 4]>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | if is_text { 1 } else { 2 });
    match payload.len() {
        len @ 0..=125 => out.push(masked | len as u8),
        len @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(masked | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    match mask {
        None => out.extend_from_slice(payload),
        Some(mask) => {
            out.extend_from_slice(&mask);
            out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as its sender writes it.
    fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, true, payload, mask);
        bytes[0] = first;
        bytes
    }

    #[test]
    fn messages_come_out_whole_however_their_bytes_come() {
        for (sender, mask) in [(Sender::Client, Some([1, 2, 3, 250])), (Sender::Server, None)] {
            let long = vec![7; 70_000];
            let sent = [
                frame(0x81, b"one", mask),
                frame(0x02, b"tw", mask),
                frame(0x00, b"", mask),
                frame(0x80, b"o", mask),
                frame(0x81, b"", mask),
                frame(0x82, &long, mask),
                frame(0x82, &[9; 300], mask),
            ]
            .concat();
            for step in [1, 2, 3, 7, 100, sent.len()] {
                let mut assembler = Assembler::new(sender, 100_000);
                let mut got = Vec::new();
                for mut piece in sent.chunks(step) {
                    while let Some(message) = assembler.next(&mut piece).expect("none is too large") {
                        got.push(message);
                    }
                }
                let expected: [(bool, &[u8]); 5] =
                    [(true, b"one"), (false, b"two"), (true, b""), (false, &long), (false, &[9; 300])];
                assert_eq!(got.len(), expected.len());
                assert!(got.iter().zip(expected).all(|(got, it)| (got.0, &got.1[..]) == it), "step {step}");
            }
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_not_kept() {
        let mut assembler = Assembler::new(Sender::Server, 10);
        assert_eq!(
            assembler.next(&mut &frame(0x82, &[0; 11], None)[..2]),
            Err(TooLarge),
            "its head is enough"
        );
        let mut assembler = Assembler::new(Sender::Server, 10);
        let parts = [frame(0x02, &[0; 6], None), frame(0x80, &[0; 5], None)].concat();
        assert_eq!(assembler.next(&mut &parts[..]), Err(TooLarge), "all of its frames count");
    }
}
