//! `cargo xtask miri`: tests in Miri, which finds undefined behaviour, data races and leaks.
//!
//! It needs a nightly compiler with the component `miri`, and takes some hundred times as long as
//! the tests do: tests that try many of something try a few under it. Tests that allocate by other
//! means, start processes or call C are left out.

use crate::ci::{Step, run_all};
use std::process::ExitCode;

/// Files, clocks and variables of the environment are real.
const FLAGS: (&str, &str) = ("MIRIFLAGS", "-Zmiri-disable-isolation");

const STEPS: &[Step] = &[
    Step {
        title: "lock validator: parts",
        cargo: &["+nightly", "miri", "test", "-p", "lockdep", "--lib"],
        env: &[FLAGS],
    },
    Step {
        title: "lock validator: threads that make and free classes",
        cargo: &[
            "+nightly", "miri", "test", "-p", "lockdep", "--test", "stress",
        ],
        env: &[FLAGS],
    },
    Step {
        title: "lock validator: rules, locks and waits",
        cargo: &["+nightly", "miri", "test", "-p", "lockdep", "--test", "it"],
        env: &[FLAGS],
    },
    Step {
        title: "memory manager: parts",
        cargo: &["+nightly", "miri", "test", "-p", "pinless-mm", "--lib"],
        env: &[FLAGS],
    },
];

/// Runs all of it, and says how long each part took.
pub(crate) fn run() -> ExitCode {
    run_all(STEPS)
}
