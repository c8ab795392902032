//! A bar and a few figures while it runs, if somebody is watching.

use crate::args::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// What moves while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) verified_bytes: u64,
    pub(crate) soft_faults: u64,
    pub(crate) hard_faults: u64,
    pub(crate) evictions: u64,
    pub(crate) nr_failures: u64,
    pub(crate) kills: u64,
}

/// The bar on the terminal; nothing where stderr is none.
#[derive(Debug)]
pub(crate) struct Live {
    bar: Option<ProgressBar>,
}

impl Live {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:5} {bar:20} {msg}")
                .expect("a template that was tried");
            ProgressBar::new(1).with_style(style.progress_chars("=> "))
        });
        Self { bar }
    }

    /// Shows how far a part of the run has come.
    pub(crate) fn show(&self, part: &'static str, done: u64, total: u64, figures: &Figures) {
        let Some(bar) = &self.bar else { return };
        bar.set_prefix(part);
        bar.set_length(total.max(1));
        bar.set_position(done.min(total));
        let mut message = format!(
            "{} verified, {} faults, {} evicted",
            Bytes(figures.verified_bytes),
            figures.soft_faults + figures.hard_faults,
            figures.evictions
        );
        if figures.kills > 0 {
            message += ", OOM";
        }
        if figures.nr_failures > 0 {
            message += ", FAILED";
        }
        bar.set_message(message);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
