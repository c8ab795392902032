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
    let [gate, a, b, c] =
        ["gate", "a", "b", "c"].map(|name| DynamicClass::new(name, Attributes::SLEEP));
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
        "errors" => {
            both(&a, &b);
            both(&b, &a);
            both(&b, &c);
            both(&c, &b);
        }
        _ => both(&a, &b),
    }
}

/// Runs a scenario with these variables; how it ended, and what was printed.
fn run(variables: &[(&str, &str)], name: &str) -> (End, String) {
    let program = std::env::current_exe().expect("a test knows its program");
    let output = Command::new(program)
        .args(["--exact", TEST])
        .env("LOCKDEP_SUPPRESSIONS", "no such file")
        .envs(variables.iter().copied())
        .env(VARIABLE, name)
        .output()
        .expect("a test starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (End::of(output.status), said)
}

/// How many circles were printed as text.
fn nr_printed(said: &str) -> usize {
    said.matches("\n  signature: circular").count()
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
    const QUIET: (End, usize) = (End::Well, 0);
    const ONCE: (End, usize) = (End::Well, 1);
    const TWICE: (End, usize) = (End::Well, 2);
    const PANICS: (End, usize) = (End::Panic, 1);
    const ABORTS: (End, usize) = (End::Abort, 1);
    let rows = [
        // The setting, and what follows from: nothing, unlikely, warning, error, two errors.
        ("off", [QUIET; 5]),
        ("print", [QUIET, QUIET, ONCE, ONCE, TWICE]),
        ("once", [QUIET, QUIET, ONCE, ONCE, ONCE]),
        ("panic", [QUIET, QUIET, ONCE, PANICS, PANICS]),
        ("abort", [QUIET, QUIET, ONCE, ABORTS, ABORTS]),
        ("strict", [QUIET, QUIET, ABORTS, ABORTS, ABORTS]),
    ];
    for (setting, expected) in rows {
        let names = ["nothing", "unlikely", "warning", "error", "errors"];
        for (name, expected) in names.into_iter().zip(expected) {
            let (end, said) = run(&[("LOCKDEP", setting)], name);
            assert_eq!((end, nr_printed(&said)), expected, "{setting}, {name}");
        }
    }
}

#[test]
fn reports_are_printed_as_json_one_a_line() {
    if cfg!(miri) {
        return;
    }
    let variables = [("LOCKDEP", "print"), ("LOCKDEP_FORMAT", "json")];
    let (end, said) = run(&variables, "errors");
    let reports: Vec<serde_json::Value> = said
        .lines()
        .filter(|line| line.contains("lockdep") || line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("a line is an object"))
        .collect();
    let signatures: Vec<&str> = reports
        .iter()
        .filter_map(|report| report["signature"].as_str())
        .collect();
    let expected = [
        "circular: a(W)>b(W) b(W)>a(W)",
        "circular: b(W)>c(W) c(W)>b(W)",
    ];
    assert_eq!((end, &signatures[..]), (End::Well, &expected[..]), "{said}");
}

#[test]
fn a_file_says_what_is_not_to_be_told() {
    if cfg!(miri) {
        return;
    }
    const CIRCLE: &str = "circular: a(W)>b(W) b(W)>a(W)";
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/lockdep_suppressions");
    let variables = [("LOCKDEP", "abort"), ("LOCKDEP_SUPPRESSIONS", file)];
    for (list, expected) in [
        (CIRCLE.to_owned(), (End::Well, 0)),
        (format!("# a comment\n\n{CIRCLE}\n"), (End::Well, 0)),
        (format!("# {CIRCLE}"), (End::Abort, 1)),
        (CIRCLE.replace('b', "c"), (End::Abort, 1)),
    ] {
        std::fs::write(file, &list).expect("tests may write there");
        let (end, said) = run(&variables, "error");
        assert_eq!((end, nr_printed(&said)), expected, "{list}");
    }
}
