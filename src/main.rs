//! The streamgate binary: parse the command line, run it, exit with a meaningful code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use streamgate::allocations::Counting;
use streamgate::cli::Cli;

#[global_allocator]
static ALLOCATOR: Counting<mimalloc::MiMalloc> = Counting(mimalloc::MiMalloc);

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            drop(writeln!(std::io::stderr(), "{failure}")); // the exit code is told in any case
            failure.exit_code()
        }
    }
}
