//! WebSocket frames as they stream by (RFC 6455 section 5): headers are read, payloads are not looked at.
//!
//! A [`Tracker`] is fed the bytes that come from one peer and says what may be passed on as it is. Data frames pass in
//! whatever pieces they arrive; a header is held back until it is whole, so that what was passed on never ends within
//! one. Control frames come out whole, since they are ours to decide about.

/// Who sent the bytes: the two sides of a WebSocket have different rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A client masks its frames.
    Client,
    /// A server does not.
    Server,
}

/// Reads the frame headers of one direction.
#[derive(Debug)]
pub(crate) struct Tracker {
    sender: Sender,
    /// Payload of the current data frame that is still to come.
    left: u64,
    /// A message was begun and not ended.
    in_message: bool,
    /// A header, or a whole control frame, of which a part has arrived.
    held: Vec<u8>,
    n_data_frames: u64,
    n_control_frames: u64,
}

/// What came out of the bytes fed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Bytes of data frames, to be passed on as they are.
    Data(&'a [u8]),
    /// The same, from an earlier feeding.
    Held(Vec<u8>),
    /// A whole control frame.
    Control(Control),
}

/// A control frame, unmasked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) opcode: Opcode,
    len: u8,
    payload: [u8; MAX_CONTROL],
}

/// What a control frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// The end, with a code and a reason.
    Close = 0x8,
    /// Are you there?
    Ping = 0x9,
    /// I am.
    Pong = 0xA,
}

/// Bytes that are no WebSocket frames; the peer is closed with this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) code: u16,
    pub(crate) what: &'static str,
}

/// Largest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL: usize = 125;

/// Largest frame header.
const MAX_HEADER: usize = 14;

/// Bytes of an encoded control frame, at most.
const MAX_ENCODED: usize = 2 + 4 + MAX_CONTROL;

pub(super) struct Header {
    pub(super) opcode: u8,
    pub(super) fin: bool,
    pub(super) mask: Option<[u8; 4]>,
    pub(super) payload: u64,
    /// Bytes of the header itself.
    len: usize,
}

impl Tracker {
    pub(crate) fn new(sender: Sender) -> Self {
        Tracker {
            sender,
            left: 0,
            in_message: false,
            held: Vec::new(),
            n_data_frames: 0,
            n_control_frames: 0,
        }
    }

    /// Whether what was passed on so far ends at the end of a frame, so that another frame may follow.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.left == 0
    }

    /// How many bytes certainly belong to the frame that has begun; 0 between frames.
    pub(crate) fn n_due(&self) -> u64 {
        if self.held.is_empty() { self.left } else { self.left.max(1) }
    }

    fn is_between_messages(&self) -> bool {
        self.left == 0 && !self.in_message
    }

    /// Data and control frames seen since the last call.
    pub(crate) fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.n_data_frames), std::mem::take(&mut self.n_control_frames))
    }

    /// Takes the next piece off the front of `input`; `None` once all of it is used up. `ends` gets the places in the
    /// piece where messages end.
    pub(crate) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        ends: &mut Vec<usize>,
    ) -> Result<Option<Piece<'a>>, Violation> {
        ends.clear();
        if !self.held.is_empty() {
            return self.resume(input, ends);
        }
        let bytes = *input;
        let mut end = 0; // of the run of data to pass on
        loop {
            let run = self.left.min((bytes.len() - end) as u64);
            self.left -= run;
            end += usize::try_from(run).expect("a run is no longer than the slice");
            if run > 0 && self.is_between_messages() {
                ends.push(end);
            }
            let rest = &bytes[end..];
            if rest.is_empty() {
                break;
            }
            let header = match self.header(rest) {
                Ok(Some(header)) => header,
                Err(violation) if end == 0 => return Err(violation),
                Ok(None) if end == 0 => {
                    self.held.extend_from_slice(rest);
                    end = bytes.len();
                    *input = &bytes[end..];
                    return Ok(None);
                }
                Ok(None) | Err(_) => break, // the run first
            };
            if header.is_control() {
                if end > 0 {
                    break; // the run first
                }
                return self.control(header, input);
            }
            self.begin_data(&header);
            end += header.len;
            if self.is_between_messages() {
                ends.push(end); // an empty one
            }
        }
        *input = &bytes[end..];
        Ok((end > 0).then(|| Piece::Data(&bytes[..end])))
    }

    /// Goes on with a header or a control frame of which a part is held.
    fn resume<'a>(
        &mut self,
        input: &mut &'a [u8],
        ends: &mut Vec<usize>,
    ) -> Result<Option<Piece<'a>>, Violation> {
        let mut held = std::mem::take(&mut self.held);
        loop {
            let header = self.header(&held)?;
            let needed = match &header {
                None => held.len() + 1,
                Some(it) if it.is_control() => it.len + it.payload as usize,
                Some(it) => it.len,
            };
            if let Some(header) = header
                && held.len() == needed
            {
                if header.is_control() {
                    return self.control(header, &mut &held[..]);
                }
                self.begin_data(&header);
                if self.is_between_messages() {
                    ends.push(held.len());
                }
                return Ok(Some(Piece::Held(held)));
            }
            let take = (needed - held.len()).min(input.len());
            held.extend_from_slice(&input[..take]);
            *input = &input[take..];
            if held.len() < needed && input.is_empty() {
                // More may be needed than is there; a header that became whole is looked at next time.
                self.held = held;
                return Ok(None);
            }
        }
    }

    /// Takes a control frame off the front of `input`, or holds what there is of it.
    fn control<'a>(&mut self, header: Header, input: &mut &[u8]) -> Result<Option<Piece<'a>>, Violation> {
        let len = usize::try_from(header.payload).expect("the header was checked");
        if input.len() < header.len + len {
            self.held.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        }
        let mut control =
            Control { opcode: header.control_opcode(), len: len as u8, payload: [0; MAX_CONTROL] };
        control.payload[..len].copy_from_slice(&input[header.len..header.len + len]);
        if let Some(mask) = header.mask {
            control.payload[..len].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        }
        *input = &input[header.len + len..];
        self.n_control_frames += 1;
        if control.opcode == Opcode::Close {
            control.check_close()?;
        }
        Ok(Some(Piece::Control(control)))
    }

    fn begin_data(&mut self, header: &Header) {
        self.in_message = !header.fin;
        self.left = header.payload;
        self.n_data_frames += 1;
    }

    /// Reads the header of a data frame that a tracker has let through; `None` when it is not whole.
    pub(super) fn read(sender: Sender, bytes: &[u8]) -> Option<Header> {
        // Whether a frame continues a message was checked already.
        let in_message = bytes.first().is_some_and(|it| it & 0x0f == 0);
        Tracker { in_message, ..Tracker::new(sender) }.header(bytes).ok().flatten()
    }

    /// Reads a header and checks it against the rules of the protocol; `None` when it is not whole.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, Violation> {
        let protocol = |what| Err(Violation { code: 1002, what });
        let Some(&first) = bytes.first() else { return Ok(None) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 {
            return protocol("reserved bits are set");
        }
        match opcode {
            0x0 if !self.in_message => return protocol("a continuation without a beginning"),
            0x1 | 0x2 if self.in_message => return protocol("a message within a message"),
            0x0..=0x2 => {}
            0x8..=0xA if !fin => return protocol("a fragmented control frame"),
            0x8..=0xA => {}
            _ => return protocol("a reserved opcode"),
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let masked = second & 0x80 != 0;
        match (self.sender, masked) {
            (Sender::Client, false) => return protocol("a client's frame without a mask"),
            (Sender::Server, true) => return protocol("a server's frame with a mask"),
            _ => {}
        }
        let short = second & 0x7f;
        if opcode >= 0x8 && short > MAX_CONTROL as u8 {
            return protocol("a control frame that is too long");
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let len = 2 + extended + if masked { 4 } else { 0 };
        debug_assert!(len <= MAX_HEADER);
        if bytes.len() < len {
            return Ok(None);
        }
        let payload = match extended {
            0 => u64::from(short),
            _ => bytes[2..2 + extended].iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        if payload >> 63 != 0 || (extended == 2 && payload < 126) || (extended == 8 && payload <= 0xffff) {
            return protocol("a length that is not written as it must be");
        }
        let mask = masked.then(|| [bytes[len - 4], bytes[len - 3], bytes[len - 2], bytes[len - 1]]);
        Ok(Some(Header { opcode, fin, mask, payload, len }))
    }
}

impl Header {
    fn is_control(&self) -> bool {
        self.opcode >= 0x8
    }

    fn control_opcode(&self) -> Opcode {
        match self.opcode {
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            _ => Opcode::Pong,
        }
    }
}

impl Control {
    /// A ping or a pong. A longer payload is cut.
    pub(crate) fn new(opcode: Opcode, payload: &[u8]) -> Self {
        let len = payload.len().min(MAX_CONTROL);
        let mut control = Control { opcode, len: len as u8, payload: [0; MAX_CONTROL] };
        control.payload[..len].copy_from_slice(&payload[..len]);
        control
    }

    /// A Close frame. The reason is cut to 123 bytes at the end of a character.
    pub(crate) fn close(code: u16, reason: &str) -> Self {
        let mut end = reason.len().min(MAX_CONTROL - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let mut payload = Vec::with_capacity(2 + end);
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(&reason.as_bytes()[..end]);
        Control::new(Opcode::Close, &payload)
    }

    /// Tells a browser to come back (RFC 6455's registry of close codes).
    pub(crate) fn restart() -> Self {
        Control::close(1012, "the gateway restarts")
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload[..usize::from(self.len)]
    }

    /// The code of a Close frame; 1005 when it has none, as the standard calls that.
    pub(crate) fn close_code(&self) -> u16 {
        match self.payload() {
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => 1005,
        }
    }

    /// The frame as it goes over the wire; `mask` for what goes to a server.
    pub(crate) fn encode(&self, mask: Option<[u8; 4]>) -> ([u8; MAX_ENCODED], usize) {
        let mut bytes = [0; MAX_ENCODED];
        bytes[0] = 0x80 | self.opcode as u8;
        bytes[1] = self.len;
        let mut start = 2;
        if let Some(mask) = mask {
            bytes[1] |= 0x80;
            bytes[2..6].copy_from_slice(&mask);
            start = 6;
        }
        let end = start + usize::from(self.len);
        bytes[start..end].copy_from_slice(self.payload());
        if let Some(mask) = mask {
            bytes[start..end].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        }
        (bytes, end)
    }

    /// Codes that may not be sent, and reasons that are no text, end the connection (RFC 6455 sections 7.4 and 5.5.1).
    fn check_close(&self) -> Result<(), Violation> {
        let (code, reason) = match self.payload() {
            [] => return Ok(()),
            [_] => return Err(Violation { code: 1002, what: "a Close frame with half a code" }),
            [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        };
        if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
            return Err(Violation { code: 1002, what: "a Close frame with a code that may not be sent" });
        }
        match std::str::from_utf8(reason) {
            Ok(_) => Ok(()),
            Err(_) => Err(Violation { code: 1007, what: "a Close frame whose reason is no text" }),
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({:?})", self.opcode, self.payload())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a peer would send it.
    fn frame(sender: Sender, first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0x22, 0x33, 0x44];
        let masked = if sender == Sender::Client { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload.len() {
            n @ 0..=125 => bytes.push(masked | n as u8),
            n @ 126..=0xffff => {
                bytes.push(masked | 126);
                bytes.extend((n as u16).to_be_bytes());
            }
            n => {
                bytes.push(masked | 127);
                bytes.extend((n as u64).to_be_bytes());
            }
        }
        if sender == Sender::Client {
            bytes.extend(mask);
            bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
        } else {
            bytes.extend(payload);
        }
        bytes
    }

    /// What is passed on and what control frames are seen when the bytes arrive in these portions.
    fn feed(sender: Sender, portions: &[&[u8]]) -> Result<(Vec<u8>, Vec<Control>), Violation> {
        let mut tracker = Tracker::new(sender);
        let (mut passed, mut controls) = (Vec::new(), Vec::new());
        for portion in portions {
            let mut input = *portion;
            while let Some(piece) = tracker.next(&mut input, &mut Vec::new())? {
                match piece {
                    Piece::Data(bytes) => passed.extend_from_slice(bytes),
                    Piece::Held(bytes) => passed.extend_from_slice(&bytes),
                    Piece::Control(control) => {
                        assert!(tracker.is_at_boundary(), "a control frame stands between frames");
                        controls.push(control);
                    }
                }
            }
            assert!(input.is_empty(), "all bytes are used up");
        }
        Ok((passed, controls))
    }

    #[test]
    fn frames_pass_whole_wherever_the_network_cuts_them() {
        for sender in [Sender::Client, Sender::Server] {
            let data: Vec<Vec<u8>> = vec![
                frame(sender, 0x81, b"hello"),
                frame(sender, 0x02, &[7; 200]),
                frame(sender, 0x00, b""),
                frame(sender, 0x80, &[9; 70_000]),
                frame(sender, 0x82, b""),
            ];
            let ping = frame(sender, 0x89, b"are you there?");
            let close = frame(sender, 0x88, b"\x03\xe8bye");
            let stream =
                [&data[0][..], &data[1], &ping, &data[2], &ping, &data[3], &data[4], &close].concat();
            let expected = data.concat();
            let controls = [
                Control::new(Opcode::Ping, b"are you there?"),
                Control::new(Opcode::Ping, b"are you there?"),
                Control::close(1000, "bye"),
            ];
            for cut in (0..600).chain([stream.len() - 30, stream.len() - 5, stream.len()]) {
                let (passed, seen) = feed(sender, &[&stream[..cut], &stream[cut..]]).expect("valid");
                assert_eq!(passed, expected, "{sender:?} cut at {cut}");
                assert_eq!(seen, controls, "{sender:?} cut at {cut}");
            }
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(
                feed(sender, &bytes).expect("valid"),
                (expected, controls.to_vec()),
                "{sender:?} byte by byte"
            );
        }
    }

    #[test]
    fn what_was_passed_on_never_ends_within_a_header() {
        let stream = frame(Sender::Client, 0x82, &[1; 300]);
        let mut tracker = Tracker::new(Sender::Client);
        for byte in &stream[..7] {
            assert_eq!(tracker.next(&mut std::slice::from_ref(byte), &mut Vec::new()), Ok(None));
            assert!(tracker.is_at_boundary());
        }
        let mut rest = &stream[7..];
        assert_eq!(tracker.next(&mut rest, &mut Vec::new()), Ok(Some(Piece::Held(stream[..8].to_vec()))));
        assert!(!tracker.is_at_boundary());
    }

    #[test]
    fn what_is_no_websocket_is_a_violation() {
        let check = |sender, bytes: &[u8], code: u16| {
            for portions in [vec![bytes], bytes.chunks(1).collect()] {
                match feed(sender, &portions) {
                    Err(violation) => assert_eq!(violation.code, code, "{bytes:x?}: {}", violation.what),
                    Ok(_) => panic!("{bytes:x?} should be refused"),
                }
            }
        };
        use Sender::{Client, Server};
        check(Client, &[0x81, 0x01, b'a'], 1002); // no mask
        check(Server, &frame(Client, 0x81, b"a"), 1002); // a mask
        check(Server, &frame(Server, 0xc1, b"a"), 1002); // compressed, which was not agreed on
        check(Server, &frame(Server, 0x83, b"a"), 1002); // a reserved opcode
        check(Server, &frame(Server, 0x80, b"a"), 1002); // a continuation of nothing
        check(Server, &[frame(Server, 0x01, b"a"), frame(Server, 0x81, b"b")].concat(), 1002);
        check(Server, &frame(Server, 0x09, b"a"), 1002); // a fragmented ping
        check(Server, &frame(Server, 0x89, &[0; 126]), 1002); // a long ping
        check(Server, &[0x82, 126, 0, 5], 1002); // a length in more bytes than it needs
        check(Server, &[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002);
        check(Server, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002);
        check(Server, &frame(Server, 0x88, b"\x03"), 1002); // half a code
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            check(Server, &frame(Server, 0x88, &code.to_be_bytes()), 1002);
        }
        check(Server, &frame(Server, 0x88, b"\x03\xe8\xff"), 1007); // a reason that is no text
    }

    #[test]
    fn a_control_frame_survives_the_wire() {
        for mask in [None, Some([1, 2, 3, 4])] {
            let sender = if mask.is_some() { Sender::Client } else { Sender::Server };
            let control = Control::close(3001, &"ä".repeat(100));
            assert_eq!(control.payload().len(), 2 + 122, "the reason is cut at the end of a character");
            let (bytes, len) = control.encode(mask);
            assert_eq!(feed(sender, &[&bytes[..len]]).expect("valid").1, [control]);
        }
        assert_eq!(Control::new(Opcode::Close, b"").close_code(), 1005);
    }
}
