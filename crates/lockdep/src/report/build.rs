//! From a finding, which is only numbers, to a report.

use super::{Acquisition, Kind, Moment, Order, Report, Severity};
use crate::core::Core;
use crate::finding::{Apart, Finding, NR_HOPS_MAX};
use crate::graph::{Provenance, Step};
use crate::registry::display_name;
use crate::word::{ClassId, Word};

/// The names of threads that a finding mentions: copied under the lock, used without.
pub(crate) struct ThreadNames(Vec<(u32, crate::core::Thread)>);

impl ThreadNames {
    /// Room for all that a finding can mention; made before the lock is taken.
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(2 * NR_HOPS_MAX + 8))
    }

    pub(crate) fn collect(&mut self, core: &Core, finding: &Finding) {
        self.add(core, finding.thread);
        finding
            .hops()
            .for_each(|(hop, ..)| self.add(core, hop.place.thread));
    }

    fn add(&mut self, core: &Core, number: u32) {
        if let Some(thread) = core.thread(number)
            && self.0.len() < self.0.capacity()
        {
            self.0.push((number, *thread));
        }
    }

    fn get(&self, number: u32) -> Option<String> {
        let found = self.0.iter().find(|(known, _)| *known == number);
        found.map(|(number, thread)| {
            let what = if thread.is_task() { "task" } else { "thread" };
            format!("{} ({what} {number})", thread.name())
        })
    }
}

/// The report of a finding; allocates, so the validator's lock must not be held.
pub(crate) fn build(finding: &Finding, threads: &ThreadNames) -> Report {
    let orders: Vec<Order> = finding
        .hops()
        .map(|(hop, nr_seen, gates)| Order {
            held: acquisition(hop.place.held),
            taken: acquisition(hop.place.taken),
            thread: threads.get(hop.place.thread),
            provenance: hop.place.provenance,
            nr_seen,
            gates: gates
                .iter()
                .filter(|&&gate| gate != 0)
                .map(|&gate| display_name(ClassId::from_index(gate)))
                .collect(),
        })
        .collect();
    let mut report = Report {
        kind: finding.kind,
        severity: Severity::Error,
        signature: String::new(),
        fault: String::new(),
        thread: threads.get(finding.thread),
        act: acquisition(finding.act),
        against: finding.against.map(acquisition),
        uses: finding
            .uses
            .iter()
            .flatten()
            .map(|used| (used.bit.to_string(), acquisition(used.step)))
            .collect(),
        held: finding.held().map(acquisition).collect(),
        timeline: timeline(finding.kind, &orders),
        orders,
        doubt: None,
        advice: Vec::new(),
    };
    grade(&mut report, finding);
    report.fault = signature(&report, finding.note, str::to_owned);
    report.signature = signature(&report, finding.note, without_version);
    report.advice = advice(&report);
    if !finding.note.is_empty() {
        report.doubt.get_or_insert_with(|| finding.note.to_owned());
    }
    report
}

fn acquisition(step: Step) -> Acquisition {
    let word = step.word;
    Acquisition {
        class: display_name(word.class()),
        mode: word.mode(),
        is_try: word.has(Word::TRY),
        is_wait: word.has(Word::WAIT),
        is_timed: word.has(Word::TIMED),
        context: word.context(),
        site: step.site,
    }
}

/// Finds the weakest part of a finding.
fn grade(report: &mut Report, finding: &Finding) {
    if let Some(apart) = finding.apart {
        report.severity = Severity::Unlikely;
        report.doubt = Some(match apart {
            Apart::Gate(gate) => {
                let gate = display_name(gate);
                format!("two of the orders were only ever seen under `{gate}`, held alone")
            }
            Apart::Readers(class) => {
                let class = display_name(class);
                format!("readers of `{class}` meet, and nobody was seen to write")
            }
            Apart::OneThread(event) => {
                let event = display_name(event);
                format!("one thread alone was seen to wait for `{event}`, and to end the wait")
            }
            Apart::Turns => {
                "these wait for each other in turn, and every wait was ended".to_owned()
            }
            Apart::Time => "one thread had ended before the other was first seen".to_owned(),
        });
        return;
    }
    let declared = report
        .orders
        .iter()
        .find(|order| order.provenance == Provenance::Declared);
    let inferred = report
        .orders
        .iter()
        .find(|order| order.provenance == Provenance::Inferred && !order.held.is_wait);
    let is_timed = |order: &&Order| order.held.is_timed || order.taken.is_timed;
    let doubt = if let Some(order) = declared {
        format!(
            "the order `{}` -> `{}` was declared, never observed",
            order.held.class, order.taken.class
        )
    } else if let Some(order) = inferred {
        format!(
            "who ends the wait for `{}` was seen to take `{}` before, but not while one waited",
            order.held.class, order.taken.class
        )
    } else if let Some(order) = report.orders.iter().find(is_timed) {
        format!("the wait for `{}` has a time limit", order.taken.class)
    } else {
        return;
    };
    report.severity = Severity::Warning;
    report.doubt = Some(doubt);
}

/// A class name without the number that tells it from others of the name: that follows from which
/// was used first, and may be another in the next run.
fn without_version(class: &str) -> String {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (name, subclass) = match class.rsplit_once('/') {
        Some((name, subclass)) if is_number(subclass) => (name, &class[name.len()..]),
        _ => (class, ""),
    };
    match name.rsplit_once('#') {
        Some((name, version)) if is_number(version) => format!("{name}{subclass}"),
        _ => class.to_owned(),
    }
}

/// The kind and the classes, called by `name`; for a cycle, wherever it was entered.
fn signature(report: &Report, note: &str, name: fn(&str) -> String) -> String {
    let letter = |acquisition: &Acquisition| {
        let class = name(&acquisition.class);
        format!("{class}({})", acquisition.mode.letter())
    };
    let mut parts: Vec<String> = report
        .orders
        .iter()
        .map(|order| format!("{}>{}", letter(&order.held), letter(&order.taken)))
        .collect();
    if report.kind == Kind::Circular {
        let rotated = |first: usize| [&parts[first..], &parts[..first]].concat();
        parts = (0..parts.len()).map(rotated).min().unwrap_or_default();
    } else {
        parts.extend(
            report
                .uses
                .iter()
                .map(|(what, used)| format!("{}:{what}", name(&used.class))),
        );
        parts.push(letter(&report.act));
        parts.extend(report.against.iter().map(letter));
    }
    if !note.is_empty() {
        parts.push(note.to_owned());
    }
    format!("{}: {}", report.kind.name(), parts.join(" "))
}

/// Each thread of a cycle holds one lock and waits for the next thread's.
fn timeline(kind: Kind, orders: &[Order]) -> Vec<Moment> {
    if kind != Kind::Circular {
        return Vec::new();
    }
    let verb = |order: &Order| match order.provenance {
        Provenance::Inferred => format!("has yet to end the wait for {}", order.held.class),
        _ => format!("holds {} ({})", order.held.class, order.held.mode.letter()),
    };
    let holds = orders.iter().enumerate().map(|(thread, order)| Moment {
        thread,
        text: verb(order),
    });
    let waits = orders.iter().enumerate().map(|(thread, order)| Moment {
        thread,
        text: format!(
            "waits for {} ({})",
            order.taken.class,
            order.taken.mode.letter()
        ),
    });
    holds.chain(waits).collect()
}

fn advice(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    match report.kind {
        Kind::Circular => {
            if let Some(rare) = report.orders.iter().min_by_key(|order| order.nr_seen) {
                advice.push(format!(
                    "take `{}` before `{}`, or not under it: this order is the rarest ({} times)",
                    rare.taken.class, rare.held.class, rare.nr_seen
                ));
            }
            if report.orders.iter().any(|order| order.taken.is_try) {
                advice.push("a try that fails must let go of what it holds".to_owned());
            }
            advice.push(
                "if locks of one class never meet, give them classes of their own (name, subclass)"
                    .to_owned(),
            );
        }
        Kind::Recursive => advice.push(
            "give the inner lock a subclass, an order of instances, or a nest lock".to_owned(),
        ),
        Kind::InconsistentUsage | Kind::IrqOrder | Kind::IrqInversion => advice
            .push("keep the level off while the lock is held, or only try it there".to_owned()),
        Kind::WaitContext => {
            let holder = report.against.as_ref();
            advice.push(holder.map_or_else(
                || "leave the section that must not wait before this".to_owned(),
                |held| format!("release `{}` before this, or only try", held.class),
            ));
        }
        _ => (),
    }
    advice
}
