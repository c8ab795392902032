//! A report as JSON, by hand: the crate depends on nothing.

use std::fmt::Write;

use super::{Acquisition, Report};
use crate::graph::Provenance;
use crate::task::Site;

/// One object, without line breaks.
pub(super) fn object(report: &Report) -> String {
    let orders = report.orders.iter().map(|order| {
        fields(&[
            ("held", acquisition(&order.held)),
            ("taken", acquisition(&order.taken)),
            ("thread", optional(order.thread.as_deref())),
            ("provenance", provenance(order.provenance)),
            ("nr_seen", order.nr_seen.to_string()),
            ("gates", list(order.gates.iter().map(|gate| string(gate)))),
        ])
    });
    let uses = report
        .uses
        .iter()
        .map(|(name, used)| fields(&[("usage", string(name)), ("at", acquisition(used))]));
    let timeline = report.timeline.iter().map(|moment| {
        fields(&[
            ("thread", moment.thread.to_string()),
            ("text", string(&moment.text)),
        ])
    });
    fields(&[
        ("kind", string(report.kind.name())),
        ("severity", string(report.severity.name())),
        ("signature", string(&report.signature)),
        ("thread", optional(report.thread.as_deref())),
        ("act", acquisition(&report.act)),
        (
            "against",
            report.against.as_ref().map_or_else(null, acquisition),
        ),
        ("orders", list(orders)),
        ("uses", list(uses)),
        ("held", list(report.held.iter().map(acquisition))),
        ("timeline", list(timeline)),
        ("doubt", optional(report.doubt.as_deref())),
        (
            "advice",
            list(report.advice.iter().map(|text| string(text))),
        ),
    ])
}

fn acquisition(step: &Acquisition) -> String {
    fields(&[
        ("class", string(&step.class)),
        ("mode", string(&step.mode.letter().to_string())),
        ("try", step.is_try.to_string()),
        ("wait", step.is_wait.to_string()),
        ("timed", step.is_timed.to_string()),
        ("context", string(&step.context.to_string())),
        ("site", site(step.site)),
    ])
}

pub(crate) fn provenance(provenance: Provenance) -> String {
    string(match provenance {
        Provenance::Declared => "declared",
        Provenance::Observed => "observed",
        Provenance::Inferred => "inferred",
    })
}

pub(crate) fn site(site: Site) -> String {
    match site {
        Site::Place(place) => string(&place.to_string()),
        Site::Address(address) => string(&format!("{address:#x}")),
        Site::Unknown => null(),
    }
}

fn null() -> String {
    "null".to_owned()
}

fn optional(text: Option<&str>) -> String {
    text.map_or_else(null, string)
}

pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", fields.join(","))
}

pub(crate) fn list(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(","))
}

pub(crate) fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_is_escaped() {
        assert_eq!(super::string("a\"b\\c\nd"), r#""a\"b\\c\u000ad""#);
    }
}
