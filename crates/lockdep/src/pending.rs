//! Findings that cannot be reported where they are made.
//!
//! A report is text: making it allocates, and a sink may take locks. Inside an allocator that holds
//! its own lock, or under a lock that the sink takes, that would be the deadlock to be prevented.
//! Which classes these are is seen: locks of them are taken while the validator itself is at work.
//! What is found while one is held is kept as it is, announced in one line that needs no memory,
//! and reported by the next thread that takes a lock where it can be.

use std::hint::black_box;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::finding::Findings;
use crate::registry;
use crate::sync::raw::RawLock;
use crate::task::Task;
use crate::word::ClassId;

/// How many events' findings may wait; more are dropped.
const NR_PENDING_MAX: usize = 16;

pub(crate) struct Pending {
    findings: RawLock<Vec<Findings>>,
    /// Relaxed: a hint, looked at again under the lock.
    nr: AtomicUsize,
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self {
            findings: RawLock::new(Vec::with_capacity(NR_PENDING_MAX)),
            nr: AtomicUsize::new(0),
        }
    }

    /// Keeps findings that must wait.
    pub(crate) fn keep(&self, task: &Task, found: Findings) {
        let mut findings = self.findings.lock();
        if findings.len() < NR_PENDING_MAX {
            findings.push(found);
            self.nr.store(findings.len(), Ordering::Relaxed);
        }
        drop(findings);
        task.slow_down();
    }

    /// Findings that waited, the oldest first, if they can be reported here.
    pub(crate) fn next(&self, task: &Task, about_to_take: Option<ClassId>) -> Option<Findings> {
        if self.nr.load(Ordering::Relaxed) == 0 {
            return None;
        }
        if must_wait(task) || about_to_take.is_some_and(registry::is_taken_by_reports) {
            task.slow_down();
            return None;
        }
        let mut findings = self.findings.lock();
        let next = (!findings.is_empty()).then(|| findings.remove(0));
        self.nr.store(findings.len(), Ordering::Relaxed);
        next
    }

    /// Whether any wait.
    pub(crate) fn is_empty(&self) -> bool {
        self.nr.load(Ordering::Relaxed) == 0
    }
}

/// Whether the thread holds what a report may need.
pub(crate) fn must_wait(task: &Task) -> bool {
    task.iter()
        .any(|held| registry::is_taken_by_reports(held.word.class()))
}

/// Allocates in sizes that a report may need, so that the allocator's locks are met as such.
pub(crate) fn meet_allocator() {
    for shift in 3..18 {
        drop(black_box(Vec::<u8>::with_capacity(1 << shift)));
    }
}

/// One line, made of what is there already.
pub(crate) fn announce(findings: &Findings) {
    let mut terminal = std::io::stderr().lock();
    for finding in findings.iter() {
        let headline = finding.kind.headline();
        for part in [
            "lockdep: ",
            headline,
            "; the report follows where it can be made\n",
        ] {
            // There is nobody to tell that the terminal is gone.
            let _ = terminal.write_all(part.as_bytes());
        }
    }
}
