//! A mistake in what an operator wrote: where it stands, what was expected, what to write instead.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A position in a file; lines and columns count from 1.
    File {
        /// The file, as it was named.
        path: Arc<PathBuf>,
        /// Line, 0 when only the file is meant.
        line: usize,
        /// Column in characters, 0 when only the line is meant.
        column: usize,
    },
    /// An environment variable.
    Env(Arc<str>),
    /// A flag of the command line.
    Flag(Arc<str>),
    /// Nowhere: the value is missing.
    Missing,
    /// No place in particular, such as that of a port that another process has.
    Nowhere,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the mistake stands.
    pub place: Place,
    /// What it is about: a key, with its value when the value may be shown.
    pub subject: String,
    /// What is wrong, what was expected, what to write instead.
    pub message: String,
}

/// All mistakes that were found; never empty as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Place {
    /// A position in `path` given as a byte offset into its `text`.
    pub fn at(path: &Arc<PathBuf>, text: &str, offset: usize) -> Self {
        let before = &text[..offset.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before[before.rfind('\n').map_or(0, |it| it + 1)..].chars().count() + 1;
        Place::File { path: Arc::clone(path), line, column }
    }

    /// A whole file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Place::File { path: Arc::new(path.into()), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Place::File { path, line, column: 0 } => write!(f, "{}:{line}", path.display()),
            Place::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Place::Env(name) => f.write_str(name),
            Place::Flag(name) => f.write_str(name),
            Place::Missing => f.write_str("missing"),
            Place::Nowhere => f.write_str("problem"),
        }
    }
}

impl Problem {
    /// A mistake at `place` about `subject`.
    pub fn new(place: Place, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { place, subject: subject.into(), message: message.into() }
    }
}

impl Problems {
    /// No mistake yet.
    pub fn new() -> Self {
        Problems::default()
    }

    /// Notes one mistake.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Notes all mistakes of another list.
    pub fn extend(&mut self, others: Problems) {
        self.0.extend(others.0);
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mistakes, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// `Ok` when nothing was found.
    pub fn into_result(self) -> Result<(), Problems> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems(vec![problem])
    }
}

impl Problems {
    /// Two lines a mistake, the second one indented to the subject. The mistakes of a file stand in the order of its lines;
    /// what is missing comes last.
    pub(crate) fn told(&self) -> String {
        let mut problems: Vec<&Problem> = self.0.iter().collect();
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        let places: Vec<String> = problems.iter().map(|it| it.place.to_string()).collect();
        let width = places.iter().map(|it| it.chars().count()).max().unwrap_or(0) + 3;
        let mut told = String::new();
        for (problem, place) in problems.iter().zip(&places) {
            told += &format!("{place:<width$}{}\n", problem.subject);
            for line in problem.message.lines() {
                told += &format!("{:<width$}{line}\n", "");
            }
        }
        told
    }

    /// All mistakes of a reload, and what became of it.
    pub(crate) fn at_reload(&self) -> String {
        format!("{}{}, the configuration stays as it was", self.told(), self.counted())
    }

    /// How many there are, in words.
    pub(crate) fn counted(&self) -> String {
        let n = self.0.len();
        format!("{n} problem{}", if n == 1 { "" } else { "s" })
    }
}

impl fmt::Display for Problems {
    /// All mistakes, and what became of it: whoever is told was about to start something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}, nothing was started", self.told(), self.counted())
    }
}

impl std::error::Error for Problems {}

/// The name that somebody may have meant who wrote another one.
pub(crate) fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let all = known.map(|it| (distance(written, it), it));
    all.min_by_key(|(far, _)| *far).filter(|(far, _)| *far <= written.len().div_ceil(3)).map(|(_, it)| it)
}

/// The same as a part of a sentence, which begins with a space; what follows begins it where no name is near.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl Iterator<Item = &'a str>, then: &str) -> String {
    let Some(it) = nearest(written, known) else { return format!(" {then}") };
    let (first, rest) = then.split_at(then.chars().next().map_or(0, char::len_utf8));
    format!(" did you mean `{it}`? {}{rest}", first.to_uppercase())
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
