//! Holds a browser's message back until it is whole: a connection that breaks within a message must not leave half of
//! it with the upstream, which a returning browser could never complete.

/// The message in progress of one session's browser.
#[derive(Debug)]
pub(crate) struct Gather {
    held: Vec<u8>,
    /// The message in progress is longer than may be held; it is passed on as it comes.
    passing: bool,
    limit: usize,
}

impl Gather {
    /// Holds up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Gather { held: Vec::new(), passing: false, limit }
    }

    /// Takes bytes of data frames, with the places in them where messages end, and gives `pass` what may go on.
    pub(crate) fn take(&mut self, bytes: &[u8], ends: &[usize], mut pass: impl FnMut(&[u8])) {
        let (whole, rest) = bytes.split_at(ends.last().copied().unwrap_or(0));
        if !whole.is_empty() {
            if !self.held.is_empty() {
                pass(&std::mem::take(&mut self.held));
            }
            pass(whole);
            self.passing = false;
        }
        if rest.is_empty() {
            return;
        }
        if !self.passing && self.held.len() + rest.len() <= self.limit {
            return self.held.extend_from_slice(rest);
        }
        self.passing = true;
        if !self.held.is_empty() {
            pass(&std::mem::take(&mut self.held));
        }
        pass(rest);
    }

    /// Whether all that was passed on are whole messages.
    pub(crate) fn is_whole(&self) -> bool {
        !self.passing
    }

    /// Forgets the message in progress: the rest of it will not come.
    pub(crate) fn forget(&mut self) {
        self.held = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(it: &mut Gather, bytes: &[u8], ends: &[usize]) -> Vec<u8> {
        let mut passed = Vec::new();
        it.take(bytes, ends, |it| passed.extend_from_slice(it));
        passed
    }

    #[test]
    fn only_whole_messages_pass() {
        let mut it = Gather::new(100);
        assert_eq!(passed(&mut it, b"aab", &[2]), b"aa");
        assert_eq!(passed(&mut it, b"b", &[]), b"");
        assert_eq!(passed(&mut it, b"bccd", &[1, 3]), b"bbbcc");
        assert!(it.is_whole());
        it.forget();
        assert_eq!(passed(&mut it, b"ee", &[2]), b"ee", "the beginning of d is forgotten");
    }

    #[test]
    fn a_message_that_is_too_long_passes_as_it_comes() {
        let mut it = Gather::new(4);
        assert_eq!(passed(&mut it, b"aaa", &[]), b"");
        assert_eq!(passed(&mut it, b"aa", &[]), b"aaaaa");
        assert!(!it.is_whole());
        assert_eq!(passed(&mut it, b"a", &[]), b"a");
        assert_eq!(passed(&mut it, b"abb", &[1]), b"a", "the next one is held again");
        assert!(it.is_whole());
        assert_eq!(passed(&mut it, b"b", &[1]), b"bbb");
    }
}
