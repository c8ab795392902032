//! What did not hold, and who has to stop because of it.

use crate::exit;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockdep::sync::Mutex;
use pinless::PageIndex;
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Scope, ScopedJoinHandle};

/// Failures that are kept word for word; the rest is counted.
const FAILURES_MAX: usize = 16;

/// Something that did not hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Failure {
    /// The tenant, or what else it is about.
    pub(crate) whose: String,
    /// The thread or device that met it.
    pub(crate) actor: String,
    /// What it was doing.
    pub(crate) step: &'static str,
    /// The page, where there is one.
    pub(crate) page: Option<PageIndex>,
    /// What was wrong.
    pub(crate) what: String,
}

impl Failure {
    /// One that is nobody's in particular.
    pub(crate) fn of_all(step: &'static str, what: String) -> Self {
        Self {
            whose: "all".to_owned(),
            actor: "pinless".to_owned(),
            step,
            page: None,
            what,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, ", self.whose, self.actor)?;
        if let Some(page) = self.page {
            write!(f, "page {page}, ")?;
        }
        write!(f, "{}: {}", self.step, self.what)
    }
}

/// Collects failures. The first one ends the work.
#[derive(Debug)]
pub(crate) struct Judge {
    is_stopped: AtomicBool,
    nr_failures: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    /// Pages found with other contents than they must have.
    nr_mismatches: AtomicU64,
}

impl Judge {
    pub(crate) fn new() -> Self {
        Self {
            is_stopped: AtomicBool::new(false),
            nr_failures: AtomicU64::new(0),
            failures: Mutex::new("cli.failures", Vec::new()),
            nr_mismatches: AtomicU64::new(0),
        }
    }

    /// Notes a failure, and has everybody stop.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut failures = self.failures.lock();
        if failures.len() < FAILURES_MAX {
            failures.push(failure);
        }
        drop(failures);
        self.nr_failures.fetch_add(1, Ordering::Relaxed);
        self.stop();
    }

    /// The same, for contents that are wrong.
    pub(crate) fn fail_contents(&self, failure: Failure) {
        self.nr_mismatches.fetch_add(1, Ordering::Relaxed);
        self.fail(failure);
    }

    /// A failure that is nobody's in particular.
    pub(crate) fn fail_all(&self, step: &'static str, what: &str) {
        self.fail(Failure::of_all(step, what.to_owned()));
    }

    /// Runs `body` beside the rest, in a thread that may touch managed memory of any kind. A panic
    /// is a failure of the run, and ends it.
    pub(crate) fn spawn<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        name: &str,
        body: impl FnOnce() -> T + Send + 'scope,
    ) -> Option<ScopedJoinHandle<'scope, Option<T>>> {
        let spawned = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, move || {
                let attached = pinless::attach_thread()
                    .inspect_err(|error| self.fail_all("attach a thread", &error.to_string()));
                let _attached = attached.ok()?;
                // Unwind safe: after a panic nothing is done but to stop and to report.
                let outcome = catch_unwind(AssertUnwindSafe(body));
                if outcome.is_err() {
                    let what = exit::take_panic();
                    let what = what.unwrap_or_else(|| "a thread panicked".to_owned());
                    self.fail_all("run", &format!("a bug of pinless: {what}"));
                }
                outcome.ok()
            });
        spawned
            .inspect_err(|error| self.fail_all("start a thread", &error.to_string()))
            .ok()
    }

    /// Has everybody stop.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Whether to go on with the work.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    pub(crate) fn nr_failures(&self) -> u64 {
        self.nr_failures.load(Ordering::Relaxed)
    }

    pub(crate) fn nr_mismatches(&self) -> u64 {
        self.nr_mismatches.load(Ordering::Relaxed)
    }

    /// The first failures, in the order in which they came.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.failures.lock().clone()
    }
}
