//! The report of a conformance run as a table.

use crate::cmd::conform::report::{Bug, Driver, Lengths, Report, STEPS_SHORT};
use core::fmt::Write;
use pinless_sim::conformance::{Grade, Invariant};

/// Columns of a driver's name.
const NAME_WIDTH: usize = 16;

/// The groups of invariants, by letter.
const GROUPS: [char; 4] = ['R', 'P', 'L', 'E'];

/// The report as text that ends in a line feed.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    if !report.drivers.is_empty() {
        drivers(&mut text, report);
    }
    if !report.zoo.bugs.is_empty() {
        bugs(&mut text, report);
    }
    let Lengths {
        shown,
        short,
        median,
        longest,
    } = report.zoo.lengths;
    if shown > 1 {
        let _ = writeln!(
            text,
            "\n{short} of {shown} schedules have at most {STEPS_SHORT} steps, half of them at most \
             {median}, the longest {longest}"
        );
    }
    // One fault was asked for: its schedule is what people want to see.
    if let [bug] = &report.zoo.bugs[..] {
        for conviction in bug
            .verdicts
            .iter()
            .filter_map(|one| one.conviction.as_ref())
        {
            let _ = write!(text, "\n{conviction}");
        }
    }
    for driver in report.drivers.iter().filter(|driver| !driver.ok) {
        for conviction in &driver.report.convictions {
            let _ = write!(text, "\n{}: {conviction}", driver.name);
        }
    }
    let zoo = &report.zoo;
    let _ = writeln!(
        text,
        "\n{} of {} faults accounted for, {} drivers wrongly convicted, {} runs",
        zoo.accounted, zoo.total, zoo.false_convictions, report.runs
    );
    text
}

/// What did not come out as it should, a line each.
pub(crate) fn failures(report: &Report) -> Vec<String> {
    let missed = report.zoo.bugs.iter().filter(|bug| !bug.accounted);
    let missed = missed.map(|bug| format!("pinless: fault {} is not found", bug.number));
    let wronged = report.drivers.iter().filter(|driver| !driver.ok);
    let wronged = wronged.map(|driver| format!("pinless: {} is convicted", driver.name));
    missed.chain(wronged).collect()
}

fn drivers(text: &mut String, report: &Report) {
    let _ = write!(text, "{:NAME_WIDTH$} like", "driver");
    for group in GROUPS {
        let _ = write!(text, "  {group}");
        for invariant in of(group) {
            let digit = invariant.name().chars().last().unwrap_or(' ');
            text.push(digit);
        }
    }
    text.push_str("  as shipped\n");
    for driver in &report.drivers {
        row(text, driver);
    }
    text.push_str("+ holds, X broken, o graded, . not asked of it, ? not played\n\n");
}

fn row(text: &mut String, driver: &Driver) {
    let _ = write!(text, "{:NAME_WIDTH$} {:4}", driver.name, driver.pattern);
    for group in GROUPS {
        text.push_str("   ");
        for invariant in of(group) {
            text.push(match driver.report.grades.get(&invariant) {
                Some(Grade::Pass(_)) => '+',
                Some(Grade::Fail) => 'X',
                Some(Grade::Share(_) | Grade::Times(_)) => 'o',
                Some(Grade::Exempt) => '.',
                Some(Grade::Unseen) | None => '?',
            });
        }
    }
    let findings: Vec<&str> = driver.findings.iter().map(|one| one.name()).collect();
    let findings = match (driver.shipped.is_empty(), findings.is_empty()) {
        (true, _) => "the same".to_owned(),
        (false, true) => "nothing found".to_owned(),
        (false, false) => format!("breaks {}", findings.join(" ")),
    };
    let _ = writeln!(text, "  {findings}");
}

fn of(group: char) -> impl Iterator<Item = Invariant> {
    let is_of = move |invariant: &Invariant| invariant.name().starts_with(group);
    Invariant::ALL.into_iter().filter(is_of)
}

fn bugs(text: &mut String, report: &Report) {
    let _ = writeln!(text, "  #  found in          by    scene      steps  fault");
    for bug in &report.zoo.bugs {
        if let Some(test) = bug.test {
            let (number, by, line) = (bug.number, bug.by, bug.line);
            let _ = writeln!(text, "{number:3}  {by}: {test}\n{:5}{line}", "");
            continue;
        }
        verdicts(text, bug);
    }
}

fn verdicts(text: &mut String, bug: &Bug) {
    if bug.verdicts.is_empty() {
        let _ = writeln!(
            text,
            "{:3}  NO MODEL HAS IT                               {}",
            bug.number, bug.line
        );
    }
    for verdict in &bug.verdicts {
        let found = verdict.found.map_or("NOT FOUND", |found| found.name());
        let (scene, steps) = match verdict.shown() {
            Some(one) => (one.scene, one.steps.to_string()),
            None => ("-", "-".to_owned()),
        };
        let also: Vec<&str> = verdict.also.iter().map(|one| one.name()).collect();
        let also = match also.is_empty() {
            true => String::new(),
            false => format!(" (also {})", also.join(" ")),
        };
        let (number, driver, line) = (bug.number, &verdict.driver, bug.line);
        let _ = writeln!(
            text,
            "{number:3}  {driver:NAME_WIDTH$}  {found:4}  {scene:9}  {steps:>5}  {line}{also}"
        );
    }
}
