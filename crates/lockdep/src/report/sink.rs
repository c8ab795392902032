//! Where reports go, and what happens then.

use std::io::Write;
use std::sync::Arc;

use super::{Report, Severity};

/// What to do with a report besides keeping it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Nothing.
    Silent,
    /// Hand it to the sink and go on.
    Print,
    /// Hand it to the sink, then panic in the thread that was about to do it, if it is an error.
    ///
    /// A thread that already panics is left alone. Not in the release of a lock.
    Panic,
    /// Hand it to the sink, then abort the process, if it is an error.
    Abort,
    /// The same also if it is a warning: for test runs, where nothing may catch or outlive it.
    Strict,
    /// Hand the first one to the sink, then switch the validator off.
    Once,
}

/// Takes reports: called without any lock of the validator, which does not watch it.
///
/// It must not wait for a lock that the reporting thread may hold.
pub trait Sink: Send + Sync {
    /// A report that was not made before.
    fn report(&self, report: &Report);
}

impl<F: Fn(&Report) + Send + Sync> Sink for F {
    fn report(&self, report: &Report) {
        self(report);
    }
}

/// How a validator delivers.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) policy: Policy,
    pub(crate) sink: Option<Arc<dyn Sink>>,
    pub(crate) is_json: bool,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    /// Whether reports go to the terminal.
    pub(crate) fn prints(&self) -> bool {
        self.policy != Policy::Silent && self.sink.is_none()
    }
}

/// Hands a report on. Unlikely ones are kept, and told to a sink of the program, not printed.
pub(crate) fn deliver(delivery: &Delivery, report: &Report) {
    if delivery.policy == Policy::Silent {
        return;
    }
    match &delivery.sink {
        Some(sink) => sink.report(report),
        None if report.severity == Severity::Unlikely => (),
        None => {
            let text = if delivery.is_json {
                report.json() + "\n"
            } else {
                report.text()
            };
            // There is nobody to tell that the terminal is gone.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
    }
    let is_error = report.severity == Severity::Error;
    match delivery.policy {
        Policy::Abort if is_error => std::process::abort(),
        Policy::Strict if report.severity > Severity::Unlikely => std::process::abort(),
        Policy::Once if is_error => drop(crate::hooks::set_validator(false)),
        _ => (),
    }
}
