//! `pinless teardown` as a user meets it, with programs that leak, end, wait, and keep pages.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use pinless_host::memcg::Memcg;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// No verdict of these tests depends on how busy the machine is.
const PATIENT: [&str; 6] = ["--slow", "60000", "--stuck", "120", "--patience", "600"];

fn pinless() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinless"));
    command.arg("teardown");
    command
}

/// The programs to tear down, built once.
fn program(name: &str) -> PathBuf {
    static EXAMPLES: OnceLock<PathBuf> = OnceLock::new();
    let examples = EXAMPLES.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_pinless")).parent();
        let folder = folder.expect("a binary is in a folder");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--examples"]);
        build.args(["--package", "pinless-cli", "--package", "pinless-host"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let built = built.expect("cargo can be started");
        assert!(built.status.success(), "{}", stderr(&built));
        folder.join("examples")
    });
    examples.join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where `pinless` makes its groups; says why nothing can be shown here, if so.
fn groups() -> Option<PathBuf> {
    let name = format!(
        "pinless-test-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    match Memcg::create(None, &name) {
        Ok(memcg) => memcg.path().parent().map(Path::to_owned),
        Err(error) => {
            println!("skipped: no memory cgroup: {error}");
            None
        }
    }
}

/// Nothing of the run with this number is left: no group, no trace instance.
#[track_caller]
fn assert_nothing_left(groups: &Path, pid: u32) {
    let name = format!("pinless-teardown-{pid}-");
    for place in [groups, Path::new("/sys/kernel/tracing/instances")] {
        let Ok(entries) = std::fs::read_dir(place) else {
            continue;
        };
        for entry in entries.flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            assert!(!found.starts_with(&name), "{found} is left");
        }
    }
}

/// Runs it with `--json -`, checks that it cleaned up, and gives the report.
#[track_caller]
fn report(code: i32, options: &[&str], program: &[&str]) -> Option<(Value, Output)> {
    let groups = groups()?;
    let mut command = pinless();
    let patient = PATIENT.chunks(2);
    command
        .args(patient.filter(|pair| !options.contains(&pair[0])).flatten())
        .args(options)
        .args(["--json", "-", "--"]);
    let child = command
        .args(program)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let child = child.expect("the binary can be started");
    let pid = child.id();
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    assert_nothing_left(&groups, pid);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["exit_code"], code, "{report:#}");
    Some((report, output))
}

#[track_caller]
fn check_clean(report: &Value, name: &str) {
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["verdict"], "clean");
    let round = &report["rounds"][0];
    assert_eq!(round["exit"], "signal 9");
    let victims = round["victims"].as_array().expect("a list");
    assert_eq!(victims.len(), 1, "{victims:?}");
    assert_eq!(victims[0]["name"], name);
    assert_eq!(victims[0]["largest"], true);
    assert!(round["usage_at_kill_bytes"].as_u64() > Some(0), "{round:#}");
    // By polling alone, the kill and what came of it may be seen in one look.
    let is_late = round["traced"] == true;
    for some in ["kill_to_exit_us", "kill_to_back_us"] {
        let took_us = round[some].as_u64();
        assert!(took_us >= Some(u64::from(is_late)), "{some}: {round:#}");
    }
    let timeline = round["timeline"].as_array().expect("a list");
    assert_eq!(timeline[0]["what"], "program started");
    assert!(timeline.iter().any(|step| step["what"] == "memory back"));
}

#[test]
fn a_leaking_program_is_torn_down_cleanly() {
    let leaker = program("leaker");
    let Some((report, _)) = report(0, &["--limit", "32M"], &[text(&leaker)]) else {
        return;
    };
    check_clean(&report, "leaker");
    assert_eq!(report["limit_bytes"], 32 << 20);
    let peak = report["rounds"][0]["peak_bytes"].as_u64();
    assert!(peak.is_some_and(|peak| peak <= 32 << 20), "{peak:?}");
}

/// What is below the limit when it is set must grow into it, or be pushed.
#[test]
fn the_limit_can_come_after_the_memory() {
    let leaker = program("leaker");
    for when in ["rss-stable", "ready-fd"] {
        let options = ["--limit", "8M", "--limit-when", when];
        let Some((report, _)) = report(0, &options, &[text(&leaker), "24"]) else {
            return;
        };
        check_clean(&report, "leaker");
        let usage = report["rounds"][0]["usage_at_kill_bytes"].as_u64();
        assert!(
            usage.is_some_and(|usage| usage > 24 << 20),
            "{when}: {usage:?}"
        );
        if report["cgroup"] == "v1" {
            let notes = report["notes"].to_string();
            assert!(notes.contains("takes no limit below"), "{notes}");
        }
    }
}

#[test]
fn rounds_are_summed_up() {
    let leaker = program("leaker");
    let options = ["--limit", "8M", "--repeat", "3"];
    let Some((report, _)) = report(0, &options, &[text(&leaker)]) else {
        return;
    };
    assert_eq!(report["rounds"].as_array().map(Vec::len), Some(3));
    let spread = &report["kill_to_back"];
    let [min, median, max] = ["min", "median", "max"].map(|key| spread[key].as_u64());
    assert!(min.is_some() && min <= median && median <= max, "{spread}");
}

/// The kernel's own MMU notifiers, those of KVM: the guest's memory goes without anybody waiting.
#[test]
fn a_kvm_guest_is_torn_down_cleanly() {
    if !has_kvm() {
        return;
    }
    let guest = program("kvm_guest");
    let Some((report, _)) = report(0, &["--limit", "64M"], &[text(&guest), "128"]) else {
        return;
    };
    check_clean(&report, "kvm_guest");
    let round = &report["rounds"][0];
    assert!(round["devices"].to_string().contains("kvm-vm"), "{round:#}");
    match round["mmu_notifiers"]["kvm_unmap_hva_range"].as_u64() {
        Some(nr) => println!("{nr} kvm_unmap_hva_range events"),
        None => println!("skipped: no trace events: {}", report["notes"]),
    }
}

/// With the address space held, the reaper does it, and asks KVM's notifier without blocking.
#[test]
fn the_reaper_frees_a_kvm_guest_that_is_held() {
    if !has_kvm() {
        return;
    }
    if !has_kernel_faults() {
        return;
    }
    let guest = program("kvm_guest");
    let options = ["--limit", "64M", "--hold"];
    let Some((report, _)) = report(0, &options, &[text(&guest), "128"]) else {
        return;
    };
    check_clean(&report, "kvm_guest");
    let round = &report["rounds"][0];
    let freed = round["reaper"]["freed_bytes"].as_u64();
    assert!(freed.is_some_and(|freed| freed > 48 << 20), "{round:#}");
    if round["traced"] == true {
        let told = &round["mmu_notifiers"]["kvm_unmap_hva_range_by_reaper"];
        assert!(told.as_u64().is_some_and(|nr| nr > 0), "{round:#}");
        assert_eq!(round["reaper"]["passes"], 1);
        println!("{told} kvm_unmap_hva_range events by the reaper");
    }
}

fn has_kvm() -> bool {
    let has = cfg!(target_arch = "x86_64") && std::fs::File::open("/dev/kvm").is_ok();
    if !has {
        println!("skipped: no /dev/kvm, or no x86-64");
    }
    has
}

/// Whether a userfaultfd stops system calls here, which `--hold` needs.
fn has_kernel_faults() -> bool {
    let can = pinless_host::probe().is_ok_and(|found| found.serves_kernel_faults());
    if !can {
        println!("skipped: no userfaultfd that stops system calls");
    }
    can
}

/// A canary: pages that somebody keeps must not pass for a clean teardown.
#[test]
fn pages_that_never_come_back_are_stuck() {
    let keeper = program("page_keeper");
    let pipe = std::env::temp_dir().join(format!("pinless-pipe-{}", std::process::id()));
    let made = Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: no mkfifo");
        return;
    }
    let holder = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe);
    let told = report(
        5,
        &["--limit", "4M", "--stuck", "5"],
        &[text(&keeper), text(&pipe)],
    );
    let _ = std::fs::remove_file(&pipe);
    drop(holder.expect("a pipe of ours"));
    let Some((report, output)) = told else { return };
    assert_eq!(report["verdict"], "stuck", "{report:#}");
    assert!(
        stderr(&output).contains("stay charged"),
        "{}",
        stderr(&output)
    );
}

/// A canary: nothing comes back in no time.
#[test]
fn what_takes_longer_than_allowed_is_slow() {
    let leaker = program("leaker");
    let Some((report, output)) = report(3, &["--limit", "8M", "--slow", "0"], &[text(&leaker)])
    else {
        return;
    };
    assert_eq!(report["verdict"], "slow", "{report:#}");
    assert!(
        stderr(&output).contains("memory took"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_table_fits_a_terminal() {
    if groups().is_none() {
        return;
    }
    let leaker = program("leaker");
    let output = pinless()
        .args(PATIENT)
        .args(["--limit", "8M", "--", text(&leaker)])
        .output()
        .expect("the binary can be started");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = String::from_utf8_lossy(&output.stdout);
    for part in [
        "limit hit",
        "killed",
        "memory back",
        "timeline",
        "verdict: clean",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[track_caller]
fn check_refused(options: &[&str], program: &[&str], words: &str) {
    let mut command = pinless();
    command.args(options);
    if !program.is_empty() {
        command.arg("--").args(program);
    }
    let output = command.output().expect("the binary can be started");
    assert_eq!(
        output.status.code(),
        Some(2),
        "{options:?} {}",
        stderr(&output)
    );
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(words), "{said}");
    assert!(output.stdout.is_empty(), "{options:?}");
}

#[test]
fn what_cannot_be_tested_is_told_in_one_line() {
    check_refused(&["--limit", "4K"], &["true"], "give --limit 1M or more");
    check_refused(&["--limit", "x"], &["true"], "a size is a number");
    check_refused(&["--repeat", "0"], &["true"], "--repeat");
    check_refused(&[], &[], "PROGRAM");
    check_refused(&["--cgroup", "/"], &["true"], "is no memory cgroup");
    check_refused(&["--json", "/no/where"], &["true"], "cannot be written");
    if groups().is_none() {
        return;
    }
    let leaker = program("leaker");
    check_refused(&[], &["/no/program"], "cannot start /no/program");
    check_refused(&[], &["true"], "ended by itself (exit status 0)");
    if has_kernel_faults() {
        check_refused(&["--hold"], &["true"], "ended by itself (exit status 0)");
    }
    check_refused(&[], &[text(&leaker), "8", "end"], "give a lower --limit");
    let short = ["--patience", "1"];
    check_refused(&short, &[text(&leaker), "8"], "never hit the limit");
    let ready = ["--patience", "1", "--limit-when", "ready-fd"];
    check_refused(&ready, &["sleep", "60"], "PINLESS_READY_FD");
}

/// A test that goes on for ever, and its program, which runs.
struct Endless {
    test: std::process::Child,
    program: u32,
}

impl Endless {
    fn start() -> Self {
        let leaker = program("leaker");
        let test = pinless()
            .args(["--patience", "600", "--", text(&leaker), "8"])
            .spawn()
            .expect("the binary can be started");
        let program = program_of(test.id());
        Self { test, program }
    }

    /// Sends a signal to the test, and gives the code that it ends with.
    fn end(&mut self, name: &str) -> Option<i32> {
        signal(name, self.test.id());
        self.test.wait().expect("it ends").code()
    }
}

/// The program of a test, once it runs.
fn program_of(test: u32) -> u32 {
    let children = format!("/proc/{test}/task/{test}/children");
    loop {
        let pids = std::fs::read_to_string(&children).expect("the test goes on");
        let mut pids = pids.split_whitespace().filter_map(|pid| pid.parse().ok());
        if let Some(pid) = pids.find(|&pid| is_running(pid)) {
            return pid;
        }
        std::thread::yield_now();
    }
}

fn signal(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "kill {signal} {pid}"
    );
}

fn is_running(pid: u32) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|name| name.trim() == "leaker")
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let Some(groups) = groups() else { return };
    for name in ["-INT", "-TERM", "-HUP"] {
        let mut endless = Endless::start();
        assert_eq!(endless.end(name), Some(130), "{name}");
        assert_nothing_left(&groups, endless.test.id());
        assert!(!is_running(endless.program), "{name}");
    }
}

/// Killed without warning it cannot clean up: the program dies with it, and the next test does
/// the rest.
#[test]
fn killed_it_takes_the_program_along() {
    let Some(groups) = groups() else { return };
    let mut endless = Endless::start();
    assert_eq!(endless.end("-KILL"), None, "a signal is no exit code");
    while is_running(endless.program) {
        std::thread::yield_now();
    }
    let leaker = program("leaker");
    let next = pinless()
        .args(PATIENT)
        .args(["--limit", "8M", "--", text(&leaker)])
        .output()
        .expect("the binary can be started");
    assert_eq!(next.status.code(), Some(0), "{}", stderr(&next));
    assert_nothing_left(&groups, endless.test.id());
}

/// What is left without trace events: the victim, its end, its memory, and a sentence that says
/// what is missing.
#[track_caller]
fn check_untraced(report: &Value) {
    let round = &report["rounds"][0];
    assert_eq!(round["traced"], false);
    assert_eq!(round["mmu_notifiers"]["kvm_unmap_hva_range"], Value::Null);
    let notes = report["notes"].to_string();
    assert!(notes.contains("without trace events ("), "{notes}");
    assert!(notes.contains("the reaper is not seen"), "{notes}");
}

/// Root on a machine without tracefs: in a mount namespace of its own, something else lies over it.
#[test]
fn without_tracefs_it_tells_less_and_says_so() {
    if groups().is_none() {
        return;
    }
    let hide = "for dir in /sys/kernel/tracing /sys/kernel/debug; do \
                [ ! -d $dir ] || mount -t tmpfs none $dir || exit 77; done; exec \"$@\"";
    let leaker = program("leaker");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", hide, "sh"])
        .args([env!("CARGO_BIN_EXE_pinless"), "teardown"])
        .args(PATIENT)
        .args(["--limit", "8M", "--json", "-", "--", text(&leaker)])
        .output();
    let Ok(output) = output else {
        println!("skipped: no unshare");
        return;
    };
    if output.status.code() == Some(77) || stderr(&output).starts_with("unshare: ") {
        println!("skipped: no mount namespace: {}", stderr(&output));
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    check_clean(&report, "leaker");
    check_untraced(&report);
}

/// In a group that was handed to another user, that user needs nothing else.
#[test]
fn who_owns_a_group_needs_no_root() {
    let Some(groups) = groups() else { return };
    let group = groups.join(format!("pinless-delegated-{}", std::process::id()));
    if std::fs::create_dir(&group).is_err() {
        println!("skipped: no group can be made in {}", groups.display());
        return;
    }
    let leaker = program("leaker");
    let output = as_nobody(&group, &leaker);
    let removed = std::fs::remove_dir(&group);
    let Some(output) = output else { return };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    check_clean(&report, "leaker");
    // Tracing is root's.
    check_untraced(&report);
    removed.expect("nothing is left in it");
}

fn as_nobody(group: &Path, leaker: &Path) -> Option<Output> {
    let owned = Command::new("chown")
        .args(["-R", "nobody"])
        .arg(group)
        .status();
    if !owned.is_ok_and(|status| status.success()) {
        println!("skipped: no right to hand a group to another user");
        return None;
    }
    let user = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"];
    let may = |path: &str| {
        let run = Command::new("setpriv")
            .args(user)
            .args(["test", "-x", path])
            .status();
        run.is_ok_and(|status| status.success())
    };
    if !may(env!("CARGO_BIN_EXE_pinless")) || !may(text(leaker)) {
        println!("skipped: no setpriv, or the programs are not for everybody");
        return None;
    }
    let output = Command::new("setpriv")
        .args(user)
        .args([env!("CARGO_BIN_EXE_pinless"), "teardown"])
        .args(PATIENT)
        .args(["--limit", "8M", "--json", "-", "--cgroup"])
        .args([text(group), "--", text(leaker)])
        .output();
    Some(output.expect("setpriv can be started"))
}
