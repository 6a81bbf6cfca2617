//! Lua 5.4 patterns with a budget of steps: what `string.find`, `match`, `gmatch` and `gsub` do,
//! interruptibly.
//!
//! The stock functions run in C, where no hook stops them: `("x"):rep(5000):find(".-.-b")` takes minutes, and
//! a client may choose the subject. Here every step of a match is counted, and every [`INTERVAL`] steps the
//! caller is asked whether the time is up. Results and error messages are those of Lua's own `lstrlib.c` in
//! the C locale, including the corners its manual leaves open; the comments name them.
//!
//! Offsets are in bytes and begin at 0; Lua's begin at 1. Nothing here allocates but [`Match::expand`] and
//! [`gsub`], and the output of both has a limit.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

/// How much work matches may do before the caller is asked; one budget may serve many calls.
pub(crate) struct Budget<'b> {
    /// Steps until the next question.
    left: usize,
    is_spent: &'b dyn Fn() -> bool,
}

/// Where a pattern matched, and what it captured.
#[derive(Clone)]
pub(crate) struct Match {
    pub(crate) start: usize,
    pub(crate) end: usize,
    n_captures: usize,
    slots: [Slot; MAX_CAPTURES],
}

/// What one pair of parentheses captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capture {
    /// The bytes from `start` to `end`.
    Span { start: usize, end: usize },
    /// The offset at which `()` stood. Lua shows it plus one.
    Position(usize),
}

/// The way through all matches of a pattern in a subject, for `gmatch` and `gsub`.
///
/// It borrows neither, so it can live in a closure of Lua; each call must be given the same two.
#[derive(Clone, Debug)]
pub(crate) struct Matches {
    /// Where the next attempt begins; past the subject's end when there is nothing left to find.
    at: usize,
    /// The end of the last match. An empty match there is skipped, so that `gsub("ab", "%w*", "x")` gives one
    /// `x`.
    last_end: Option<usize>,
    /// The pattern begins with `^` and that means the subject's start: one attempt, at the first place.
    is_anchored: bool,
}

/// Why there is no answer. The messages are Lua's, without the place in the script that the stock functions
/// prepend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatternError {
    /// The budget is spent. Lua has no message for it; the caller ends the script.
    Exhausted,
    /// Parentheses, quantifiers and `?` nest deeper than [`MAX_DEPTH`] in this match.
    TooComplex,
    /// The pattern ends with `%`.
    EndsWithEscape,
    /// A set has no end.
    MissingBracket,
    /// `%b` has less than two characters.
    MissingArguments,
    /// `%f` is not followed by a set.
    MissingSet,
    /// More than [`MAX_CAPTURES`].
    TooManyCaptures,
    /// A `)` without `(`.
    InvalidCapture,
    /// A `(` without `)`.
    UnfinishedCapture,
    /// `%n`, in the pattern or in the replacement, where there is no capture of that number (counted from 1).
    InvalidIndex(u8),
    /// A `%` in the replacement that is not followed by a digit or `%`.
    InvalidReplacement,
    /// The output is larger than the limit.
    TooLarge,
}

/// One capture while matching; `len` may also be [`OPEN`] or [`POSITION`].
#[derive(Clone, Copy)]
struct Slot {
    start: usize,
    len: usize,
}

/// What matches one byte.
#[derive(Clone, Copy)]
enum Item<'p> {
    Any,
    Literal(u8),
    /// The letter after `%`.
    Class(u8),
    Set(Set<'p>),
}

/// A set in brackets: what stands between them, without the `^`.
#[derive(Clone, Copy)]
struct Set<'p> {
    is_negated: bool,
    body: &'p [u8],
}

/// One attempt to match a pattern at one place.
struct Matcher<'m, 'b> {
    subject: &'m [u8],
    pattern: &'m [u8],
    budget: &'m mut Budget<'b>,
    /// Calls of [`Matcher::run`] that may still be opened inside each other.
    depth: usize,
    n_captures: usize,
    slots: [Slot; MAX_CAPTURES],
}

impl<'b> Budget<'b> {
    /// Asks `is_spent` every [`INTERVAL`] steps; the first time only then, so a short match costs no call.
    pub(crate) fn new(is_spent: &'b dyn Fn() -> bool) -> Budget<'b> {
        Budget { left: INTERVAL, is_spent }
    }

    /// Counts `steps` of work about to be done, or just done; a step is worth a few nanoseconds.
    #[inline(always)]
    pub(crate) fn charge(&mut self, steps: usize) -> Result<(), PatternError> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => self.ask(),
        }
    }

    #[cold]
    #[inline(never)]
    fn ask(&mut self) -> Result<(), PatternError> {
        if (self.is_spent)() {
            // The next charge asks again: a caller that goes on after this error gains nothing.
            self.left = 0;
            return Err(PatternError::Exhausted);
        }
        self.left = INTERVAL;
        Ok(())
    }
}

impl Match {
    /// The number of captures, as `string.find` returns them after the two offsets.
    pub(crate) fn n_captures(&self) -> usize {
        self.n_captures
    }

    /// The number of values that `match`, `gmatch` and the function of a `gsub` get: without captures the
    /// whole match.
    pub(crate) fn n_values(&self) -> usize {
        self.n_captures.max(1)
    }

    /// The value with that index (from 0). Without captures, 0 is the whole match.
    ///
    /// Lua notices a `(` that was never closed only when it reads the capture, so this is where the error
    /// comes from.
    pub(crate) fn capture(&self, idx: usize) -> Result<Capture, PatternError> {
        if idx >= self.n_captures {
            if idx == 0 {
                return Ok(Capture::Span { start: self.start, end: self.end });
            }
            return Err(PatternError::InvalidIndex(u8::try_from(idx + 1).unwrap_or(u8::MAX)));
        }
        let slot = self.slots[idx];
        match slot.len {
            OPEN => Err(PatternError::UnfinishedCapture),
            POSITION => Ok(Capture::Position(slot.start)),
            len => Ok(Capture::Span { start: slot.start, end: slot.start + len }),
        }
    }

    /// Appends what the replacement string of a `gsub` gives for this match. `out` never grows beyond `limit`
    /// bytes.
    pub(crate) fn expand(
        &self,
        subject: &[u8],
        replacement: &[u8],
        out: &mut Vec<u8>,
        limit: usize,
        budget: &mut Budget,
    ) -> Result<(), PatternError> {
        let mut rest = replacement;
        while let Some(escape) = rest.iter().position(|it| *it == b'%') {
            append(out, &rest[..escape], limit, budget)?;
            match rest.get(escape + 1) {
                Some(b'%') => append(out, b"%", limit, budget)?,
                Some(b'0') => append(out, &subject[self.start..self.end], limit, budget)?,
                Some(digit @ b'1'..=b'9') => match self.capture(usize::from(digit - b'1'))? {
                    Capture::Span { start, end } => append(out, &subject[start..end], limit, budget)?,
                    Capture::Position(offset) => append_number(out, offset + 1, limit, budget)?,
                },
                _ => return Err(PatternError::InvalidReplacement),
            }
            rest = &rest[escape + 2..];
        }
        append(out, rest, limit, budget)
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let captures: Vec<_> = (0..self.n_captures).map(|it| self.capture(it)).collect();
        f.debug_struct("Match")
            .field("start", &self.start)
            .field("end", &self.end)
            .field("captures", &captures)
            .finish()
    }
}

impl Matches {
    /// As `string.gmatch` goes: from `init` on; a `^` is an ordinary character.
    pub(crate) fn gmatch(init: usize) -> Matches {
        Matches { at: init, last_end: None, is_anchored: false }
    }

    /// As `string.gsub` goes: from the start; a leading `^` allows one match, there.
    pub(crate) fn gsub(pattern: &[u8]) -> Matches {
        Matches { at: 0, last_end: None, is_anchored: pattern.first() == Some(&b'^') }
    }

    /// The next match, or `None` when there is no other. Matches do not overlap and come from left to right.
    pub(crate) fn next(
        &mut self,
        subject: &[u8],
        pattern: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<Match>, PatternError> {
        if self.at > subject.len() {
            return Ok(None);
        }
        let from = usize::from(self.is_anchored);
        let mut matcher = Matcher::new(subject, pattern, budget);
        while self.at <= subject.len() {
            let start = self.at;
            let end = matcher.attempt(start, from)?.filter(|it| Some(*it) != self.last_end);
            self.at = match end {
                _ if self.is_anchored => subject.len() + 1,
                Some(end) => end,
                None => start + 1,
            };
            if let Some(end) = end {
                self.last_end = Some(end);
                return Ok(Some(matcher.found(start, end)));
            }
        }
        Ok(None)
    }
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PatternError::Exhausted => "pattern took too long",
            PatternError::TooComplex => "pattern too complex",
            PatternError::EndsWithEscape => "malformed pattern (ends with '%')",
            PatternError::MissingBracket => "malformed pattern (missing ']')",
            PatternError::MissingArguments => "malformed pattern (missing arguments to '%b')",
            PatternError::MissingSet => "missing '[' after '%f' in pattern",
            PatternError::TooManyCaptures => "too many captures",
            PatternError::InvalidCapture => "invalid pattern capture",
            PatternError::UnfinishedCapture => "unfinished capture",
            PatternError::InvalidIndex(idx) => return write!(f, "invalid capture index %{idx}"),
            PatternError::InvalidReplacement => "invalid use of '%' in replacement string",
            PatternError::TooLarge => "resulting string too large",
        })
    }
}

impl std::error::Error for PatternError {}

impl Item<'_> {
    #[inline(always)]
    fn matches(self, byte: u8) -> bool {
        match self {
            Item::Any => true,
            Item::Literal(it) => it == byte,
            Item::Class(letter) => class_has(letter, byte),
            Item::Set(set) => set.has(byte),
        }
    }

    /// What one comparison costs in steps: a set is read from its start each time.
    #[inline(always)]
    fn cost(self) -> usize {
        match self {
            Item::Set(set) => 1 + set.body.len() / 4,
            _ => 1,
        }
    }
}

impl Set<'_> {
    fn has(self, byte: u8) -> bool {
        let body = self.body;
        let mut at = 0;
        while at < body.len() {
            if body[at] == b'%' {
                // The range in `[a-%%]` takes the first `%`; Lua then reads the second as an escape of the
                // bracket.
                if class_has(body.get(at + 1).copied().unwrap_or(b']'), byte) {
                    return !self.is_negated;
                }
                at += 2;
            } else if body.get(at + 1) == Some(&b'-') && at + 2 < body.len() {
                if (body[at]..=body[at + 2]).contains(&byte) {
                    return !self.is_negated;
                }
                at += 3;
            } else {
                if body[at] == byte {
                    return !self.is_negated;
                }
                at += 1;
            }
        }
        self.is_negated
    }
}

impl<'m, 'b> Matcher<'m, 'b> {
    fn new(subject: &'m [u8], pattern: &'m [u8], budget: &'m mut Budget<'b>) -> Matcher<'m, 'b> {
        let slots = [Slot { start: 0, len: 0 }; MAX_CAPTURES];
        Matcher { subject, pattern, budget, depth: MAX_DEPTH, n_captures: 0, slots }
    }

    /// Matches the pattern from its offset `p` on at the offset `s` of the subject; gives the end of the
    /// match.
    fn attempt(&mut self, s: usize, p: usize) -> Result<Option<usize>, PatternError> {
        self.depth = MAX_DEPTH;
        self.n_captures = 0;
        self.run(s, p)
    }

    /// The result of the attempt that has just succeeded.
    fn found(&self, start: usize, end: usize) -> Match {
        Match { start, end, n_captures: self.n_captures, slots: self.slots }
    }

    /// One level of the match. It calls itself only for what must be undone when the rest does not match:
    /// captures and quantifiers. So a level is used up by one of these in the pattern, never by a byte of the
    /// subject, and there are at most [`MAX_DEPTH`] of them.
    fn run(&mut self, s: usize, p: usize) -> Result<Option<usize>, PatternError> {
        // An error ends the whole attempt, which is why `depth` need not be restored then.
        self.depth = self.depth.checked_sub(1).ok_or(PatternError::TooComplex)?;
        let result = self.run_level(s, p)?;
        self.depth += 1;
        Ok(result)
    }

    fn run_level(&mut self, mut s: usize, mut p: usize) -> Result<Option<usize>, PatternError> {
        while let Some(&byte) = self.pattern.get(p) {
            self.budget.charge(1)?;
            let next = self.pattern.get(p + 1).copied();
            // Most of most patterns is plain text, which needs none of what follows.
            if !matches!(byte, b'(' | b')' | b'$' | b'%' | b'[' | b'.')
                && !matches!(next, Some(b'*' | b'+' | b'-' | b'?'))
            {
                if self.subject.get(s) != Some(&byte) {
                    return Ok(None);
                }
                (s, p) = (s + 1, p + 1);
                continue;
            }
            match (byte, next) {
                (b'(', Some(b')')) => return self.open(s, p + 2, POSITION),
                (b'(', _) => return self.open(s, p + 1, OPEN),
                (b')', _) => return self.close(s, p + 1),
                (b'$', None) => return Ok((s == self.subject.len()).then_some(s)),
                (b'%', Some(b'b')) => match self.balanced(s, p + 2)? {
                    Some(end) => (s, p) = (end, p + 4),
                    None => return Ok(None),
                },
                (b'%', Some(b'f')) => match self.frontier(s, p + 2)? {
                    Some(after) => p = after,
                    None => return Ok(None),
                },
                (b'%', Some(digit @ b'0'..=b'9')) => match self.back_reference(s, digit)? {
                    Some(end) => (s, p) = (end, p + 2),
                    None => return Ok(None),
                },
                _ => {
                    let (item, after) = self.item(p)?;
                    let quantifier = self.pattern.get(after).copied();
                    if self.is_match(s, item)? {
                        match quantifier {
                            Some(b'*') => return self.longest(s, s + 1, item, after + 1),
                            Some(b'+') => return self.longest(s + 1, s + 1, item, after + 1),
                            Some(b'-') => return self.shortest(s, item, after + 1),
                            Some(b'?') => match self.run(s + 1, after + 1)? {
                                Some(end) => return Ok(Some(end)),
                                None => p = after + 1,
                            },
                            _ => (s, p) = (s + 1, after),
                        }
                    } else if let Some(b'*' | b'-' | b'?') = quantifier {
                        p = after + 1;
                    } else {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(s))
    }

    /// Reads the item at `p` and gives the offset after it. Only what comes to be read is checked, as in Lua.
    #[inline(always)]
    fn item(&mut self, p: usize) -> Result<(Item<'m>, usize), PatternError> {
        match self.pattern[p] {
            b'.' => Ok((Item::Any, p + 1)),
            b'%' => match self.pattern.get(p + 1) {
                Some(&letter) => Ok((Item::Class(letter), p + 2)),
                None => Err(PatternError::EndsWithEscape),
            },
            b'[' => {
                let (set, after) = self.set(p)?;
                Ok((Item::Set(set), after))
            }
            byte => Ok((Item::Literal(byte), p + 1)),
        }
    }

    /// Reads the set whose `[` is at `p` and gives the offset after its `]`.
    fn set(&mut self, p: usize) -> Result<(Set<'m>, usize), PatternError> {
        let is_negated = self.pattern.get(p + 1) == Some(&b'^');
        let first = p + 1 + usize::from(is_negated);
        let mut at = first;
        // The first byte never ends the set: `[]]` has a bracket in it.
        loop {
            let byte = *self.pattern.get(at).ok_or(PatternError::MissingBracket)?;
            if byte == b']' && at > first {
                break;
            }
            at += if byte == b'%' { 2 } else { 1 };
        }
        self.budget.charge((at - first) / 4)?;
        Ok((Set { is_negated, body: &self.pattern[first..at] }, at + 1))
    }

    #[inline(always)]
    fn is_match(&mut self, s: usize, item: Item) -> Result<bool, PatternError> {
        let Some(&byte) = self.subject.get(s) else { return Ok(false) };
        self.budget.charge(item.cost())?;
        Ok(item.matches(byte))
    }

    /// The item as often as possible, then less often down to the offset `least`; the pattern goes on at `p`.
    /// Up to `end` the item is known to match.
    fn longest(
        &mut self,
        least: usize,
        mut end: usize,
        item: Item,
        p: usize,
    ) -> Result<Option<usize>, PatternError> {
        end = match item {
            Item::Any => self.subject.len(),
            Item::Literal(it) => self.run_of(end, 1, |byte| byte == it)?,
            Item::Class(letter) => self.run_of(end, 1, |byte| class_has(letter, byte))?,
            Item::Set(set) => self.run_of(end, item.cost(), |byte| set.has(byte))?,
        };
        loop {
            if let Some(found) = self.run(end, p)? {
                return Ok(Some(found));
            }
            if end == least {
                return Ok(None);
            }
            end -= 1;
        }
    }

    /// The offset from `s` on of the first byte that does not match.
    #[inline(always)]
    fn run_of(
        &mut self,
        mut s: usize,
        cost: usize,
        matches: impl Fn(u8) -> bool,
    ) -> Result<usize, PatternError> {
        while let Some(&byte) = self.subject.get(s) {
            self.budget.charge(cost)?;
            if !matches(byte) {
                break;
            }
            s += 1;
        }
        Ok(s)
    }

    /// The item as seldom as possible; the pattern goes on at `p`.
    fn shortest(&mut self, mut s: usize, item: Item, p: usize) -> Result<Option<usize>, PatternError> {
        loop {
            if let Some(found) = self.run(s, p)? {
                return Ok(Some(found));
            }
            if !self.is_match(s, item)? {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn open(&mut self, s: usize, p: usize, len: usize) -> Result<Option<usize>, PatternError> {
        let slot = self.slots.get_mut(self.n_captures).ok_or(PatternError::TooManyCaptures)?;
        *slot = Slot { start: s, len };
        self.n_captures += 1;
        let found = self.run(s, p)?;
        if found.is_none() {
            self.n_captures -= 1;
        }
        Ok(found)
    }

    fn close(&mut self, s: usize, p: usize) -> Result<Option<usize>, PatternError> {
        let idx = self.slots[..self.n_captures]
            .iter()
            .rposition(|it| it.len == OPEN)
            .ok_or(PatternError::InvalidCapture)?;
        self.slots[idx].len = s - self.slots[idx].start;
        let found = self.run(s, p)?;
        if found.is_none() {
            self.slots[idx].len = OPEN;
        }
        Ok(found)
    }

    /// `%bxy` with its two characters at `p`: gives the end of the balanced text at `s`.
    fn balanced(&mut self, s: usize, p: usize) -> Result<Option<usize>, PatternError> {
        let (Some(&begin), Some(&end)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return Err(PatternError::MissingArguments);
        };
        if self.subject.get(s) != Some(&begin) {
            return Ok(None);
        }
        let mut n_open = 1_usize;
        for (offset, byte) in self.subject.iter().enumerate().skip(s + 1) {
            self.budget.charge(1)?;
            // The end is looked at first: when both are the same, the second one closes.
            if *byte == end {
                n_open -= 1;
                if n_open == 0 {
                    return Ok(Some(offset + 1));
                }
            } else if *byte == begin {
                n_open += 1;
            }
        }
        Ok(None)
    }

    /// `%f[set]` with the set at `p`: gives the offset after it when `s` is where the set begins to hold.
    /// Before the subject and after it stands a zero byte.
    fn frontier(&mut self, s: usize, p: usize) -> Result<Option<usize>, PatternError> {
        if self.pattern.get(p) != Some(&b'[') {
            return Err(PatternError::MissingSet);
        }
        let (set, after) = self.set(p)?;
        self.budget.charge(Item::Set(set).cost())?;
        let before = s.checked_sub(1).map_or(0, |it| self.subject[it]);
        let here = self.subject.get(s).copied().unwrap_or(0);
        Ok((!set.has(before) && set.has(here)).then_some(after))
    }

    /// `%1` to `%9`: gives the end of the same text at `s`.
    fn back_reference(&mut self, s: usize, digit: u8) -> Result<Option<usize>, PatternError> {
        let number = digit - b'0';
        let slot = usize::from(number)
            .checked_sub(1)
            .and_then(|it| self.slots[..self.n_captures].get(it))
            .filter(|it| it.len != OPEN)
            .ok_or(PatternError::InvalidIndex(number))?;
        // A position is not text: a reference to it never matches.
        if slot.len == POSITION || slot.len > self.subject.len() - s {
            return Ok(None);
        }
        let (start, len) = (slot.start, slot.len);
        self.budget.charge(len / 16)?;
        Ok((self.subject[start..start + len] == self.subject[s..s + len]).then_some(s + len))
    }
}

// The numbers of lstrlib.c (MAXCCALLS) and luaconf.h (LUA_MAXCAPTURES) of Lua 5.4.
const MAX_DEPTH: usize = 200;
const MAX_CAPTURES: usize = 32;

// A step takes one to ten nanoseconds: the question comes every 40 µs at most, and costs nothing beside them.
const INTERVAL: usize = 4096;

// Lengths no capture can have: a slice is never longer than `isize::MAX`.
const OPEN: usize = usize::MAX;
const POSITION: usize = usize::MAX - 1;

/// Whether `string.find` has to read the pattern as one. Without specials it is found by [`search`], and then
/// even a lone `)` is plain text; `match`, `gmatch` and `gsub` do not ask.
pub(crate) fn has_specials(pattern: &[u8]) -> bool {
    pattern.iter().any(|it| b"^$*+?.([%-".contains(it))
}

/// The first match at `init` or later, for `string.find` and `string.match`; a leading `^` holds it at
/// `init`.
pub(crate) fn find(
    subject: &[u8],
    pattern: &[u8],
    init: usize,
    budget: &mut Budget,
) -> Result<Option<Match>, PatternError> {
    let is_anchored = pattern.first() == Some(&b'^');
    let last = if is_anchored { init.min(subject.len()) } else { subject.len() };
    if init > last {
        return Ok(None);
    }
    let mut matcher = Matcher::new(subject, pattern, budget);
    for start in init..=last {
        if let Some(end) = matcher.attempt(start, usize::from(is_anchored))? {
            return Ok(Some(matcher.found(start, end)));
        }
    }
    Ok(None)
}

/// `string.gsub` with a replacement string: the text and the number of matches replaced, at most `max`.
///
/// The text is the subject itself when nothing matched. It is never longer than `limit`.
pub(crate) fn gsub<'s>(
    subject: &'s [u8],
    pattern: &[u8],
    replacement: &[u8],
    max: usize,
    limit: usize,
    budget: &mut Budget,
) -> Result<(Cow<'s, [u8]>, usize), PatternError> {
    let mut matches = Matches::gsub(pattern);
    let (mut out, mut copied, mut n_matches) = (Vec::new(), 0, 0);
    while n_matches < max {
        let Some(found) = matches.next(subject, pattern, budget)? else { break };
        append(&mut out, &subject[copied..found.start], limit, budget)?;
        found.expand(subject, replacement, &mut out, limit, budget)?;
        copied = found.end;
        n_matches += 1;
    }
    if n_matches == 0 {
        return Ok((Cow::Borrowed(subject), 0));
    }
    append(&mut out, &subject[copied..], limit, budget)?;
    Ok((Cow::Owned(out), n_matches))
}

/// The offset of the first `needle` at `init` or later, in time linear in both and without memory of its own.
///
/// This is the two-way algorithm (Crochemore and Perrin, "Two-way string-matching", JACM 38(3), 1991).
pub(crate) fn search(
    haystack: &[u8],
    needle: &[u8],
    init: usize,
    budget: &mut Budget,
) -> Result<Option<usize>, PatternError> {
    let Some(room) = haystack.len().checked_sub(init).and_then(|it| it.checked_sub(needle.len())) else {
        return Ok(None);
    };
    let Some(&first) = needle.first() else { return Ok(Some(init)) };
    if room == 0 || needle.len() == 1 {
        budget.charge(1 + (room + needle.len()) / 4)?;
        return Ok(match needle.len() {
            1 => haystack[init..].iter().position(|it| *it == first).map(|it| init + it),
            _ => (haystack[init..] == *needle).then_some(init),
        });
    }

    // The needle is cut where its left and right part repeat least; a mismatch in the right part then allows
    // a shift by the bytes compared, one in the left part a shift by the period.
    budget.charge(needle.len())?;
    let (ascending, descending) = (maximal_suffix(needle, false), maximal_suffix(needle, true));
    let (cut, period) = if ascending.0 > descending.0 { ascending } else { descending };
    let is_periodic = needle[..cut] == needle[period..period + cut];
    let shift = if is_periodic { period } else { cut.max(needle.len() - cut) + 1 };

    let mut at = init;
    // Bytes at the needle's start known to match after a shift by the period.
    let mut known = 0;
    while at <= init + room {
        let window = &haystack[at..at + needle.len()];
        let right = cut.max(known);
        let n_equal = common(&needle[right..], &window[right..]);
        budget.charge(1 + n_equal / 4)?;
        if right + n_equal < needle.len() {
            at += right + n_equal - cut + 1;
            known = 0;
            continue;
        }
        let left = known.min(cut);
        budget.charge((cut - left) / 4)?;
        if needle[left..cut] == window[left..cut] {
            return Ok(Some(at));
        }
        at += shift;
        known = if is_periodic { needle.len() - period } else { 0 };
    }
    Ok(None)
}

/// Where the greatest suffix of `needle` begins, in the order of bytes or its reverse, and that suffix's
/// period.
fn maximal_suffix(needle: &[u8], is_reversed: bool) -> (usize, usize) {
    // `best` is the greatest suffix so far, `rival` the one compared with it, equal in `n_equal` bytes.
    let (mut best, mut rival, mut n_equal, mut period) = (0, 1, 0, 1);
    while let Some(theirs) = needle.get(rival + n_equal) {
        let ours = &needle[best + n_equal];
        if theirs == ours {
            n_equal += 1;
            if n_equal == period {
                rival += period;
                n_equal = 0;
            }
        } else if (theirs < ours) != is_reversed {
            rival += n_equal + 1;
            n_equal = 0;
            period = rival - best;
        } else {
            best = rival;
            rival += 1;
            n_equal = 0;
            period = 1;
        }
    }
    (best, period)
}

/// How many bytes the two have in common at their start.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Whether the class with that letter has `byte`, in the C locale; a letter that is no class stands for
/// itself.
#[inline(always)]
fn class_has(letter: u8, byte: u8) -> bool {
    let has = match letter.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        // Unlike `is_ascii_whitespace`, C's `isspace` has the vertical tab.
        b's' => matches!(byte, b'\t'..=b'\r' | b' '),
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        // Of Lua 5.1, undocumented since and still there.
        b'z' => byte == 0,
        _ => return letter == byte,
    };
    has != letter.is_ascii_uppercase()
}

/// Appends to an output of at most `limit` bytes.
pub(crate) fn append(
    out: &mut Vec<u8>,
    text: &[u8],
    limit: usize,
    budget: &mut Budget,
) -> Result<(), PatternError> {
    budget.charge(1 + text.len() / 16)?;
    if text.len() > limit.saturating_sub(out.len()) {
        return Err(PatternError::TooLarge);
    }
    out.extend_from_slice(text);
    Ok(())
}

fn append_number(
    out: &mut Vec<u8>,
    number: usize,
    limit: usize,
    budget: &mut Budget,
) -> Result<(), PatternError> {
    let mut digits = [0_u8; 20];
    let mut rest = &mut digits[..];
    write!(rest, "{number}").expect("a 64-bit number has at most 20 digits");
    let len = 20 - rest.len();
    append(out, &digits[..len], limit, budget)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// One value as Lua would show it: text, or a position counted from 1.
    fn show(found: &Match, idx: usize, subject: &str) -> Result<String, PatternError> {
        Ok(match found.capture(idx)? {
            Capture::Span { start, end } => {
                String::from_utf8_lossy(&subject.as_bytes()[start..end]).into_owned()
            }
            Capture::Position(offset) => (offset + 1).to_string(),
        })
    }

    fn values(found: &Match, subject: &str) -> Result<String, PatternError> {
        let values: Result<Vec<String>, _> =
            (0..found.n_values()).map(|it| show(found, it, subject)).collect();
        Ok(values?.join(","))
    }

    /// `string.match(subject, pattern)` with its values joined by commas.
    fn matched(subject: &str, pattern: &str) -> Result<Option<String>, PatternError> {
        let mut budget = Budget::new(&|| false);
        let found = find(subject.as_bytes(), pattern.as_bytes(), 0, &mut budget)?;
        found.map(|it| values(&it, subject)).transpose()
    }

    #[track_caller]
    fn check(subject: &str, pattern: &str, expected: Option<&str>) {
        let found = matched(subject, pattern).map_err(|it| it.to_string());
        assert_eq!(found, Ok(expected.map(str::to_owned)), "({subject:?}):match({pattern:?})");
    }

    #[track_caller]
    fn check_fails(subject: &str, pattern: &str, message: &str) {
        let found = matched(subject, pattern).map_err(|it| it.to_string());
        assert_eq!(found, Err(message.to_owned()), "({subject:?}):match({pattern:?})");
    }

    /// Every match of a `gmatch`, joined by bars.
    #[track_caller]
    fn check_all(subject: &str, pattern: &str, init: usize, expected: &str) {
        let mut budget = Budget::new(&|| false);
        let (mut matches, mut all) = (Matches::gmatch(init), Vec::new());
        while let Some(found) =
            matches.next(subject.as_bytes(), pattern.as_bytes(), &mut budget).expect("it is well formed")
        {
            all.push(values(&found, subject).expect("its captures are closed"));
        }
        assert_eq!(all.join("|"), expected, "({subject:?}):gmatch({pattern:?})");
    }

    fn replaced(subject: &str, pattern: &str, replacement: &str, max: usize) -> Result<String, String> {
        let mut budget = Budget::new(&|| false);
        let (subject, pattern) = (subject.as_bytes(), pattern.as_bytes());
        let (text, n) = gsub(subject, pattern, replacement.as_bytes(), max, 100, &mut budget)
            .map_err(|it| it.to_string())?;
        Ok(format!("{} {n}", String::from_utf8_lossy(&text)))
    }

    #[track_caller]
    fn check_gsub(subject: &str, pattern: &str, replacement: &str, expected: Result<&str, &str>) {
        let found = replaced(subject, pattern, replacement, usize::MAX);
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(found, expected, "({subject:?}):gsub({pattern:?}, {replacement:?})");
    }

    /// A budget that is spent at its `n`th question.
    fn spent_after(n: usize) -> impl Fn() -> bool {
        let asked = Cell::new(0);
        move || {
            asked.set(asked.get() + 1);
            asked.get() >= n
        }
    }

    #[track_caller]
    fn check_exhausted(subject: &[u8], pattern: &[u8]) {
        let is_spent = spent_after(100);
        let found = find(subject, pattern, 0, &mut Budget::new(&is_spent));
        assert_eq!(found.err(), Some(PatternError::Exhausted), "{}", String::from_utf8_lossy(pattern));
    }

    #[test]
    fn single_characters_and_classes_match_as_in_the_c_locale() {
        check("hello", "l+", Some("ll"));
        check("a.b", "%.", Some("."));
        check("key = 7", "%a+", Some("key"));
        check("key = 7", "%d", Some("7"));
        check("\u{b}x", "%s", Some("\u{b}"));
        check("a\u{7f}", "%c", Some("\u{7f}"));
        check("é", "%w", None);
        check("é", "%W%W", Some("é"));
        check("ab_", "%p", Some("_"));
        check("xyzF", "%x", Some("F"));
        check("aB", "%u", Some("B"));
        check("aB", "%L", Some("B"));
        check("a b", "%g+$", Some("b"));
        check("a\0", "%z", Some("\0"));
        check("a\0b", "a\0b", Some("a\0b"));
    }

    #[test]
    fn sets_have_ranges_classes_and_negation() {
        check("x-1", "[%a-]+", Some("x-"));
        check("b]", "[]]", Some("]"));
        check("]a", "[^]]", Some("a"));
        check("a^", "[b^]", Some("^"));
        check("f7", "[0-9]", Some("7"));
        check("a-", "[a-]+", Some("a-"));
        check("%", "[%%]", Some("%"));
        check("]", "[a-%%]", Some("]")); // a corner of lstrlib.c; see `Set::has`
        check("a", "[b-a]", None);
    }

    #[test]
    fn quantifiers_take_most_or_least() {
        check("<a><b>", "<.*>", Some("<a><b>"));
        check("<a><b>", "<.->", Some("<a>"));
        check("aaa", "a-$", Some("aaa"));
        check("aaab", "a?a?b", Some("aab"));
        check("b", "a*", Some(""));
        check("b", "a+", None);
        check("aab", "a*ab", Some("aab"));
        check("a*", "a%*", Some("a*"));
        check("+", "+", Some("+"));
    }

    #[test]
    fn anchors_hold_at_the_ends_only() {
        check("ab", "^b", None);
        check("ab", "^ab$", Some("ab"));
        check("a$b", "a$b", Some("a$b"));
        check("a^b", "a^b", Some("a^b"));
        check("", "^$", Some(""));
    }

    #[test]
    fn captures_are_spans_or_positions() {
        check("key=value", "(%w+)=(%w+)", Some("key,value"));
        check("hello", "()ll()", Some("3,5"));
        check("abc", "((a)(b))", Some("ab,a,b"));
        check("Bearer s3cret", "^Bearer (.+)$", Some("s3cret"));
        check("\"it's\"", "([\"'])(.-)%1", Some("\",it's"));
        check("aXa", "(a)X%1", Some("a"));
        check("aa", "()a%1", None); // a position is not text
    }

    #[test]
    fn balanced_text_and_frontiers_match() {
        check("f(a(b)c) d)", "%b()", Some("(a(b)c)"));
        check("f(a(b", "%b()", None);
        check("|a|b|", "%b||", Some("|a|"));
        check("THE (quick) fox", "%f[%a]%a+%f[%A]", Some("THE"));
        check("foo", "%f[%z]", Some(""));
        check("foo", "o%f[^o]", Some("o"));
    }

    #[test]
    fn a_search_begins_at_init_and_sees_what_is_before_it() {
        let at = |subject: &str, pattern: &str, init| {
            let found = find(subject.as_bytes(), pattern.as_bytes(), init, &mut Budget::new(&|| false));
            found.expect("it is well formed").map(|it| (it.start, it.end, it.n_captures()))
        };
        assert_eq!(at("abab", "b", 2), Some((3, 4, 0)));
        assert_eq!(at("abab", "^a", 2), Some((2, 3, 0)));
        assert_eq!(at("abab", "^a", 1), None);
        assert_eq!(at("ab", "%f[%w]b", 1), None);
        assert_eq!(at("ab", "()", 2), Some((2, 2, 1)));
        assert_eq!(at("ab", "", 3), None);
        assert_eq!(at("ab", "^", usize::MAX), None);
    }

    #[test]
    fn gmatch_does_not_stand_still_at_an_empty_match() {
        check_all("one two", "%a+", 0, "one|two");
        check_all("a=1, b=2", "(%w+)=(%w+)", 0, "a,1|b,2");
        check_all("abc", "()", 0, "1|2|3|4");
        check_all("ab c", "%a*", 0, "ab|c");
        check_all("^a^a", "^a", 0, "^a|^a");
        check_all("abab", "b", 2, "b");
        check_all("ab", "", 3, "");
    }

    #[test]
    fn gsub_expands_its_replacement() {
        check_gsub("hello world", "o", "0", Ok("hell0 w0rld 2"));
        check_gsub("a=1", "(%w)=(%w)", "%2=%1 (%0)", Ok("1=a (a=1) 1"));
        check_gsub("ab", "%w", "%0%0%1", Ok("aaabbb 2"));
        check_gsub("ab", "%w*", "x", Ok("x 1"));
        check_gsub("ab", "", "-", Ok("-a-b- 3"));
        check_gsub("aa", "^a", "b", Ok("ba 1"));
        check_gsub("ab", "()", "%1", Ok("1a2b3 3"));
        check_gsub("50", "%d+", "%0%%", Ok("50% 1"));
        check_gsub("abc", "x", "%", Ok("abc 0")); // not read when nothing matches
        check_gsub("abc", "(a", "x", Ok("xbc 1")); // nor is the open capture
        check_gsub("abc", "(a", "%1", Err("unfinished capture"));
        check_gsub("abc", ".", "%2", Err("invalid capture index %2"));
        check_gsub("abc", ".", "%z", Err("invalid use of '%' in replacement string"));
        check_gsub("abc", ".", "%", Err("invalid use of '%' in replacement string"));
        assert_eq!(replaced("aaaa", "a", "b", 2), Ok("bbaa 2".into()));
        assert_eq!(replaced("aaaa", "a", "b", 0), Ok("aaaa 0".into()));
    }

    #[test]
    fn the_output_of_gsub_has_a_limit() {
        let long = "x".repeat(60);
        check_gsub("ab", ".", &long, Err("resulting string too large"));
        check_gsub(&long, "^", &long, Err("resulting string too large"));
    }

    #[test]
    fn malformed_patterns_get_the_messages_of_lua() {
        check_fails("a", "a%", "malformed pattern (ends with '%')");
        check_fails("a", "[a", "malformed pattern (missing ']')");
        check_fails("a", "[]", "malformed pattern (missing ']')");
        check_fails("a", "[a%]", "malformed pattern (missing ']')");
        check_fails("a", "[^", "malformed pattern (missing ']')");
        check_fails("a", "%b", "malformed pattern (missing arguments to '%b')");
        check_fails("a", "%bx", "malformed pattern (missing arguments to '%b')");
        check_fails("a", "%f", "missing '[' after '%f' in pattern");
        check_fails("a", "%fa", "missing '[' after '%f' in pattern");
        check_fails("a", "a)", "invalid pattern capture");
        check_fails("a", "(a", "unfinished capture");
        check_fails("a", "%0", "invalid capture index %0");
        check_fails("a", "%1", "invalid capture index %1");
        check_fails("a", "(%1)", "invalid capture index %1");
        check_fails("a", &"()".repeat(33), "too many captures");
        check("b", "a[", None); // what is not reached is not read
    }

    #[test]
    fn nesting_has_the_bound_of_lua() {
        let subject = "a".repeat(300);
        check(&subject, &"a?".repeat(199), Some(&"a".repeat(199)));
        check_fails(&subject, &"a?".repeat(200), "pattern too complex");
        check("", &"a*".repeat(1000), Some("")); // no level is used where nothing can be undone
    }

    #[test]
    fn a_long_subject_uses_no_stack() {
        let subject = "a".repeat(1_000_000);
        check(&subject, "^a*$", Some(&subject));
        check(&subject, "^a-$", Some(&subject));
        check(&subject, "^(a+)$", Some(&subject));
    }

    #[test]
    fn a_hostile_pattern_is_given_up() {
        check_exhausted(&b"x".repeat(5000), b".-.-b");
        check_exhausted(&b"x".repeat(20_000), b".-b");
        check_exhausted(&b"a".repeat(40), &[b"a?".repeat(40), b"b".to_vec()].concat());
        check_exhausted(&b"a".repeat(60), b"a-a-a-a-a-a-a-a-a-b");
        check_exhausted(&b"(".repeat(100_000), b"%b()");
        check_exhausted(&b"x".repeat(10_000), &[b"[".to_vec(), b"a".repeat(10_000), b"]".to_vec()].concat());
        check_exhausted(
            &b"x".repeat(100_000),
            &[b"%f[".to_vec(), b"a".repeat(1_000), b"]".to_vec()].concat(),
        );
        check_exhausted(&b"a".repeat(20_000), b"(.-)%1b");
        check_exhausted(&b"x".repeat(1_000_000), b"y");
    }

    #[test]
    fn a_hostile_replacement_is_given_up() {
        let is_spent = spent_after(100);
        let (subject, replacement) = (b"x".repeat(10_000), b"%1".repeat(10_000));
        let result = gsub(&subject, b"()", &replacement, usize::MAX, usize::MAX, &mut Budget::new(&is_spent));
        assert_eq!(result.err(), Some(PatternError::Exhausted));
    }

    #[test]
    fn the_caller_is_asked_every_4096_steps() {
        let asked = Cell::new(0);
        let is_spent = || {
            asked.set(asked.get() + 1);
            false
        };
        let mut budget = Budget::new(&is_spent);
        for _ in 0..3 * (INTERVAL + 1) {
            budget.charge(1).expect("it is never spent");
        }
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn a_spent_budget_stays_spent() {
        let is_spent = || true;
        let mut budget = Budget::new(&is_spent);
        assert_eq!(find(&b"x".repeat(5000), b"y", 0, &mut budget).err(), Some(PatternError::Exhausted));
        assert_eq!(find(b"x", b"y", 0, &mut budget).err(), Some(PatternError::Exhausted));
    }

    #[test]
    fn find_reads_a_pattern_only_when_it_has_specials() {
        for special in ["^", "$", "*", "+", "?", ".", "(", "[", "%", "-"] {
            assert!(has_specials(format!("a{special}b").as_bytes()), "{special}");
        }
        assert!(!has_specials(b"a)b] {}\0"));
    }

    #[test]
    fn search_finds_what_a_naive_search_finds() {
        // All needles up to six letters in all subjects of ten letters over {a, b}, then some with long
        // periods.
        let words = |len: usize| {
            (0..1_usize << len).map(move |bits| {
                (0..len).map(|it| if bits >> it & 1 == 0 { b'a' } else { b'b' }).collect::<Vec<u8>>()
            })
        };
        let needles: Vec<Vec<u8>> = (0..=6).flat_map(words).collect();
        let check = |subject: &[u8], needle: &[u8], init: usize| {
            let naive = (init..=subject.len()).find(|it| subject[*it..].starts_with(needle));
            let found = search(subject, needle, init, &mut Budget::new(&|| false));
            assert_eq!(found, Ok(naive), "{subject:?} {needle:?} {init}");
        };
        for subject in words(10) {
            for needle in &needles {
                check(&subject, needle, needle.len() % 3);
            }
        }
        for (unit, n) in [("ab", 40), ("aab", 30), ("abaab", 20), ("a", 60)] {
            let subject = [unit.repeat(n - 1), "b".into(), unit.repeat(n), "aa".into()].concat();
            for len in 1..unit.len() * n {
                check(subject.as_bytes(), &subject.as_bytes()[subject.len() - len..], 0);
                check(subject.as_bytes(), &unit.repeat(n).as_bytes()[..len], 1);
            }
        }
        check(b"ab", b"", 2);
        check(b"ab", b"", 3);
        check(b"ab", b"abc", 0);
    }

    #[test]
    fn search_takes_linear_time() {
        let asked = Cell::new(0_usize);
        let is_spent = || {
            asked.set(asked.get() + 1);
            false
        };
        let subject = b"a".repeat(1_000_000);
        for needle in [
            [b"a".repeat(5_000), b"b".to_vec()].concat(),
            [b"b".to_vec(), b"a".repeat(5_000)].concat(),
            [b"a".repeat(2_500), b"b".to_vec(), b"a".repeat(2_500)].concat(),
        ] {
            asked.set(0);
            assert_eq!(search(&subject, &needle, 0, &mut Budget::new(&is_spent)), Ok(None));
            assert!(asked.get() * INTERVAL <= 4 * subject.len(), "{} questions", asked.get());
        }
    }
}
