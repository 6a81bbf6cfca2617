//! `streamgate plugin test --coverage`: the lines that the specs have run.

use crate::cli::Failure;
use crate::lua::FileLines;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Tell which lines the tests have run. They run slower then.
    #[arg(long)]
    coverage: bool,
    /// Fail when a file has less of its lines run.
    #[arg(long, value_name = "PERCENT", requires = "coverage", value_parser = clap::value_parser!(u8).range(0..=100))]
    at_least: Option<u8>,
}

impl Options {
    pub(super) fn is_wanted(&self) -> bool {
        self.coverage
    }

    /// Sums up, and fails when a file has too little of it.
    pub(super) fn judge(&self, files: &[FileLines]) -> Result<(), Failure> {
        if !self.coverage {
            return Ok(());
        }
        let (covered, total) =
            (files.iter().map(FileLines::covered).sum(), files.iter().map(FileLines::total).sum());
        outln!("{covered} of {total} lines were run, {}", percent(covered, total));
        let Some(least) = self.at_least else { return Ok(()) };
        let below: Vec<String> = files
            .iter()
            .filter(|it| it.covered() * 100 < it.total() * usize::from(least))
            .map(|it| {
                format!("{}: {} is less than {least} %", it.path.display(), percent(it.covered(), it.total()))
            })
            .collect();
        if below.is_empty() { Ok(()) } else { Err(Failure::new(below.join("\n"))) }
    }
}

/// A line about one file.
pub(super) fn show(file: &FileLines) {
    let (covered, total) = (file.covered(), file.total());
    let name = file.path.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    let missed: Vec<String> = file
        .missed()
        .iter()
        .map(|it| match it.start() == it.end() {
            true => it.start().to_string(),
            false => format!("{}-{}", it.start(), it.end()),
        })
        .collect();
    let missed = if missed.is_empty() { String::new() } else { format!("; missed {}", missed.join(", ")) };
    outln!("  lines {covered}/{total} of {name}, {}{missed}", percent(covered, total));
}

/// Rounded down, so that only what is whole is 100 %.
fn percent(part: usize, whole: usize) -> String {
    let tenths = (part * 1000).checked_div(whole).unwrap_or(1000);
    format!("{}.{} %", tenths / 10, tenths % 10)
}
