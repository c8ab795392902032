//! Interleaved rounds, their medians, and how they are told.
//!
//! A [`Contender`] is one side of a comparison. All contenders run once in each round, one after
//! the other, so that a machine that slows down slows down all of them.

use super::picture::Picture;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// Why a benchmark could not be run.
#[derive(Debug)]
pub(crate) struct BenchError(pub(crate) String);

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One side of a comparison: each round gives one value for each of its metrics.
pub(crate) struct Contender<'a> {
    name: String,
    round: Box<dyn FnMut() -> Result<Vec<f64>, BenchError> + 'a>,
}

impl<'a> Contender<'a> {
    /// A side that gives `round` values at a time, always as many.
    pub(crate) fn new(
        name: impl Into<String>,
        round: impl FnMut() -> Result<Vec<f64>, BenchError> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            round: Box::new(round),
        }
    }
}

/// The values of one metric of one contender, one a round.
#[derive(Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// # Panics
    ///
    /// If there is none.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "a metric without a value");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() % 2 {
            1 => self.0[middle],
            _ => f64::midpoint(self.0[middle - 1], self.0[middle]),
        }
    }

    fn min(&self) -> f64 {
        self.0[0]
    }

    fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// What all contenders measured.
pub(crate) struct Measured(Vec<(String, Vec<Samples>)>);

impl Measured {
    /// The values of the `metric`-th metric of `contender`.
    ///
    /// # Panics
    ///
    /// If there is no such contender, or no such metric.
    pub(crate) fn of(&self, contender: &str, metric: usize) -> &Samples {
        let found = self.0.iter().find(|(name, _)| *name == contender);
        &found
            .unwrap_or_else(|| panic!("no contender `{contender}`"))
            .1[metric]
    }
}

/// Runs every contender once a round, after one round that does not count.
pub(crate) fn interleave(
    rounds: u32,
    contenders: &mut [Contender<'_>],
) -> Result<Measured, BenchError> {
    let mut values: Vec<Vec<Vec<f64>>> = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (contender, values) in contenders.iter_mut().zip(&mut values) {
            let measured = (contender.round)()?;
            if round > 0 {
                values.push(measured);
            }
        }
    }
    let by_metric = |rounds: &Vec<Vec<f64>>| {
        let metric = |at: usize| Samples::new(rounds.iter().map(|round| round[at]).collect());
        (0..rounds[0].len()).map(metric).collect()
    };
    let names = contenders.iter().map(|contender| contender.name.clone());
    Ok(Measured(names.zip(values.iter().map(by_metric)).collect()))
}

/// What a value must keep to.
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    /// Ours at most this much above the peer's, in the unit.
    AbovePeerMax(f64),
    /// Ours at least so many times the peer's.
    TimesPeerMin(f64),
    /// Ours at most so many times the peer's.
    TimesPeerMax(f64),
    /// Ours at most this much, in the unit, whatever a peer takes.
    Max(f64),
}

/// One line of the result.
#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    min: f64,
    max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_value: Option<f64>,
    /// Ours over the peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_held: Option<bool>,
}

impl Row {
    /// A row with the median of `samples`, without a peer.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, samples: &Samples) -> Self {
        Self {
            name: name.into(),
            value: samples.median(),
            unit,
            min: samples.min(),
            max: samples.max(),
            peer: None,
            peer_value: None,
            ratio: None,
            budget: None,
            budget_held: None,
        }
    }

    /// Puts a peer beside it.
    pub(crate) fn beside(mut self, peer: impl Into<String>, samples: &Samples) -> Self {
        let peer_value = samples.median();
        self.peer = Some(peer.into());
        self.peer_value = Some(peer_value);
        self.ratio = (peer_value != 0.0).then(|| self.value / peer_value);
        self
    }

    /// Says what it must keep to, and whether it does.
    ///
    /// # Panics
    ///
    /// If the budget speaks of a peer and there is none.
    pub(crate) fn within(mut self, budget: Budget) -> Self {
        let peer = || {
            self.peer_value
                .expect("a budget beside a peer needs the peer")
        };
        let (told, is_held) = match budget {
            Budget::AbovePeerMax(above_max) => (
                format!("peer + {above_max} {}", self.unit),
                self.value - peer() <= above_max,
            ),
            Budget::TimesPeerMin(min) => (format!(">= {min} x peer"), self.value >= min * peer()),
            Budget::TimesPeerMax(max) => (format!("<= {max} x peer"), self.value <= max * peer()),
            Budget::Max(max) => (format!("<= {max} {}", self.unit), self.value <= max),
        };
        self.budget = Some(told);
        self.budget_held = Some(is_held);
        self
    }

    /// The cells of the Markdown table.
    fn cells(&self) -> Vec<String> {
        let budget = match (&self.budget, self.budget_held) {
            (Some(budget), Some(true)) => format!("{budget}: held"),
            (Some(budget), _) => format!("{budget}: MISSED"),
            (None, _) => String::new(),
        };
        vec![
            self.name.clone(),
            short(self.value),
            self.unit.to_owned(),
            format!("{} .. {}", short(self.min), short(self.max)),
            self.peer.clone().unwrap_or_default(),
            self.peer_value.map(short).unwrap_or_default(),
            self.ratio
                .map(|ratio| format!("{ratio:.2}"))
                .unwrap_or_default(),
            budget,
        ]
    }
}

/// What a benchmark has to tell.
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    /// Under which conditions, what was skipped and why: one sentence each.
    pub(crate) notes: Vec<String>,
    /// Drawn, and told as a table where the rows do not tell it.
    pub(crate) picture: Option<Picture>,
}

impl From<Vec<Row>> for Outcome {
    fn from(rows: Vec<Row>) -> Self {
        Self {
            rows,
            notes: Vec::new(),
            picture: None,
        }
    }
}

/// The outcome as Markdown: a table of the rows, a list of the notes.
pub(crate) fn markdown(outcome: &Outcome) -> String {
    let mut text = table(&outcome.rows);
    let table = outcome
        .picture
        .as_ref()
        .and_then(|picture| picture.table(short));
    if let Some(table) = table {
        text.push('\n');
        text.push_str(&aligned(&table));
    }
    for (at, note) in outcome.notes.iter().enumerate() {
        text.push_str(if at == 0 { "\n* " } else { "* " });
        text.push_str(note);
        text.push('\n');
    }
    text
}

/// The rows as a Markdown table.
fn table(rows: &[Row]) -> String {
    let header = [
        "name",
        "value",
        "unit",
        "min .. max",
        "peer",
        "peer value",
        "ratio",
        "budget",
    ];
    let mut table: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(Row::cells));
    aligned(&table)
}

/// A header and rows as a Markdown table.
fn aligned(table: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..table[0].len())
        .map(|column| {
            table
                .iter()
                .map(|cells| cells[column].len())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (at, cells) in table.iter().enumerate() {
        for (cell, &width) in cells.iter().zip(&widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
        if at == 0 {
            for &width in &widths {
                text.push_str(&format!("|{}", "-".repeat(width + 2)));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Three digits or more, as many as tell something.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        big if big >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The file that `--json` asks for.
#[derive(Serialize)]
struct Document<'a> {
    bench: &'a str,
    rounds: u32,
    rows: &'a [Row],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
}

/// Writes the outcome to `path`.
pub(crate) fn write_json(
    path: &Path,
    bench: &str,
    rounds: u32,
    outcome: &Outcome,
) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(&Document {
        bench,
        rounds,
        rows: &outcome.rows,
        notes: &outcome.notes,
    })?;
    text.push('\n');
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, median) in [
            (vec![3.0], 3.0),
            (vec![3.0, 1.0], 2.0),
            (vec![9.0, 1.0, 2.0], 2.0),
            (vec![4.0, 1.0, 100.0, 2.0], 3.0),
        ] {
            assert_eq!(Samples::new(values).median(), median);
        }
    }

    #[test]
    fn rounds_are_interleaved_and_the_first_is_dropped() {
        let order = std::cell::RefCell::new(String::new());
        let mut calls = 0.0;
        let mut contenders = [
            Contender::new("a", || {
                order.borrow_mut().push('a');
                calls += 1.0;
                Ok(vec![calls, 0.5])
            }),
            Contender::new("b", || {
                order.borrow_mut().push('b');
                Ok(vec![1.0])
            }),
        ];
        let measured = interleave(3, &mut contenders).expect("both measure");
        assert_eq!(measured.of("a", 0).median(), 3.0);
        assert_eq!(measured.of("a", 1).median(), 0.5);
        drop(contenders);
        assert_eq!(order.into_inner(), "abababab");
    }

    #[test]
    fn a_row_knows_its_ratio_and_its_budget() {
        let (ours, peer) = (Samples::new(vec![12.0]), Samples::new(vec![8.0]));
        for (budget, held) in [
            (Budget::AbovePeerMax(3.0), false),
            (Budget::AbovePeerMax(4.0), true),
            (Budget::TimesPeerMin(1.5), true),
            (Budget::TimesPeerMin(1.6), false),
            (Budget::TimesPeerMax(1.4), false),
            (Budget::TimesPeerMax(1.5), true),
            (Budget::Max(11.9), false),
            (Budget::Max(12.0), true),
        ] {
            let row = Row::new("lock", "ns", &ours)
                .beside("std", &peer)
                .within(budget);
            assert_eq!(row.ratio, Some(1.5));
            assert_eq!(row.budget_held, Some(held));
        }
    }

    #[test]
    fn json_leaves_out_what_is_not_there() {
        let row = Row::new("faults", "1/s", &Samples::new(vec![2.0, 4.0]));
        let text = serde_json::to_string(&row).expect("numbers and strings");
        assert_eq!(
            text,
            r#"{"name":"faults","value":3.0,"unit":"1/s","min":2.0,"max":4.0}"#
        );
    }
}
