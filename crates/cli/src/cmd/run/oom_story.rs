//! The kill: what was to happen, what did, and the story of it in five lines.

use super::judge::Failure;
use super::stage::{Course, Stage};
use crate::args::Bytes;
use pinless::{OomReport, PAGE_SIZE};
use serde::Serialize;

/// What is told of a kill.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Oom {
    pub(crate) victim: String,
    pub(crate) reason: String,
    pub(crate) candidates: u64,
    /// Those of the highest badness, the victim first.
    pub(crate) considered: Vec<Candidate>,
    pub(crate) badness_pages: i64,
    pub(crate) held_frames: u64,
    pub(crate) held_stored_pages: u64,
    /// Frames that came back, in bytes.
    pub(crate) freed_bytes: u64,
    pub(crate) freed_stored_pages: u64,
    pub(crate) first_page_us: Option<f64>,
    pub(crate) first_pass_us: Option<f64>,
    pub(crate) done_us: Option<f64>,
    pub(crate) passes: u32,
    pub(crate) skipped_holders: Vec<Holder>,
    pub(crate) ladder: Ladder,
}

/// What was tried before the kill.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ladder {
    /// What shrinkers gave back, in things of theirs.
    pub(crate) shrunk: u64,
    /// Pages that nobody needs, and that were discarded.
    pub(crate) discarded_pages: u64,
    /// Who was asked for memory, and said that it would give some.
    pub(crate) cancelling: Option<String>,
}

/// Somebody who could have been killed, in pages.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) badness: i64,
    pub(crate) frames: u64,
    pub(crate) stored: u64,
    pub(crate) oom_score_adj: i32,
}

/// Somebody who did not give memory back.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Holder {
    pub(crate) holder: String,
    /// What it did instead, where there is more to say.
    pub(crate) how: Option<&'static str>,
    pub(crate) pages: u64,
}

pub(super) fn failure(whose: &str, what: &str) -> Failure {
    Failure {
        whose: whose.to_owned(),
        actor: "OOM killer".to_owned(),
        step: "kill and reap",
        page: None,
        what: what.to_owned(),
    }
}

/// The leaking tenant was killed, alone, reaped but for what its device held, and the others went
/// on.
pub(super) fn judge(stage: &Stage, course: &Course) {
    let leaker = stage.leaker();
    let fail = |what: &str| stage.judge.fail(failure(&leaker.name, what));
    let reports = stage.pinless.memcg().oom_reports();
    let [report] = &reports[..] else {
        return fail(&format!("{} victims instead of one", reports.len()));
    };
    if *report.victim != *leaker.name {
        return fail(&format!("{} was killed in its place", report.victim));
    }
    let nic = leaker.hanging.as_ref().map(|dma| dma.device.name());
    let is_named = |skipped: &pinless_mm::oom::Skipped| Some(&*skipped.holder) == nic;
    if !report.skipped.iter().any(is_named) {
        fail("its device hung, and the report does not name it");
    }
    let held: u64 = report.skipped.iter().map(|skipped| skipped.pages).sum();
    let left = leaker.mm.nr_frames() + leaker.mm.nr_swapped();
    if left > held {
        fail(&format!(
            "it still has {left} pages, of which {held} were held by somebody"
        ));
    }
    let Some(ops_at_kill) = &course.ops_at_kill else {
        return fail("it was not reaped");
    };
    for (tenant, before) in stage.tenants.iter().zip(ops_at_kill) {
        if tenant.index != leaker.index && tenant.ops() == *before {
            let what = format!("it did nothing more after {} was killed", leaker.name);
            stage.judge.fail(failure(&tenant.name, &what));
        }
    }
}

impl Oom {
    pub(crate) fn new(report: &OomReport) -> Self {
        let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e3);
        let bytes = |pages: u64| Bytes(pages * PAGE_SIZE as u64);
        let ((frames, frames_max), (zswap, zswap_max)) = (report.frames, report.zswap);
        Self {
            victim: report.victim.to_string(),
            reason: format!(
                "nothing could be freed: {} of {} frames, {} of {} compressed",
                bytes(frames),
                bytes(frames_max),
                Bytes(zswap),
                Bytes(zswap_max)
            ),
            candidates: report.candidates,
            considered: report
                .considered
                .iter()
                .map(|other| Candidate {
                    name: other.name.to_string(),
                    badness: other.badness,
                    frames: other.frames,
                    stored: other.swapped,
                    oom_score_adj: other.oom_score_adj,
                })
                .collect(),
            badness_pages: report.badness,
            held_frames: report.held.0,
            held_stored_pages: report.held.1,
            freed_bytes: report.freed_bytes(),
            freed_stored_pages: report.freed_swapped,
            first_page_us: us(report.first_page_ns),
            first_pass_us: us(report.first_pass_ns),
            done_us: us(report.done_ns),
            passes: report.passes,
            skipped_holders: report
                .skipped
                .iter()
                .map(|skipped| Holder {
                    holder: skipped.holder.to_string(),
                    how: skipped.how.text(),
                    pages: skipped.pages,
                })
                .collect(),
            ladder: Ladder {
                shrunk: report.ladder.shrunk,
                discarded_pages: report.ladder.discarded,
                cancelling: report.ladder.cancelling.as_deref().map(str::to_owned),
            },
        }
    }

    /// Who, why, what it held, how long each step took, what was skipped and whose fault.
    pub(crate) fn lines(&self) -> [String; 5] {
        let ms = |us: Option<f64>| us.map_or("never".into(), |us| format!("{:.3} ms", us / 1e3));
        let bytes = |pages: u64| Bytes(pages * PAGE_SIZE as u64);
        let skipped: Vec<_> = self
            .skipped_holders
            .iter()
            .map(|skipped| {
                let holder = &skipped.holder;
                let how = skipped
                    .how
                    .map_or(String::new(), |how| format!(", which {how}"));
                format!("{} held by {holder}{how}", bytes(skipped.pages))
            })
            .collect();
        [
            format!(
                "{} was killed: badness {} pages, the highest of {}",
                self.victim, self.badness_pages, self.candidates
            ),
            self.reason.clone(),
            format!(
                "it had {} in frames and {} stored; {} and {} came back",
                bytes(self.held_frames),
                bytes(self.held_stored_pages),
                Bytes(self.freed_bytes),
                bytes(self.freed_stored_pages)
            ),
            format!(
                "first page {}, first pass {}, all {} in {} passes",
                ms(self.first_page_us),
                ms(self.first_pass_us),
                ms(self.done_us),
                self.passes
            ),
            match &skipped[..] {
                [] => "nobody kept anything back".to_owned(),
                skipped => format!("left behind: {}", skipped.join(", ")),
            },
        ]
    }
}
