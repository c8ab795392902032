//! The `pinless` command: arguments in, a picture out.
//!
//! The only crate that knows arguments, colours and exit codes. Each command measures first and
//! makes a report; rendering it comes after.
#![forbid(unsafe_code)]

mod args;
mod cmd;
mod exit;
mod render;

use args::{Cli, Command};
use clap::Parser;
use exit::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::of_arguments(&error).into(),
    };
    exit::silence_panics();
    let outcome = std::panic::catch_unwind(|| match cli.command {
        Command::Run(args) => cmd::run::main(&args),
        Command::Conform(args) => cmd::conform::main(&args),
        Command::Teardown(args) => cmd::teardown::main(&args),
        Command::Torture(args) => cmd::torture::main(&args),
        Command::TeardownPress => cmd::teardown::press::main(),
    });
    outcome.unwrap_or_else(|_| exit::of_panic()).into()
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(u8::from(exit))
    }
}
