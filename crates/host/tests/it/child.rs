//! Scenarios that end the process, or change it for good, run in a process of their own: this
//! program again, with the one test that asks for it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};

const VARIABLE: &str = "PINLESS_HOST_SCENARIO";

/// Runs `scenario` in a process of its own, and tells how it ended. `test` is the full name of
/// the test that calls this.
pub(crate) fn run(test: &str, name: &str, scenario: impl FnOnce()) -> Output {
    play(name, scenario);
    command(test, name).output().unwrap()
}

/// Runs `scenario` with each of `rows`, each in a process of its own that runs no other, and tells
/// how they ended.
pub(crate) fn run_each<T: std::fmt::Debug>(
    test: &str,
    rows: &[T],
    scenario: impl Fn(&T),
) -> Vec<Output> {
    let name = |row: &T| format!("{row:?}");
    // All before any is started: else a process would start those of the rows before its own.
    rows.iter()
        .for_each(|row| play(&name(row), || scenario(row)));
    let outputs = rows.iter().map(|row| command(test, &name(row)).output());
    outputs.map(Result::unwrap).collect()
}

/// Starts `scenario` in a process of its own, whose standard input is `input`.
pub(crate) fn start(
    test: &str,
    name: &str,
    input: impl Into<Stdio>,
    scenario: impl FnOnce(),
) -> Child {
    play(name, scenario);
    command(test, name).stdin(input).spawn().unwrap()
}

/// In the process that was started for it, this is where the scenario runs.
fn play(name: &str, scenario: impl FnOnce()) {
    if std::env::var(VARIABLE).is_ok_and(|wanted| wanted == name) {
        scenario();
        std::process::exit(0);
    }
}

fn command(test: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name);
    command
}

/// The scenario ended by itself, without a complaint.
#[track_caller]
pub(crate) fn assert_ended_well(output: &Output) {
    assert!(output.status.success(), "{}", described(output));
}

/// A signal ended the scenario.
#[track_caller]
pub(crate) fn assert_killed_by(output: &Output, signal: i32) {
    let found = output.status.signal();
    assert_eq!(found, Some(signal), "{}", described(output));
}

/// What the scenario said on its standard error.
pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn described(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout);
    format!("{}\n{said}\n{}", output.status, words(output))
}
