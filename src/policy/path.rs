//! Which paths a route is for.

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
