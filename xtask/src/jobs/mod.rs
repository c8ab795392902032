//! Long jobs on real memory, started by hand: `cargo xtask soak`, `cargo xtask huge`.

mod contents;
mod figures;
pub(crate) mod huge;
pub(crate) mod soak;

use std::fmt::Display;
use std::process::ExitCode;

/// Why a job ended before its end, or did not hold.
#[derive(Debug)]
pub(crate) struct JobError(String);

impl JobError {
    fn of(what: &str, why: impl Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// How a job ended, for whoever called it.
fn exit(name: &str, ended: Result<(), JobError>) -> ExitCode {
    match ended {
        Ok(()) => {
            println!("{name}: everything held");
            ExitCode::SUCCESS
        }
        Err(JobError(why)) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}
