//! Automation of the workspace: `cargo xtask tidy`, `cargo xtask ci`, `cargo xtask bench NAME`,
//! `cargo xtask api`, `cargo xtask miri`, `cargo xtask vm-test`, `cargo xtask soak`,
//! `cargo xtask huge`.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool that talks to people"
)]

mod api;
mod bench;
mod ci;
mod jobs;
mod miri;
mod tidy;
mod vm_test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Automation of the Pinless workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run what continuous integration runs: format, lints, documentation, tests.
    Ci,
    /// Check the sources and the crate edges against the house rules.
    Tidy,
    /// Check that everything that the interface of `pinless` speaks of has a name there.
    Api,
    /// Run tests in Miri; needs a nightly compiler with it.
    Miri,
    /// Measure, beside the peer where there is one.
    Bench(bench::Args),
    /// Test `pinless teardown` on a kernel with cgroup v2, in a virtual machine.
    VmTest(vm_test::Args),
    /// Use all backends and stores for long, under changing bounds: nothing is lost, nothing grows.
    Soak(jobs::soak::Args),
    /// Manage many gigabytes under a limit of few.
    Huge(jobs::huge::Args),
    #[command(hide = true)]
    BenchPart(bench::Part),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Api => api::run(),
        Command::Miri => miri::run(),
        Command::Bench(args) => bench::run(&args),
        Command::VmTest(args) => vm_test::run(&args),
        Command::Soak(args) => jobs::soak::run(&args),
        Command::Huge(args) => jobs::huge::run(&args),
        Command::BenchPart(part) => bench::play(&part),
    }
}
