//! What the environment says is to happen on a report, and which are not to be told, each case in a
//! process of its own.

use std::process::{Command, ExitStatus};

use lockdep::event::{self, Acquire};
use lockdep::{Attributes, DynamicClass, Mode, prime};

const VARIABLE: &str = "LOCKDEP_TEST_SCENARIO";
const TEST: &str = "policy::the_environment_says_what_a_report_does";

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Well,
    Panic,
    Abort,
}

impl End {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Well,
            Some(_) => Self::Panic,
            None => Self::Abort,
        }
    }
}

/// Two classes in both orders, with a third around them or one order only declared.
fn scenario(name: &str) {
    let [gate, a, b] = ["gate", "a", "b"].map(|name| DynamicClass::new(name, Attributes::SLEEP));
    let both = |first: &DynamicClass, second: &DynamicClass| {
        event::acquire(&Acquire::new(first.id(), 1, Mode::Exclusive));
        event::acquire(&Acquire::new(second.id(), 2, Mode::Exclusive));
        event::release(2);
        event::release(1);
    };
    match name {
        "unlikely" => {
            event::acquire(&Acquire::new(gate.id(), 3, Mode::Exclusive));
            both(&a, &b);
            both(&b, &a);
            event::release(3);
        }
        "warning" => {
            prime::order((b.id(), Mode::Exclusive), (a.id(), Mode::Exclusive));
            both(&a, &b);
        }
        "error" => {
            both(&a, &b);
            both(&b, &a);
        }
        _ => both(&a, &b),
    }
}

/// Runs a scenario under a setting, with a file of suppressions; how it ended, and whether anything
/// was printed.
fn run(setting: &str, suppressions: &str, name: &str) -> (End, bool) {
    let program = std::env::current_exe().expect("a test knows its program");
    let output = Command::new(program)
        .args(["--exact", TEST])
        .env("LOCKDEP", setting)
        .env("LOCKDEP_SUPPRESSIONS", suppressions)
        .env(VARIABLE, name)
        .output()
        .expect("a test starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (End::of(output.status), said.contains("lockdep: "))
}

#[test]
fn the_environment_says_what_a_report_does() {
    if cfg!(miri) {
        return;
    }
    if let Ok(name) = std::env::var(VARIABLE) {
        scenario(&name);
        return;
    }
    const QUIET: (End, bool) = (End::Well, false);
    const PRINTS: (End, bool) = (End::Well, true);
    const ABORTS: (End, bool) = (End::Abort, true);
    let rows = [
        // The setting, and what follows from: nothing, unlikely, warning, error.
        ("off", [QUIET, QUIET, QUIET, QUIET]),
        ("print", [QUIET, QUIET, PRINTS, PRINTS]),
        ("once", [QUIET, QUIET, PRINTS, PRINTS]),
        ("panic", [QUIET, QUIET, PRINTS, (End::Panic, false)]),
        ("abort", [QUIET, QUIET, PRINTS, ABORTS]),
        ("strict", [QUIET, QUIET, ABORTS, ABORTS]),
    ];
    for (setting, expected) in rows {
        for (name, expected) in ["nothing", "unlikely", "warning", "error"]
            .into_iter()
            .zip(expected)
        {
            let (end, prints) = run(setting, "no such file", name);
            assert_eq!(end, expected.0, "{setting}, {name}");
            // Of one that panics, the harness prints, too.
            assert!(
                end == End::Panic || prints == expected.1,
                "{setting}, {name}"
            );
        }
    }
}

#[test]
fn a_file_says_what_is_not_to_be_told() {
    if cfg!(miri) {
        return;
    }
    const CIRCLE: &str = "circular: a(W)>b(W) b(W)>a(W)";
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/lockdep_suppressions");
    for (list, expected) in [
        (CIRCLE.to_owned(), (End::Well, false)),
        (format!("# a comment\n\n{CIRCLE}\n"), (End::Well, false)),
        (format!("# {CIRCLE}"), (End::Abort, true)),
        (CIRCLE.replace('b', "c"), (End::Abort, true)),
    ] {
        std::fs::write(file, &list).expect("tests may write there");
        assert_eq!(run("abort", file, "error"), expected, "{list}");
    }
}
