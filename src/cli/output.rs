//! What commands print. `println!` panics when nobody reads; a reader that has enough is no fault.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

macro_rules! out {
    ($($arg:tt)*) => { crate::cli::output::to_stdout(format_args!($($arg)*)) };
}

macro_rules! outln {
    () => { out!("\n") };
    ($($arg:tt)*) => { out!("{}\n", format_args!($($arg)*)) };
}

macro_rules! err {
    ($($arg:tt)*) => { crate::cli::output::to_stderr(format_args!($($arg)*)) };
}

/// Prints. Where nobody reads any more the command goes on to its end, for its exit code is a part of the answer; output
/// that is lost in another way, to a full disk, ends it.
pub(super) fn to_stdout(text: Arguments<'_>) {
    let mut stdout = std::io::stdout();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            to_stderr(format_args!("standard output cannot be written: {error}\n"));
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Prints on standard error, or not at all.
pub(super) fn to_stderr(text: Arguments<'_>) {
    let mut stderr = std::io::stderr();
    drop(stderr.write_fmt(text).and_then(|()| stderr.flush()));
}
