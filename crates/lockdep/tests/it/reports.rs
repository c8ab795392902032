//! What a report is known by, how it shows what happens, and how it is kept quiet.

use std::sync::Arc;

use lockdep::event::{self, Acquire};
use lockdep::sync::Mutex;
use lockdep::{Attributes, DynamicClass, Mode, Policy, Report, Validator};
use serde_json::Value;

/// All that reports say: for failures, as lines of source take long to read in Miri.
pub(crate) fn texts(reports: &[Arc<Report>]) -> String {
    reports.iter().map(|report| report.text()).collect()
}

/// Classes of these names in a circle, found in this turn; what is reported.
fn circle(validator: &Validator, names: &[&str], first: usize) -> Vec<Arc<Report>> {
    circle_of(validator, &classes(names), first)
}

fn classes(names: &[&str]) -> Vec<DynamicClass> {
    let class = |name: &&str| DynamicClass::new(*name, Attributes::SLEEP);
    names.iter().map(class).collect()
}

fn circle_of(validator: &Validator, classes: &[DynamicClass], first: usize) -> Vec<Arc<Report>> {
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

/// Which of several classes of a name came first is another in each run.
#[test]
fn a_signature_is_the_same_whoever_else_has_the_names() {
    let names = ["twin.a", "twin.b/7", "twin.#c"];
    let expected = "circular: twin.#c(W)>twin.a(W) twin.a(W)>twin.b/7(W) twin.b/7(W)>twin.#c(W)";
    let twins = [classes(&names), classes(&names)];
    let validator = Validator::new();
    for (nth, twin) in twins.iter().enumerate() {
        // All of them are told, each once.
        circle_of(&validator, twin, nth);
        let reports = circle_of(&validator, twin, 0);
        assert_eq!(reports.len(), nth + 1, "{}", texts(&reports));
        assert_eq!(reports[nth].signature, expected);
        assert_eq!(reports[nth].text().contains("twin.a#2"), nth == 1);
    }
    let validator = Validator::new();
    validator.suppress(expected);
    for twin in &twins {
        assert_eq!(circle_of(&validator, twin, 0).len(), 0);
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

/// What a program is called with, and gets as JSON, is what it can ask for, and what it reads.
#[test]
fn a_sink_is_told_once_and_an_object_has_what_the_text_has() {
    let validator = Validator::new();
    let told = Arc::new(Mutex::new("told", Vec::new()));
    let sink = Arc::clone(&told);
    let tell = move |report: &Report| sink.lock().push(report.clone());
    validator.set_sink(Arc::new(tell));
    let names = ["sink.\"a\"", "sink.b", "sink.c"];
    circle(&validator, &names, 0);
    assert_eq!(told.lock().len(), 0, "silent by policy");
    validator.reset();
    validator.set_policy(Policy::Print);
    circle(&validator, &names, 0);
    let kept = circle(&validator, &names, 1);
    let told: Vec<Report> = told.lock().clone();
    let [report] = &told[..] else {
        panic!("told once, though it was done twice: {told:?}");
    };
    assert_eq!(
        kept.iter().map(|kept| &**kept).collect::<Vec<_>>(),
        [report]
    );
    let json: Value = serde_json::from_str(&report.json()).expect("it is JSON");
    let text = report.text();
    let field = |value: &Value| value.as_str().expect("a string").to_owned();
    assert_eq!(field(&json["kind"]), "circular");
    assert_eq!(field(&json["severity"]), "error");
    assert_eq!(field(&json["signature"]), report.signature);
    let list = |name: &str| json[name].as_array().expect("a list").clone();
    assert_eq!(list("orders").len(), names.len());
    for order in list("orders") {
        for side in ["held", "taken"] {
            let acquisition = &order[side];
            let (class, site) = (field(&acquisition["class"]), field(&acquisition["site"]));
            assert!(names.contains(&class.as_str()) && site.contains("reports.rs:"));
            assert!(
                text.contains(&format!("`{class}` (W, task) at {site}")),
                "{text}"
            );
        }
        assert_eq!(field(&order["provenance"]), "observed");
        assert_eq!(order["nr_seen"], 1);
    }
    for (name, key) in [("timeline", Some("text")), ("advice", None)] {
        assert!(!list(name).is_empty());
        for value in list(name) {
            let line = field(key.map_or(&value, |key| &value[key]));
            assert!(text.contains(&line), "{line}");
        }
    }
}
