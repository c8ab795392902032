//! What a validator knows, at one moment: for pictures, for comparing runs, for numbers.

use std::fmt::Write;

use crate::contention::{self, Contention};
use crate::graph::Provenance;
use crate::prime::{KnownOrder, Stats};
use crate::registry;
use crate::report::json;
use crate::validator::Validator;

/// Classes, orders and counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// All classes of the process, as reports name them.
    pub classes: Vec<String>,
    /// The orders that the validator knows.
    pub orders: Vec<KnownOrder>,
    /// How much it has seen.
    pub stats: Stats,
    /// The classes that threads of the process were counted waiting for, the longest waited for
    /// first: none unless [that was switched on](contention::set_enabled).
    pub contention: Vec<Contention>,
}

/// What the calling thread's validator knows.
#[must_use]
pub fn snapshot() -> Snapshot {
    Validator::current().snapshot()
}

impl Validator {
    /// What it knows now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let classes = self.unwatched(|_| registry::live());
        Snapshot {
            contention: contention::counted(&classes),
            classes: classes.into_iter().map(registry::display_name).collect(),
            orders: self.orders(),
            stats: self.stats(),
        }
    }
}

impl Snapshot {
    /// All of it as one JSON object, without line breaks.
    #[must_use]
    pub fn json(&self) -> String {
        let orders = self.orders.iter().map(|order| {
            json::fields(&[
                ("held", json::string(&order.held)),
                ("taken", json::string(&order.taken)),
                ("provenance", json::provenance(order.provenance)),
                ("nr_seen", order.nr_seen.to_string()),
                ("held_at", json::site(order.at[0])),
                ("taken_at", json::site(order.at[1])),
            ])
        });
        let stats = json::fields(&[
            ("nr_classes", self.classes.len().to_string()),
            ("nr_orders", self.stats.nr_orders.to_string()),
            ("nr_chains", self.stats.nr_chains.to_string()),
            ("nr_misses", self.stats.nr_misses.to_string()),
            ("nr_threads", self.stats.nr_threads.to_string()),
        ]);
        let classes = self.classes.iter().map(|class| json::string(class));
        let contention = self.contention.iter().map(|waits| {
            json::fields(&[
                ("class", json::string(&waits.class)),
                ("nr_waits", waits.nr_waits.to_string()),
                ("longest_ns", waits.longest.as_nanos().to_string()),
                ("total_ns", waits.total.as_nanos().to_string()),
            ])
        });
        json::fields(&[
            ("classes", json::list(classes)),
            ("orders", json::list(orders)),
            ("contention", json::list(contention)),
            ("stats", stats),
        ])
    }

    /// The waits for locks as a table, a class a line.
    #[must_use]
    pub fn contention_text(&self) -> String {
        let mut out = format!(
            "{:<40} {:>10} {:>10} {:>10}\n",
            "class", "waits", "longest", "total"
        );
        for waits in &self.contention {
            let Contention {
                class,
                nr_waits,
                longest,
                total,
            } = waits;
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "{class:<40} {nr_waits:>10} {longest:>10.1?} {total:>10.1?}"
            );
        }
        out
    }

    /// The orders as a picture for Graphviz: an arrow leads from what is held to what is taken,
    /// dashed if nobody was seen to do so.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut out = String::from("digraph locks {\n  rankdir=LR;\n  node [shape=box];\n");
        for order in &self.orders {
            let style = match order.provenance {
                Provenance::Observed => "solid",
                Provenance::Inferred => "dotted",
                Provenance::Declared => "dashed",
            };
            let (held, taken) = (quoted(&order.held), quoted(&order.taken));
            // Writing to a string cannot fail.
            let _ = writeln!(out, "  {held} -> {taken} [style={style}];");
        }
        out.push_str("}\n");
        out
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(all(test, feature = "validate"))]
mod tests {
    use super::*;
    use crate::sync::{Mutex, RwLock};

    fn nested() -> Snapshot {
        let validator = Validator::new();
        let entered = validator.enter();
        let outer = Mutex::new("snapshot.\"outer\"", ());
        let inner = RwLock::new("snapshot.inner", ());
        for _ in 0..3 {
            let held = outer.lock();
            drop(inner.read());
            drop(held);
        }
        drop(entered);
        validator.snapshot()
    }

    #[test]
    fn an_order_is_found_with_its_places() {
        let snapshot = nested();
        let [order] = &snapshot.orders[..] else {
            panic!("one order: {snapshot:?}");
        };
        assert_eq!(
            (&order.held[..], &order.taken[..]),
            ("snapshot.\"outer\"", "snapshot.inner")
        );
        assert_eq!(order.provenance, Provenance::Observed);
        let is_here = |site: &crate::Site| format!("{site:?}").contains("snapshot.rs");
        assert!(order.at.iter().all(is_here), "{:?}", order.at);
    }

    #[test]
    fn what_is_known_already_is_no_miss() {
        // Taken alone, and under the other: however often.
        let stats = nested().stats;
        assert_eq!(
            (stats.nr_orders, stats.nr_chains, stats.nr_misses),
            (1, 2, 2)
        );
    }

    #[test]
    fn names_are_escaped() {
        let snapshot = nested();
        let dot = snapshot.dot();
        let arrow = r#""snapshot.\"outer\"" -> "snapshot.inner" [style=solid];"#;
        assert!(dot.contains(arrow), "{dot}");
        let json = snapshot.json();
        let start = r#""orders":[{"held":"snapshot.\"outer\"","taken":"snapshot.inner","#;
        assert!(json.contains(start), "{json}");
        assert!(
            json.ends_with(r#""nr_misses":2,"nr_threads":1}}"#),
            "{json}"
        );
    }
}
