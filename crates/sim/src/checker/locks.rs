//! G4 and G14: what the lock validator has found, in the words of what a driver owes.

use super::Breach;
use crate::conformance::Invariant;
use core::panic::Location;
use lockdep::report::{Acquisition, Kind, Report, Severity};
use lockdep::{Entered, Site, Validator};

/// A validator of a run's own.
#[derive(Clone, Debug)]
pub struct Locks {
    validator: Validator,
}

impl Locks {
    /// One that has seen nothing.
    pub fn new() -> Self {
        Self {
            validator: Validator::new(),
        }
    }

    /// Forgets what was seen: a run begins.
    pub fn reset(&self) {
        self.validator.reset();
    }

    /// Watches the calling task until the guard is dropped.
    pub fn watch(&self) -> Entered {
        self.validator.enter()
    }

    /// What has been found so far that is sure enough, the first one first.
    pub fn breaches(&self) -> Vec<Breach> {
        let reports = self.validator.reports();
        let all = reports
            .iter()
            .map(|report| (report.severity, breach_of(report)));
        // What is not quite sure counts where it is about the memory manager.
        let bad = all.filter(|(severity, breach)| match severity {
            Severity::Unlikely => false,
            Severity::Warning => breach.invariant != Some(Invariant::L6),
            Severity::Error => true,
        });
        bad.map(|(_, breach)| breach).collect()
    }
}

impl Default for Locks {
    fn default() -> Self {
        Self::new()
    }
}

fn breach_of(report: &Report) -> Breach {
    let classes = || {
        let orders = report.orders.iter();
        let of_orders = orders.flat_map(|order| [&order.held.class, &order.taken.class]);
        of_orders.chain([&report.act.class])
    };
    let names = |part: &str| classes().any(|class| class.contains(part));
    let invariant = match report.kind {
        Kind::WaitContext => Invariant::P3,
        Kind::Circular if names("mmu_notifier.unreachable") || ends_subscription(report) => {
            Invariant::L4
        }
        Kind::Circular if names("sim.kit.mappings") => Invariant::L6,
        Kind::Circular if names("signalling") => Invariant::L3,
        Kind::Circular if names("mm.touch") => Invariant::L1,
        Kind::Circular if names("fs_reclaim") || names("mmu_notifier.start") => Invariant::L2,
        Kind::BadUnlock | Kind::Recursive => Invariant::L5,
        _ => Invariant::L6,
    };
    let mut seen: Vec<&str> = classes().map(String::as_str).collect();
    seen.sort_unstable();
    seen.dedup();
    let doubt = report.doubt.as_deref().unwrap_or_default();
    let what = format!("{} ({}) {doubt}", report.kind.headline(), seen.join(", "));
    Breach::of(invariant, what)
}

/// Whether a part of the circle is the wait at the end of a subscription, which waits for callbacks
/// and asks for no memory.
fn ends_subscription(report: &Report) -> bool {
    let is_reclaim = |held: &Acquisition| held.class == "fs_reclaim";
    let orders = report
        .orders
        .iter()
        .filter(|order| !is_reclaim(&order.held));
    let act = (!report.held.iter().any(is_reclaim)).then_some(&report.act);
    let mut all = orders.map(|order| &order.taken).chain(act);
    all.any(|taken| {
        let is_there = |place: &Location<'_>| place.file().ends_with("mmu_notifier/registry.rs");
        taken.class == "mmu_notifier.start"
            && matches!(taken.site, Site::Place(place) if is_there(place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockdep::context;
    use lockdep::sync::Mutex;
    use pinless_mm::gfp::{Gfp, might_alloc};

    #[track_caller]
    fn check(act: impl FnOnce(), expected: Option<Invariant>) {
        let locks = Locks::new();
        let watched = locks.watch();
        act();
        drop(watched);
        let found = locks.breaches();
        let found = found.first().and_then(|breach| breach.invariant);
        assert_eq!(found, expected);
    }

    #[test]
    fn reports_are_named_after_what_was_owed() {
        let (a, b) = (Mutex::new("kit.a", ()), Mutex::new("kit.b", ()));
        check(|| drop((a.lock(), b.lock())), None);
        check(
            || {
                drop((a.lock(), b.lock()));
                drop((b.lock(), a.lock()));
            },
            Some(Invariant::L6),
        );
        check(
            || {
                let _section = context::non_block();
                drop(a.lock());
            },
            Some(Invariant::P3),
        );
        check(
            || {
                let held = a.lock();
                might_alloc(Gfp::Kernel);
                drop(held);
            },
            None,
        );
    }
}
