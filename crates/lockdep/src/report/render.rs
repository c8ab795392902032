//! A report as text, with lines of source where they can be read.

use std::fmt::Write;

use super::{Acquisition, Order, Report};
use crate::graph::Provenance;
use crate::task::Site;

/// The whole report, ending in a line break.
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut out, report);
    out
}

fn write_report(out: &mut String, report: &Report) -> std::fmt::Result {
    let (severity, headline) = (report.severity.name(), report.kind.headline());
    writeln!(out, "lockdep: {severity}: {headline}")?;
    if let Some(doubt) = &report.doubt {
        writeln!(out, "  but: {doubt}")?;
    }
    let thread = report.thread.as_deref().unwrap_or("a thread");
    write!(out, "  {thread} is at ")?;
    write_acquisition(out, &report.act)?;
    if let Some(against) = &report.against {
        write!(out, "  in conflict with ")?;
        write_acquisition(out, against)?;
    }
    for (at, order) in report.orders.iter().enumerate() {
        write_order(out, at, order)?;
    }
    for (name, used) in &report.uses {
        write!(out, "  {name}: ")?;
        write_acquisition(out, used)?;
    }
    if !report.timeline.is_empty() {
        writeln!(out, "  how it locks up:")?;
        for moment in &report.timeline {
            let indent = moment.thread * 4;
            writeln!(out, "    {:indent$}T{}: {}", "", moment.thread, moment.text)?;
        }
    }
    if !report.held.is_empty() {
        writeln!(out, "  held by the thread, the last taken first:")?;
        for held in &report.held {
            write!(out, "    ")?;
            write_acquisition(out, held)?;
        }
    }
    for advice in &report.advice {
        writeln!(out, "  help: {advice}")?;
    }
    writeln!(out, "  signature: {}", report.signature)
}

fn write_order(out: &mut String, at: usize, order: &Order) -> std::fmt::Result {
    let how = match order.provenance {
        Provenance::Declared => "declared, never observed",
        Provenance::Observed => "observed",
        Provenance::Inferred => "inferred from who ended the wait",
    };
    writeln!(
        out,
        "  order {at}: `{}` -> `{}`, {how}, {} situations{}",
        order.held.class,
        order.taken.class,
        order.nr_seen,
        order
            .thread
            .as_ref()
            .map_or_else(String::new, |thread| format!(", by {thread}")),
    )?;
    for (what, step) in [("held ", &order.held), ("taken ", &order.taken)] {
        write!(out, "    {what}")?;
        write_acquisition(out, step)?;
    }
    if !order.gates.is_empty() {
        writeln!(out, "    always under {}", order.gates.join(", "))?;
    }
    Ok(())
}

fn write_acquisition(out: &mut String, step: &Acquisition) -> std::fmt::Result {
    write!(out, "`{}` ({}", step.class, step.mode.letter())?;
    let flags = [
        (step.is_try, " try"),
        (step.is_wait, " wait"),
        (step.is_timed, " timed"),
    ];
    for (_, flag) in flags.iter().filter(|(is_set, _)| *is_set) {
        out.push_str(flag);
    }
    write!(out, ", {})", step.context)?;
    match step.site {
        Site::Place(place) => {
            writeln!(out, " at {place}")?;
            write_source(out, place)
        }
        Site::Address(address) => writeln!(out, " at {address:#x}"),
        Site::Unknown => writeln!(out),
    }
}

/// The line of a place, as compilers show it; nothing if the file is not here.
fn write_source(out: &mut String, place: &std::panic::Location<'_>) -> std::fmt::Result {
    let Some(line) = source_line(place.file(), place.line() as usize) else {
        return Ok(());
    };
    let column = place.column() as usize - 1;
    let indent = line.chars().take_while(|c| c.is_whitespace()).count();
    writeln!(out, "      {:>5} | {}", place.line(), line.trim())?;
    let before = column.saturating_sub(indent);
    writeln!(out, "            | {:before$}^", "")
}

/// Looks where the program runs, and above: tests run in the folder of their package.
fn source_line(file: &str, number: usize) -> Option<String> {
    const FOLDERS: [&str; 3] = ["", "../", "../../"];
    let text = FOLDERS
        .iter()
        .find_map(|folder| std::fs::read_to_string(format!("{folder}{file}")).ok())?;
    text.lines().nth(number.checked_sub(1)?).map(str::to_owned)
}
