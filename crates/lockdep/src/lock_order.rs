//! The order of a program's locks, written down as data.
//!
//! Written once, it does two things. It *primes* the validator: the first lock taken against the
//! order is reported, though the order itself was never seen to be taken. And a test can compare
//! it with what was seen: a class that is missing, and an order that is not in it.
//!
//! ```
//! use lockdep::LockOrder;
//! use lockdep::lock_order::{map, sleeping};
//!
//! static ORDER: LockOrder = LockOrder::new(&[
//!     map("reclaim", &["inode"]),
//!     sleeping("inode", &["page"]),
//!     sleeping("page", &[]),
//! ]);
//!
//! ORDER.prime();
//! // ... and at the end of a test:
//! assert_eq!(ORDER.contradictions(&lockdep::snapshot()), [""; 0]);
//! ```
//!
//! Prime before the first lock of the list is used: a lock that was used before is of the class of
//! the place where it was built, which the list does not know.
//!
//! Linux counterpart: the comments at the heads of mm/rmap.c and mm/filemap.c.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::graph::Provenance;
use crate::prime;
use crate::registry::{self, Attributes, KeyName, WaitType};
use crate::snapshot::Snapshot;
use crate::validator::Validator;
use crate::word::{ClassId, Mode};

/// A class, and what may be taken while it is held.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    name: &'static str,
    attributes: Attributes,
    then: &'static [&'static str],
}

impl Entry {
    /// The name of the class.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is no lock, and may stand in several lists.
    const fn is_map(&self) -> bool {
        matches!(self.attributes.outer, WaitType::Unchecked)
    }

    /// What may be taken directly under it.
    pub const fn then(&self) -> &'static [&'static str] {
        self.then
    }
}

/// A mutex or a reader-writer lock, or anything else that is waited for asleep.
pub const fn sleeping(name: &'static str, then: &'static [&'static str]) -> Entry {
    Entry {
        name,
        attributes: Attributes::SLEEP,
        then,
    }
}

/// A [`ShortLock`](crate::sync::ShortLock): nothing is taken under it.
pub const fn short(name: &'static str) -> Entry {
    Entry {
        name,
        attributes: Attributes {
            inner: WaitType::Free,
            ..Attributes::SPIN
        },
        then: &[],
    }
}

/// A [`Map`](crate::Map).
pub const fn map(name: &'static str, then: &'static [&'static str]) -> Entry {
    Entry {
        name,
        attributes: Attributes::MAP,
        then,
    }
}

/// Something that is waited for: a condition variable, a completion, a fence.
pub const fn event(name: &'static str) -> Entry {
    sleeping(name, &[])
}

/// The order of the locks of a program or of a part of one.
#[derive(Debug)]
pub struct LockOrder {
    entries: &'static [Entry],
    /// Whether the validator of the process was primed.
    is_primed: AtomicBool,
}

impl LockOrder {
    /// An order of these classes. Under one, its `then` may be taken, and theirs, and so on.
    #[must_use]
    pub const fn new(entries: &'static [Entry]) -> Self {
        Self {
            entries,
            is_primed: AtomicBool::new(false),
        }
    }

    /// Its classes.
    pub const fn entries(&self) -> &'static [Entry] {
        self.entries
    }

    /// Tells the validator of the calling thread, which reports what contradicts it. That of the
    /// process is told once. Allocates.
    ///
    /// Classes of other lists may stand in `then` if those were primed before.
    pub fn prime(&self) {
        let is_global = Validator::current().is_global();
        // Relaxed: told twice is told.
        let is_told = is_global && self.is_primed.load(Ordering::Relaxed);
        if is_told || !crate::is_enabled() {
            return;
        }
        for entry in self.entries {
            prime::named(entry.name, entry.attributes);
        }
        for (held, taken) in self.orders() {
            if let (Some(held), Some(taken)) = (find(held), find(taken)) {
                prime::order((held, Mode::Exclusive), (taken, Mode::Exclusive));
            }
        }
        if is_global {
            self.is_primed.store(true, Ordering::Relaxed);
        }
    }

    /// What the list and a snapshot do not agree on, in words: classes that begin like a lock of
    /// the list up to the first dot, and are not in it; and orders of its classes that were seen
    /// and do not follow from it.
    #[must_use]
    pub fn contradictions(&self, seen: &Snapshot) -> Vec<String> {
        let listed: BTreeSet<&str> = self.entries.iter().map(|entry| entry.name).collect();
        let locks = self.entries.iter().filter(|entry| !entry.is_map());
        let areas: BTreeSet<&str> = locks.map(|entry| area(entry.name)).collect();
        let names: BTreeSet<&str> = seen.classes.iter().map(|name| plain(name)).collect();
        let unlisted = names
            .into_iter()
            .filter(|name| areas.contains(area(name)) && !listed.contains(name))
            .map(|name| format!("`{name}` is not listed"));
        let unexpected = seen.orders.iter().filter_map(|order| {
            let (held, taken) = (plain(&order.held), plain(&order.taken));
            let is_wrong = order.provenance == Provenance::Observed
                && listed.contains(held)
                && listed.contains(taken)
                && !self.leads(held, taken);
            is_wrong.then(|| format!("`{held}` -> `{taken}` is not listed: {:?}", order.at))
        });
        unlisted.chain(unexpected).collect()
    }

    /// A class that the list lets be taken under itself, if there is one.
    #[must_use]
    pub fn cycle(&self) -> Option<&'static str> {
        let mut names = self.entries.iter().map(|entry| entry.name);
        names.find(|name| self.leads(name, name))
    }

    /// Whether `taken` follows `held` in one step or several.
    fn leads(&self, held: &str, taken: &str) -> bool {
        let mut reached = BTreeSet::new();
        let mut ahead = vec![held];
        while let Some(name) = ahead.pop() {
            let entry = self.entries.iter().find(|entry| entry.name == name);
            for &next in entry.map_or(&[][..], |entry| entry.then) {
                if next == taken {
                    return true;
                }
                if reached.insert(next) {
                    ahead.push(next);
                }
            }
        }
        false
    }

    fn orders(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let entries = self.entries.iter();
        entries.flat_map(|entry| entry.then.iter().map(|taken| (entry.name, *taken)))
    }
}

fn find(name: &'static str) -> Option<ClassId> {
    registry::find(&KeyName::Static(name))
}

/// A name without version and subclass.
fn plain(name: &str) -> &str {
    name.split(['#', '/']).next().unwrap_or(name)
}

fn area(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(all(test, feature = "validate"))]
mod tests {
    use super::*;
    use crate::Severity;
    use crate::sync::{Mutex, ShortLock};

    static ORDER: LockOrder = LockOrder::new(&[
        map("order_test.map", &["order_test.outer"]),
        sleeping("order_test.outer", &["order_test.inner"]),
        sleeping("order_test.inner", &["order_test.short"]),
        short("order_test.short"),
    ]);

    /// Takes locks of these names, each under those before it; says what the list does not agree
    /// with, and the texts of the reports.
    fn run(names: &[&'static str]) -> (Vec<String>, Vec<String>) {
        let validator = Validator::new();
        let entered = validator.enter();
        ORDER.prime();
        let locks: Vec<_> = names.iter().map(|name| Mutex::new(name, ())).collect();
        let guards: Vec<_> = locks.iter().map(Mutex::lock).collect();
        guards.into_iter().rev().for_each(drop);
        drop(entered);
        let mut seen = validator.snapshot();
        // Other tests of this process have classes of this area too.
        seen.classes = names.iter().map(|&name| name.to_owned()).collect();
        let texts = validator.reports().iter().map(|r| r.text()).collect();
        (ORDER.contradictions(&seen), texts)
    }

    #[test]
    fn what_follows_from_the_list_is_silent() {
        assert_eq!(ORDER.cycle(), None);
        for names in [
            &["order_test.outer", "order_test.inner"][..],
            &["order_test.outer", "elsewhere.lock", "order_test.inner"],
        ] {
            assert_eq!(run(names), (vec![], vec![]), "{names:?}");
        }
    }

    #[test]
    fn one_lock_against_the_list_is_enough() {
        let (contradictions, reports) = run(&["order_test.inner", "order_test.outer"]);
        assert_eq!(contradictions.len(), 1, "{contradictions:?}");
        let [report] = &reports[..] else {
            panic!("one report: {reports:?}");
        };
        assert!(report.contains("declared, never observed"), "{report}");
        assert!(report.contains("warning"), "{report}");
    }

    #[test]
    fn a_class_that_is_not_listed_is_named() {
        let (contradictions, _) = run(&["order_test.forgotten"]);
        assert_eq!(contradictions, ["`order_test.forgotten` is not listed"]);
    }

    #[test]
    fn a_cycle_in_a_list_is_found_in_the_list_and_when_it_primes() {
        static ROUND: LockOrder = LockOrder::new(&[
            sleeping("order_round.a", &["order_round.b"]),
            sleeping("order_round.b", &["order_round.a"]),
        ]);
        assert_eq!(ROUND.cycle(), Some("order_round.a"));
        let validator = Validator::new();
        let _entered = validator.enter();
        ROUND.prime();
        let reports = validator.reports();
        assert_eq!(reports.len(), 1);
        assert!(reports[0].severity > Severity::Unlikely);
    }

    #[test]
    fn a_short_lock_of_the_list_stays_short() {
        let validator = Validator::new();
        let _entered = validator.enter();
        ORDER.prime();
        let short = ShortLock::new("order_test.short", ());
        let inner = Mutex::new("order_test.inner", ());
        let held = short.lock();
        drop(inner.lock());
        drop(held);
        let kinds: Vec<_> = validator.reports().iter().map(|r| r.kind).collect();
        assert!(kinds.contains(&crate::Kind::WaitContext), "{kinds:?}");
    }
}
