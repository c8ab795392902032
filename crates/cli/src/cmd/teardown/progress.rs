//! What it waits for, if somebody is watching.

use crate::args::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// A line on the terminal; nothing where stderr is none.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    round: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix}{msg} {elapsed}")
                .expect("a template that was tried");
            ProgressBar::new_spinner().with_style(style)
        });
        Self {
            bar,
            round: String::new(),
        }
    }

    /// Says which round it is, where there are several.
    pub(super) fn begin(&mut self, nr: u32, of: u32) {
        self.round = match of {
            1 => String::new(),
            _ => format!("round {nr} of {of}: "),
        };
        if let Some(bar) = &self.bar {
            bar.set_prefix(self.round.clone());
            bar.reset();
        }
    }

    pub(super) fn show(&self, doing: &'static str, usage_bytes: u64, limit_bytes: u64) {
        let Some(bar) = &self.bar else { return };
        let (usage, limit) = (Bytes(usage_bytes), Bytes(limit_bytes));
        bar.set_message(format!("{doing}: {usage} charged, the limit is {limit};"));
        bar.tick();
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
