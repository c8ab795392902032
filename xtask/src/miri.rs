//! `cargo xtask miri`: tests in Miri, which finds undefined behaviour, data races and leaks.
//!
//! It needs a nightly compiler with the component `miri`, and takes some hundred times as long as
//! the tests do: tests that try many of something try a few under it (`cfg!(miri)`).

use crate::ci::{Step, run_all};
use std::process::ExitCode;

/// Files, clocks and variables of the environment are real; some locks make pointers of numbers.
const FLAGS: (&str, &str) = (
    "MIRIFLAGS",
    "-Zmiri-disable-isolation -Zmiri-permissive-provenance",
);
/// The same, and who borrows what is not followed, which takes four times as long.
const FLAGS_NO_ALIASES: (&str, &str) = (
    "MIRIFLAGS",
    "-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-disable-stacked-borrows",
);

/// The same as the first, for tests that leak their locks, so that guards of them lie in one list.
const FLAGS_LEAKS: (&str, &str) = (
    "MIRIFLAGS",
    "-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks",
);

/// The arguments of cargo that run tests of a package in Miri.
macro_rules! tests_of {
    ($($arg:literal),+) => {
        &["+nightly", "miri", "test", "-p", $($arg),+]
    };
}

/// The arguments of cargo that run unit tests of the memory manager in Miri, without what is in C.
macro_rules! parts_of_mm {
    ($($arg:literal),+) => {
        tests_of!(
            "pinless-mm",
            "--lib",
            "--no-default-features",
            "--features",
            "notifiers,validate",
            "--",
            $($arg),+
        )
    };
}

const STEPS: &[Step] = &[
    Step {
        title: "lock validator: parts",
        cargo: tests_of!("lockdep", "--lib"),
        env: &[FLAGS],
    },
    Step {
        title: "lock validator: threads, allocators",
        cargo: tests_of!(
            "lockdep",
            "--test",
            "stress",
            "--test",
            "allocator",
            "--test",
            "no_alloc"
        ),
        env: &[FLAGS],
    },
    Step {
        title: "lock validator: locks of others",
        cargo: tests_of!("lockdep", "--test", "it", "foreign::"),
        env: &[FLAGS],
    },
    Step {
        title: "lock validator: rules, locks and waits",
        cargo: tests_of!("lockdep", "--test", "it", "--", "--skip", "foreign::"),
        env: &[FLAGS_NO_ALIASES],
    },
    Step {
        title: "memory manager: what the validator is told, and what hangs on it",
        cargo: parts_of_mm!("gfp::", "published::"),
        env: &[FLAGS_LEAKS],
    },
    Step {
        title: "memory manager: parts",
        cargo: parts_of_mm!(
            "--skip",
            "gfp::",
            "--skip",
            "published::",
            "--skip",
            "swap::tests::a_slot_that_cannot_be_moved",
            "--skip",
            "swap::tests::a_store_whose_blocks",
            "--skip",
            "swap::tests::many_threads",
            "--skip",
            "swap::tests::of_a_mixed_set",
            "--skip",
            "swap::tests::what_is_moved"
        ),
        // The validator has steps of its own, and would take most of the time. A folder of its own,
        // as Miri gives tests the environment in which they were built.
        env: &[
            FLAGS,
            ("LOCKDEP", "off"),
            ("CARGO_TARGET_DIR", "target/miri-unwatched"),
        ],
    },
];

/// What is not run, or not all of it, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "lockdep: `it stack::`",
        "paints the stack through /proc/self/mem, which is that of Miri itself",
    ),
    ("lockdep: `it policy::`", "starts processes"),
    (
        "lockdep: `it readme::`",
        "prints names of threads that the operating system knows",
    ),
    (
        "lockdep: `it contention::`",
        "one kind of lock in place of five",
    ),
    (
        "lockdep: `it programs_random::` with a fault put in",
        "needs hundreds of programs to be found out",
    ),
    (
        "lockdep: `it families::`",
        "each twentieth of the cases, as they differ in data alone",
    ),
    ("lockdep-capi", "compiles and runs C"),
    (
        "lockdep: aliasing in `it`, but for `it foreign::`",
        "no unsafe code is called there",
    ),
    (
        "pinless-mm: the dense codec of the compressed store",
        "is written in C",
    ),
    (
        "pinless-mm: tests of the compressed store with thousands of pages",
        "a page takes a second, and no unsafe code of it is left untried by those with few",
    ),
];

/// Runs all of it, and says how long each part took.
pub(crate) fn run() -> ExitCode {
    for (what, reason) in LEFT_OUT {
        println!("==> left out: {what}: {reason}");
    }
    run_all(STEPS)
}
