//! What a browser may not have yet: the upstream's latest messages, whole and in order.
//!
//! A message leaves the backlog once the browser's kernel has acknowledged its last byte, so what is left when a
//! connection breaks is what a returning browser has to be given. Positions are those of the browser's TCP stream,
//! counted in bytes from its beginning.

use std::collections::VecDeque;

/// The kept messages of one session.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// The frames of `messages`, then those of a message in progress.
    bytes: VecDeque<u8>,
    messages: VecDeque<Message>,
    /// Bytes of the message in progress.
    open: usize,
    /// The rest of the message in progress is not kept, because its beginning is not.
    skipping: bool,
    /// Where the latest message ends that was dropped without being known to have arrived.
    dropped: Option<u64>,
    limit: usize,
}

#[derive(Debug)]
struct Message {
    len: usize,
    /// Where its last byte stands in the TCP stream; [`UNKNOWN`] before the kernel has it.
    end: u64,
}

const UNKNOWN: u64 = u64::MAX;

/// What a message costs besides its bytes, so that many small ones are bounded as well.
const OVERHEAD: usize = size_of::<Message>();

/// Where bytes stand that were just sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It cannot be told yet: they are to be encrypted, or there is no connection.
    Unknown,
    /// The TCP stream will end with them, at this position.
    Plain(u64),
    /// They are in encrypted records that end at this position.
    Sealed(u64),
}

impl Backlog {
    /// Keeps up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Backlog {
            bytes: VecDeque::new(),
            messages: VecDeque::new(),
            open: 0,
            skipping: false,
            dropped: None,
            limit,
        }
    }

    /// Keeps bytes of data frames. `ends` are the places in them where messages end, `sent` says where they are now.
    pub(crate) fn push(&mut self, bytes: &[u8], ends: &[usize], sent: Sent) {
        let mut from = 0;
        for &end in ends {
            let piece = &bytes[from..end];
            from = end;
            let end = match sent {
                Sent::Unknown => UNKNOWN,
                Sent::Plain(at) => at - (bytes.len() - end) as u64,
                Sent::Sealed(at) => at, // a record is opened as a whole
            };
            if std::mem::take(&mut self.skipping) {
                self.dropped = Some(end);
                continue;
            }
            let len = std::mem::take(&mut self.open) + piece.len();
            self.bytes.extend(piece);
            self.messages.push_back(Message { len, end });
        }
        if !self.skipping {
            self.open += bytes.len() - from;
            self.bytes.extend(&bytes[from..]);
        }
    }

    /// All that was kept is with the kernel; its stream ends at this position.
    pub(crate) fn sent(&mut self, position: u64) {
        for message in self.messages.iter_mut().rev().take_while(|it| it.end == UNKNOWN) {
            message.end = position;
        }
        if self.dropped == Some(UNKNOWN) && !self.skipping {
            self.dropped = Some(position);
        }
    }

    /// The browser's kernel has everything before this position.
    pub(crate) fn acknowledged(&mut self, position: u64) {
        while self.messages.front().is_some_and(|it| it.end <= position) {
            self.drop_first();
        }
        if self.dropped.is_some_and(|it| it <= position) {
            self.dropped = None;
        }
        if self.bytes.is_empty() {
            (self.bytes, self.messages) = (VecDeque::new(), VecDeque::new()); // an idle session keeps no buffer
        }
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of frames that are kept.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether more is kept than may be.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes.len() + self.messages.len() * OVERHEAD > self.limit
    }

    /// Drops the oldest messages until there is room again; gives their number. A message in progress that is too long by
    /// itself is dropped with the rest of it that is still to come.
    pub(crate) fn make_room(&mut self) -> u64 {
        let mut n_dropped = 0;
        while self.is_over() {
            n_dropped += 1;
            match self.messages.front() {
                Some(message) => {
                    self.dropped = self.dropped.max(Some(message.end));
                    self.drop_first();
                }
                None => {
                    (self.bytes, self.open) = (VecDeque::new(), 0);
                    self.skipping = true;
                    self.dropped = Some(UNKNOWN);
                }
            }
        }
        n_dropped
    }

    /// Whether a message was dropped that the browser may not have.
    pub(crate) fn has_gap(&self) -> bool {
        self.dropped.is_some()
    }

    /// The frames for a new connection, whose TCP stream has this length before them. What was dropped is forgotten.
    pub(crate) fn replay(&mut self, before: Sent) -> [&[u8]; 2] {
        let mut end = 0;
        for message in &mut self.messages {
            end += message.len as u64;
            message.end = match before {
                Sent::Plain(before) => before + end,
                Sent::Sealed(_) | Sent::Unknown => UNKNOWN,
            };
        }
        self.dropped = None;
        let (first, second) = self.bytes.as_slices();
        [first, second]
    }

    /// Whether the rest of the message in progress has no beginning, so that a new connection must not see it.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    fn drop_first(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes.drain(..message.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_kept_until_its_last_byte_is_acknowledged() {
        let mut it = Backlog::new(1000);
        it.push(b"aaabbbbcc", &[3, 7], Sent::Plain(109));
        for (acknowledged, kept) in [(0, 9), (102, 9), (103, 6), (106, 6), (107, 2), (500, 2)] {
            it.acknowledged(acknowledged);
            assert_eq!(it.len(), kept, "{acknowledged}");
        }
        it.push(b"cd", &[1], Sent::Plain(111));
        it.acknowledged(110);
        assert_eq!(it.replay(Sent::Plain(0)).concat(), b"d", "the message in progress stays");
    }

    #[test]
    fn bytes_in_an_encrypted_record_count_once_all_of_it_has_arrived() {
        let mut it = Backlog::new(1000);
        it.push(b"aab", &[2, 3], Sent::Sealed(50));
        it.push(b"c", &[1], Sent::Unknown);
        it.acknowledged(49);
        assert_eq!(it.len(), 4);
        it.acknowledged(60);
        assert_eq!(it.len(), 1);
        it.sent(80);
        it.acknowledged(80);
        assert!(it.is_empty());
    }

    #[test]
    fn the_oldest_goes_first_and_leaves_a_gap_until_it_has_arrived() {
        let mut it = Backlog::new(10 + 2 * OVERHEAD);
        it.push(b"aaaabbbbcccc", &[4, 8, 12], Sent::Plain(12));
        assert!(it.is_over());
        assert_eq!(it.make_room(), 1);
        assert!(it.has_gap());
        it.acknowledged(4);
        assert!(!it.has_gap(), "the browser has what was dropped");
        assert_eq!(it.replay(Sent::Plain(0)).concat(), b"bbbbcccc");
    }

    #[test]
    fn a_message_that_is_too_long_is_skipped_to_its_end() {
        let mut it = Backlog::new(100);
        it.push(&[b'a'; 101], &[], Sent::Plain(101));
        assert_eq!(it.make_room(), 1);
        assert!(it.is_skipping() && it.has_gap() && it.is_empty());
        it.push(b"still a, then b", &[7, 15], Sent::Plain(116));
        assert!(!it.is_skipping() && it.has_gap());
        it.acknowledged(108);
        assert!(!it.has_gap());
        assert_eq!(it.replay(Sent::Plain(0)).concat(), b", then b");
    }
}
