//! What a report is known by, how it shows what happens, and how it is kept quiet.

use std::sync::Arc;

use lockdep::event::{self, Acquire};
use lockdep::{Attributes, DynamicClass, Mode, Report, Validator};

/// Classes in a circle of so many orders, found in this turn; what is reported.
fn circle(validator: &Validator, names: &[&str], first: usize) -> Vec<Arc<Report>> {
    let classes: Vec<DynamicClass> = names
        .iter()
        .map(|name| DynamicClass::new(*name, Attributes::SLEEP))
        .collect();
    let _entered = validator.enter();
    for turn in 0..classes.len() {
        let held = (first + turn) % classes.len();
        let taken = (held + 1) % classes.len();
        for at in [held, taken] {
            event::acquire(&Acquire::new(classes[at].id(), at + 1, Mode::Exclusive));
        }
        event::release(taken + 1);
        event::release(held + 1);
    }
    validator.reports()
}

const RING: [&str; 5] = ["ring.a", "ring.b", "ring.c", "ring.d", "ring.e"];

#[test]
fn a_cycle_is_shown_as_a_timeline_of_as_many_threads() {
    for nr in 2..=RING.len() {
        let names = RING.map(|name| format!("{nr}.{name}"));
        let names: Vec<&str> = names[..nr].iter().map(String::as_str).collect();
        let reports = circle(&Validator::new(), &names, 0);
        let [report] = &reports[..] else {
            panic!("one report: {reports:?}");
        };
        let (holds, waits) = report.timeline.split_at(nr);
        assert_eq!(waits.len(), nr);
        // First all hold, and then each waits for what the next one holds.
        for thread in 0..nr {
            assert_eq!(
                (holds[thread].thread, waits[thread].thread),
                (thread, thread)
            );
            let held_by_next = &holds[(thread + 1) % nr].text;
            let awaited = waits[thread].text.strip_prefix("waits for ");
            assert_eq!(held_by_next.strip_prefix("holds "), awaited, "{report}");
        }
        let last = format!("T{}: waits for ", nr - 1);
        assert!(report.text().contains(&last), "{report}");
    }
}

#[test]
fn a_signature_is_the_same_whatever_was_found_first() {
    let names = ["stable.a", "stable.b", "stable.c"];
    let expected =
        "circular: stable.a(W)>stable.b(W) stable.b(W)>stable.c(W) stable.c(W)>stable.a(W)";
    for first in 0..names.len() {
        let reports = circle(&Validator::new(), &names, first);
        let signatures: Vec<&str> = reports.iter().map(|r| &r.signature[..]).collect();
        assert_eq!(signatures, [expected]);
    }
}

#[test]
fn what_is_suppressed_is_not_reported_and_nothing_else_is_lost() {
    let names = ["quiet.a", "quiet.b"];
    let signature = "circular: quiet.a(W)>quiet.b(W) quiet.b(W)>quiet.a(W)";
    for (list, nr_reports) in [
        (String::new(), 1),
        (signature.to_owned(), 0),
        (format!("\n# known since spring\n  {signature}  \n"), 0),
        (format!("# {signature}"), 1),
        (signature.replace("quiet.b", "quiet.c"), 1),
    ] {
        let validator = Validator::new();
        validator.suppress(&list);
        assert_eq!(circle(&validator, &names, 0).len(), nr_reports, "{list}");
        // The order that is suppressed is known all the same, and so is every other.
        let all = circle(&validator, &["quiet.x", "quiet.y"], 0);
        assert_eq!(all.len(), nr_reports + 1, "{list}");
    }
}
