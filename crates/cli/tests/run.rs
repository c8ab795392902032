//! `pinless run` as a user meets it: small sizes, a few seconds, the real binary.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Small enough for a test, and large enough for everything to happen.
const SMALL: [&str; 6] = ["--limit", "8M", "--tenants", "2", "--seconds", "2"];

fn pinless() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pinless"))
}

/// The sources of the workspace: real files that are always there.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(more: &[&str]) -> Output {
    pinless()
        .arg("run")
        .arg("--input")
        .arg(sources())
        .args(SMALL)
        .args(more)
        .output()
        .expect("the binary can be started")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Says why nothing can be shown here, if so.
fn is_skipped() -> bool {
    let unavailable = pinless::Builder::new(1 << 20).build().err();
    if let Some(error) = &unavailable {
        println!("skipped: no userfaultfd: {error}");
    }
    unavailable.is_some()
}

#[track_caller]
fn number(report: &Value, path: &str) -> f64 {
    let value = report.pointer(path);
    value
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("no number at {path}: {value:?}"))
}

#[track_caller]
fn check_good(report: &Value) {
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["interrupted"], false);
    for none in ["/hash_mismatches", "/stale_dma", "/nr_failures"] {
        assert_eq!(number(report, none), 0.0, "{none}");
    }
    for some in [
        "/bytes_verified",
        "/operations",
        "/evictions",
        "/invalidations/total",
        "/faults/soft/count",
        "/faults/hard/count",
        "/faults/hard/p50_ns",
        "/faults/hard/p99_ns",
        "/rss_other_start_bytes",
        "/rss_other_end_bytes",
    ] {
        assert!(number(report, some) > 0.0, "{some}");
    }
    assert!(number(report, "/compression_ratio") > 1.0);
    assert!(number(report, "/refusals") >= 0.0);
    assert_eq!(number(report, "/limit_bytes"), f64::from(8 << 20));
    assert_eq!(number(report, "/zswap_limit_bytes"), f64::from(16 << 20));
    assert!(number(report, "/charge_peak_bytes") <= number(report, "/limit_bytes"));
    assert!(number(report, "/zswap_peak_bytes") <= number(report, "/zswap_limit_bytes"));
}

#[track_caller]
fn check_story(report: &Value) {
    let oom = &report["oom"];
    assert_eq!(oom["victim"], "tenant-1", "the last one leaks");
    assert!(oom["reason"].is_string());
    assert!(number(oom, "/freed_bytes") > 0.0);
    assert!(number(oom, "/first_page_us") > 0.0);
    let holders = oom["skipped_holders"].as_array().expect("a list");
    let is_nic = |holder: &Value| holder["holder"] == "tenant-1/nic";
    assert!(holders.iter().any(is_nic), "{holders:?}");
    let tenants = report["tenants"].as_array().expect("a list");
    assert_eq!(tenants.len(), 2);
    assert_eq!(tenants[0]["killed"], false);
    assert!(tenants[0]["memory_hash"].is_string());
    assert_eq!(tenants[0]["memory_hash"], tenants[0]["model_hash"]);
    assert_eq!(tenants[1]["killed"], true);
}

/// G1, G6, G9, G10: everything at once, and the leaking tenant is killed for it while its device
/// hangs.
#[test]
fn a_good_run_holds_and_tells_the_story_of_the_kill() {
    if is_skipped() {
        return;
    }
    let path = std::env::temp_dir().join(format!("pinless-run-{}.json", std::process::id()));
    let output = run(&["--json", path.to_str().expect("a path of letters")]);
    let written = std::fs::read_to_string(&path);
    let _ = std::fs::remove_file(&path);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&written.expect("a report")).expect("JSON");
    check_good(&report);
    check_story(&report);
    let devices = report["devices"].as_array().expect("a list");
    let is_ring = |device: &&Value| device["kind"] == "io_uring";
    let has_rings = devices.iter().filter(is_ring).count() == 2;
    let notes = report["notes"].to_string();
    assert!(has_rings || notes.contains("without io_uring"), "{notes}");
    for device in devices {
        assert!(number(device, "/operations") > 0.0, "{device}");
    }
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("everything held"), "{table}");
    assert!(table.contains("tenant-1 was killed"), "{table}");
    let is_narrow = |line: &str| line.chars().count() <= 80;
    assert!(table.lines().all(is_narrow), "{table}");
}

#[test]
fn the_run_goes_on_without_io_uring_and_says_so() {
    if is_skipped() {
        return;
    }
    let output = run(&["--no-io-uring", "--json", "-", "--fault-mode", "in-thread"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    check_good(&report);
    check_story(&report);
    assert!(report["notes"].to_string().contains("without io_uring"));
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(5));
}

/// Runs with something broken: it must be caught, and told.
#[track_caller]
fn check_injection(fault: &str, told: &[&str]) {
    if is_skipped() {
        return;
    }
    let output = run(&["--inject", fault]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{fault}: {said}");
    for words in told {
        assert!(said.contains(words), "{fault}: no `{words}` in: {said}");
    }
    assert!(said.contains("tenant-") && said.contains("page "), "{said}");
}

#[test]
fn devices_that_are_not_told_are_caught_in_stale_dma() {
    check_injection("skip-notifier", &["stale DMA on page", "device tenant-"]);
}

#[test]
fn an_end_before_the_change_is_caught() {
    check_injection("late-end", &["`end` came before the change"]);
}

#[test]
fn a_lost_store_is_caught_on_its_page() {
    // How it is seen depends on what was in the slot before: another page, or parts of some.
    check_injection("lost-store", &["the contents of page", "are lost"]);
}

#[test]
fn a_corrupt_slot_is_caught_on_its_page() {
    check_injection("corrupt-slot", &["are lost", "checksum of the stored copy"]);
}

/// One line on stderr, nothing on stdout, exit code 2.
#[track_caller]
fn check_bad_use(args: &[&str], told: &str) {
    let output = pinless().args(args).output().expect("the binary starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.contains(told), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn bad_use_is_told_in_one_line() {
    let empty = std::env::temp_dir().join(format!("pinless-empty-{}", std::process::id()));
    std::fs::create_dir_all(&empty).expect("a directory");
    let path = empty.to_str().expect("a path of letters");
    check_bad_use(&["run", "--input", path], "has no bytes to load");
    let _ = std::fs::remove_dir(&empty);
    check_bad_use(&["run", "--input", "/nowhere/at/all"], "cannot be read");
    check_bad_use(&["run", "--limit", "8K"], "too small");
    check_bad_use(&["run", "--limit", "many"], "a size is a number");
    check_bad_use(&["run", "--tenants", "1"], "--tenants");
    check_bad_use(&["run", "--inject", "hope"], "skip-notifier");
    check_bad_use(&["run", "--json", "/nowhere/at/all"], "cannot be written");
    // The file is opened before anything else is looked at.
    let unwritten = [
        "run",
        "--scenario",
        "oom",
        "--limit",
        "64K",
        "--json",
        "/nowhere/at/all",
    ];
    check_bad_use(&unwritten, "cannot be written");
    check_bad_use(&["walk"], "walk");
    check_bad_use(&[], "pinless run");
}

#[test]
fn the_help_teaches() {
    let output = pinless()
        .args(["run", "--help"])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in ["Examples:", "--inject", "Exit codes:", "memory.max"] {
        assert!(help.contains(words), "{help}");
    }
}

/// The reaper of 2018 frees nothing beside a notifier, and a bystander dies; ours frees all but
/// what the device holds.
#[test]
fn the_stories_of_two_reapers_differ() {
    if is_skipped() {
        return;
    }
    for (scenario, first) in [("oom", 0), ("oom-2018", 1)] {
        let output = pinless()
            .args([
                "run",
                "--scenario",
                scenario,
                "--limit",
                "4M",
                "--json",
                "-",
            ])
            .output()
            .expect("the binary can be started");
        assert!(output.status.success(), "{}", stderr(&output));
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let ours = &told["stories"][first];
        let then = &told["stories"][1 - first];
        assert_eq!(ours["bystander_lives"], true, "{told:#}");
        assert_eq!(then["bystander_lives"], false, "{told:#}");
        let killed = |story: &Value| story["kills"].as_array().map_or(0, Vec::len);
        assert_eq!((killed(ours), killed(then)), (1, 2), "{told:#}");
        let holder = &ours["kills"][0]["skipped_holders"][0]["holder"];
        assert_eq!(holder, "leaker/nic", "{told:#}");
        assert_eq!(number(then, "/kills/0/freed_bytes"), 0.0);
    }
    let output = pinless()
        .args(["run", "--scenario", "oom", "--limit", "64K"])
        .output()
        .expect("the binary can be started");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
