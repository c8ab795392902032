//! `pinless torture` as a user meets it: a few seconds of the real binary.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Says why nothing can be shown here, if so.
fn is_skipped() -> bool {
    let unavailable = pinless::Builder::new(1 << 20).build().err();
    if let Some(error) = &unavailable {
        println!("skipped: no userfaultfd: {error}");
    }
    unavailable.is_some()
}

fn torture(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pinless"))
        .arg("torture")
        .arg("--input")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(args)
        .output()
        .expect("the binary can be started")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// G1, G6, G7, G9, G10, G11 under everything at once.
#[test]
fn torture_holds_and_says_what_was_done() {
    if is_skipped() {
        return;
    }
    // A busy machine may need longer until everything has happened.
    let done = ["2", "10", "60"].iter().any(|seconds| torture_for(seconds));
    assert!(done, "not everything has happened in a minute");
}

/// Tortures for so long; whether everything has happened that is to happen.
#[track_caller]
fn torture_for(seconds: &str) -> bool {
    let output = torture(&["--seed", "7", "--seconds", seconds, "--json", "-"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let first = format!("seed 7: pinless torture --seed 7 --seconds {seconds}");
    assert!(said.starts_with(&first), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(
        (&report["ok"], &report["seed"]),
        (&Value::from(true), &Value::from(7))
    );
    let did = |what: &str| report["did"][what].as_u64().expect("a number");
    let verified = report["bytes_verified"].as_u64().expect("a number");
    let evictions = report["evictions"].as_u64().expect("a number");
    ["uses", "dma_transfers", "bounds_changed"]
        .map(did)
        .iter()
        .all(|&nr| nr > 0)
        && did("lives") + did("lives_cut_short") > 0
        && verified > 0
        && evictions > 0
}

/// Tortures what is broken: it must be caught, and the command that does it again be told.
#[track_caller]
fn check_injection(fault: &str, told: &[&str]) {
    if is_skipped() {
        return;
    }
    let output = torture(&["--seed", "5", "--seconds", "60", "--inject", fault]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{fault}: {said}");
    assert!(
        told.iter().any(|words| said.contains(words)),
        "{fault}: {said}"
    );
    let again = format!("again: pinless torture --seed 5 --seconds 60 --inject {fault}");
    assert!(said.contains(&again), "{fault}: {said}");
}

#[test]
fn what_is_broken_is_caught_and_can_be_seen_again() {
    check_injection(
        "skip-notifier",
        &["stale DMA on page", "no device was told"],
    );
    check_injection(
        "late-end",
        &["stale DMA on page", "`end` came before the change"],
    );
    // How it is seen depends on what was in the slot before: another page, or parts of some.
    let told = ["a store was lost", "checksum of the stored copy"];
    check_injection("lost-store", &told);
    check_injection("corrupt-slot", &["checksum of the stored copy"]);
}
