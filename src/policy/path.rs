//! Which paths a route is for, and what a path may mean to the server that gets it.

use std::borrow::Cow;

/// A pattern of paths: `*` stands for one segment, `**` at the end for the rest (be it nothing), everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    segments: Vec<Segment>,
    rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
}

impl Pattern {
    /// Reads a pattern. The error is a sentence for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err("expected a path that starts with `/`".into());
        };
        let mut segments = Vec::new();
        let mut rest = false;
        for segment in path.split('/') {
            match segment {
                _ if rest => return Err("`**` stands for the rest, so nothing can follow it".into()),
                "**" => rest = true,
                "*" => segments.push(Segment::Any),
                it if it.contains('*') => return Err("`*` stands for a whole segment".into()),
                it => segments.push(Segment::Literal(it.to_owned())),
            }
        }
        Ok(Pattern { segments, rest })
    }

    /// Whether a path, without its query, is one of the pattern's.
    pub fn matches(&self, path: &str) -> bool {
        let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
        for segment in &self.segments {
            match (segment, parts.next()) {
                (_, None) => return false,
                (Segment::Any, Some(part)) if !part.is_empty() => {}
                (Segment::Literal(literal), Some(part)) if literal == part => {}
                _ => return false,
            }
        }
        self.rest || parts.next().is_none()
    }

    /// Whether every path of another pattern is one of this one's.
    pub(crate) fn covers(&self, other: &Pattern) -> bool {
        let is_wider = |(own, its): (&Segment, &Segment)| match (own, its) {
            (Segment::Any, Segment::Literal(literal)) => !literal.is_empty(),
            (own, its) => *own == Segment::Any || own == its,
        };
        let is_long_enough = match self.rest {
            true => other.segments.len() >= self.segments.len(),
            false => !other.rest && other.segments.len() == self.segments.len(),
        };
        is_long_enough && self.segments.iter().zip(&other.segments).all(is_wider)
    }
}

/// What a path may mean to a server: escapes are decoded and repeated slashes are one. The first reading leaves an
/// escaped slash in its segment, the second takes it, and a backslash, for a separator.
pub(crate) fn readings(path: &str) -> [Cow<'_, str>; 2] {
    if !path.contains(['%', '\\']) && !path.contains("//") {
        return [Cow::Borrowed(path), Cow::Borrowed(path)];
    }
    [Cow::Owned(decode(path, false)), Cow::Owned(decode(path, true))]
}

/// Whether a path has a segment `.` or `..` in one of its readings.
pub(crate) fn has_dot_segments(path: &str) -> bool {
    let [_, split] = readings(path); // every segment of the other reading that is all dots is one here too
    split.split('/').any(|it| it == "." || it == "..")
}

fn decode(path: &str, splits: bool) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path.chars();
    while let Some(character) = rest.next() {
        let is_hex = |it: &&str| it.bytes().all(|it| it.is_ascii_hexdigit());
        let escape = rest.as_str().get(..2).filter(|_| character == '%').filter(is_hex);
        let escaped = escape.and_then(|it| u8::from_str_radix(it, 16).ok()).filter(u8::is_ascii);
        let meant = match escaped.map(char::from) {
            Some('/' | '\\') if !splits => character, // stays as it is written
            Some(it) => {
                rest = rest.as_str()[2..].chars();
                it
            }
            None => character,
        };
        let meant = if splits && meant == '\\' { '/' } else { meant };
        if meant != '/' || !decoded.ends_with('/') {
            decoded.push(meant);
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_as_servers_read_it() {
        let check = |path: &str, kept: &str, split: &str| assert_eq!(readings(path), [kept, split], "{path}");
        check("/a/b", "/a/b", "/a/b");
        check("/%61pi/%7Ex", "/api/~x", "/api/~x");
        check("//api///x/", "/api/x/", "/api/x/");
        check("/a%2Fb", "/a%2Fb", "/a/b");
        check("/a%5cb\\c", "/a%5cb\\c", "/a/b/c");
        check("/a%2f%2fb", "/a%2f%2fb", "/a/b");
        check("/%2561", "/%61", "/%61"); // once
        check("/%", "/%", "/%");
        check("/%f", "/%f", "/%f");
        check("/%zz%+1", "/%zz%+1", "/%zz%+1");
        check("/é%C3%A9", "/é%C3%A9", "/é%C3%A9");
        for dots in
            ["/..", "/a/./b", "/%2e%2E/x", "/a/.%2e", "/a%2f..%2fb", "/a\\..\\b", "/a%5c%2e%2e", "/.."]
        {
            assert!(has_dot_segments(dots), "{dots}");
        }
        for fine in ["/", "/...", "/a..b", "/.well-known/x", "/a%2e", "/%2e%2ea"] {
            assert!(!has_dot_segments(fine), "{fine}");
        }
    }

    #[test]
    fn a_pattern_covers_those_with_fewer_paths() {
        let check = |wide: &str, narrow: &str, expected: bool| {
            let [wide_, narrow_] = [wide, narrow].map(|it| Pattern::parse(it).expect(it));
            assert_eq!(wide_.covers(&narrow_), expected, "{wide} {narrow}");
        };
        for same in ["/", "/**", "/a", "/*/b/**"] {
            check(same, same, true);
        }
        check("/**", "/", true);
        check("/**", "/admin/**", true);
        check("/admin/**", "/**", false);
        check("/admin/**", "/admin", true);
        check("/admin", "/admin/**", false);
        check("/a/**", "/a/*/c", true);
        check("/a/b/**", "/a/**", false);
        check("/*", "/a", true);
        check("/*", "/", false); // a segment that is not empty
        check("/*/**", "/", false);
        check("/*/**", "/**", false);
        check("/a", "/*", false);
        check("/*", "/*/", false);
        check("/a", "/b", false);
    }

    #[test]
    fn a_pattern_matches_by_segments() {
        let check = |pattern: &str, path: &str, expected: bool| {
            assert_eq!(Pattern::parse(pattern).expect(pattern).matches(path), expected, "{pattern} {path}");
        };
        check("/**", "/", true);
        check("/**", "/a/b", true);
        check("/**", "*", true); // OPTIONS *
        check("/sign_in", "/sign_in", true);
        check("/sign_in", "/sign_in/", false);
        check("/*/sign_in", "/tenant/sign_in", true);
        check("/*/sign_in", "//sign_in", false);
        check("/*/sign_in", "/a/b/sign_in", false);
        check("/api/**", "/api", true); // the rest may be nothing: what guards `/api/…` guards `/api` too
        check("/api/**", "/api/", true);
        check("/api/**", "/apis/x", false);
        for wrong in ["sign_in", "/a*", "/**/b"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}
