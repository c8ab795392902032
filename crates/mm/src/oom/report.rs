//! What is told of a kill.

use super::Ladder;
use crate::mmu_notifier::{Cause, MmId};
use core::fmt;
use std::sync::Arc;

/// Reports that are kept; older ones are dropped.
pub(super) const REPORTS_MAX: usize = 64;

/// Holders that one report can name.
pub(super) const SKIPPED_MAX: usize = 8;

/// Somebody who did not let go of memory, and of how much.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The name of the subscription or of who pinned it, or what else held the memory.
    pub holder: Arc<str>,
    /// How it held it.
    pub how: Held,
    /// Pages left behind because of it, in the last pass. A page that several have pinned counts
    /// for each of them.
    pub pages: u64,
}

/// How memory was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// A subscription refused, in this way.
    Refused(Cause),
    /// It was not asked at all; see [`Reaping::GivesUp`](super::Reaping::GivesUp).
    NotAsked,
    /// By pins: in this name (see [`Mm::pin_holder`](crate::Mm::pin_holder)), or in nobody's.
    Pinned,
    /// A thread was in the middle of a fault, or changed the mappings.
    InUse,
}

impl Held {
    /// What the holder did, as the end of a sentence that begins with its name; `None` where the
    /// name says it all.
    pub const fn text(self) -> Option<&'static str> {
        match self {
            Self::Refused(cause) => Some(cause.text()),
            Self::NotAsked | Self::Pinned | Self::InUse => None,
        }
    }
}

/// Candidates that one report can name.
pub(super) const CONSIDERED_MAX: usize = 8;

/// An address space that could have been killed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Considered {
    /// Its name.
    pub name: Arc<str>,
    /// The pages that would come free, and the adjustment.
    pub badness: i64,
    /// Frames that it held.
    pub frames: u64,
    /// Pages that it had in the store.
    pub swapped: u64,
    /// Its adjustment, in thousandths of the limit.
    pub oom_score_adj: i32,
}

/// Why an address space was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Its badness was the highest.
    Badness,
    /// Somebody asked for it.
    Asked,
    /// It is in the group of the one whose badness was the highest.
    Group {
        /// That one.
        of: MmId,
    },
}

/// The story of one kill. Times are nanoseconds after the decision.
#[derive(Clone, Debug)]
pub struct OomReport {
    /// Who was killed.
    pub mm: MmId,
    /// Its name.
    pub victim: Arc<str>,
    /// Why this one.
    pub reason: Reason,
    /// Its badness.
    pub badness: i64,
    /// The candidates of the highest badness, which comes first; empty for one that was killed
    /// with its group.
    pub considered: Vec<Considered>,
    /// How many address spaces were considered.
    pub candidates: u64,
    /// Frames charged when the decision fell, and their bound.
    pub frames: (u64, u64),
    /// Bytes in the compressed store when the decision fell, and their bound.
    pub zswap: (u64, u64),
    /// What the victim held: frames, stored pages.
    pub held: (u64, u64),
    /// When the decision fell, on the clock of the memory cgroup.
    pub killed_at_ns: u64,
    /// When the first page came free; `None` when none did.
    pub first_page_ns: Option<u64>,
    /// When the first pass ended.
    pub first_pass_ns: Option<u64>,
    /// When the reaper was done, or gave up; `None` while it works.
    pub done_ns: Option<u64>,
    /// When the last page was back; `None` while somebody holds one (see
    /// [`skipped`](Self::skipped)): it is not mapped any more, and still charged.
    pub back_ns: Option<u64>,
    /// Passes over the victim.
    pub passes: u32,
    /// Frames given back.
    pub freed_frames: u64,
    /// Stored pages given back.
    pub freed_swapped: u64,
    /// Who held what back, most pages first.
    pub skipped: Vec<Skipped>,
    /// What was tried before.
    pub ladder: Ladder,
}

impl OomReport {
    /// Frames of the victim that came free, in bytes.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_frames * crate::addr::PAGE_SIZE as u64
    }
}

impl fmt::Display for OomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms =
            |ns: Option<u64>| ns.map_or("never".into(), |ns| format!("{:.3} ms", ns as f64 / 1e6));
        match self.reason {
            Reason::Badness => writeln!(
                f,
                "killed {}: badness {}, the highest of {}",
                self.victim, self.badness, self.candidates
            )?,
            Reason::Asked => writeln!(f, "killed {}: somebody asked for it", self.victim)?,
            Reason::Group { of } => writeln!(
                f,
                "killed {}: with the group of address space {}",
                self.victim, of.0
            )?,
        }
        for other in self.considered.iter().skip(1) {
            writeln!(
                f,
                "not {}: badness {} ({} frames, {} stored pages, adjustment {})",
                other.name, other.badness, other.frames, other.swapped, other.oom_score_adj
            )?;
        }
        if self.reason != Reason::Asked {
            write!(f, "because nothing could be freed: ")?;
        }
        writeln!(
            f,
            "{} of {} frames, {} of {} compressed bytes in use",
            self.frames.0, self.frames.1, self.zswap.0, self.zswap.1
        )?;
        self.ladder.fmt(f)?;
        writeln!(
            f,
            "it held {} frames and {} stored pages",
            self.held.0, self.held.1
        )?;
        writeln!(
            f,
            "first page free after {}, first pass after {}, done after {} and {} passes: {} frames \
             and {} stored pages came back",
            ms(self.first_page_ns),
            ms(self.first_pass_ns),
            ms(self.done_ns),
            self.passes,
            self.freed_frames,
            self.freed_swapped
        )?;
        match &self.skipped[..] {
            [] => write!(f, "nobody held anything back"),
            skipped => {
                write!(f, "left behind:")?;
                for Skipped { holder, how, pages } in skipped {
                    write!(f, " {pages} pages held by {holder}")?;
                    match how.text() {
                        Some(text) => write!(f, ", which {text};")?,
                        None => write!(f, ";")?,
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Ladder {
    /// A line for each rung that gave something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shrunk > 0 {
            writeln!(f, "before, shrinkers gave {} things back", self.shrunk)?;
        }
        if self.discarded > 0 {
            writeln!(
                f,
                "before, {} pages that nobody needs were discarded",
                self.discarded
            )?;
        }
        if let Some(name) = &self.cancelling {
            writeln!(
                f,
                "before, {name} was asked for memory, and said that it would give some"
            )?;
        }
        Ok(())
    }
}

/// The reports of a memory cgroup, oldest first. Everything that they need is reserved at the
/// start: who runs out of memory must not ask for any.
pub(super) struct Reports {
    told: Vec<OomReport>,
    /// Lists for reports to come; for each that there is still room for.
    spare: Vec<Lists>,
}

/// The lists of a report, empty and with room.
pub(super) struct Lists {
    pub(super) considered: Vec<Considered>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) ladder: Ladder,
}

impl Reports {
    pub(super) fn new() -> Self {
        let lists = |_| Lists {
            considered: Vec::with_capacity(CONSIDERED_MAX),
            skipped: Vec::with_capacity(SKIPPED_MAX),
            ladder: Ladder::default(),
        };
        Self {
            told: Vec::with_capacity(REPORTS_MAX),
            spare: (0..REPORTS_MAX).map(lists).collect(),
        }
    }

    /// Lists for the next report; when there are as many as are kept, those of the oldest.
    pub(super) fn empty_lists(&mut self) -> Lists {
        self.spare.pop().unwrap_or_else(|| {
            let oldest = self.told.remove(0);
            let (mut considered, mut skipped) = (oldest.considered, oldest.skipped);
            considered.clear();
            skipped.clear();
            Lists {
                considered,
                skipped,
                ladder: Ladder::default(),
            }
        })
    }

    /// Adds a report, whose lists are from [`Reports::empty_lists`].
    pub(super) fn push(&mut self, report: OomReport) {
        assert!(
            self.told.len() < REPORTS_MAX
                && report.skipped.capacity() >= SKIPPED_MAX
                && report.considered.capacity() >= CONSIDERED_MAX,
            "a report without a place"
        );
        self.told.push(report);
    }

    pub(super) fn told(&self) -> &[OomReport] {
        &self.told
    }

    /// The newest report of a victim.
    pub(super) fn last_of(&mut self, victim: MmId) -> Option<&mut OomReport> {
        let mut newest_first = self.told.iter_mut().rev();
        newest_first.find(|report| report.mm == victim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_reports_are_kept_in_what_was_reserved() {
        let mut reports = Reports::new();
        let reserved = reports.told.as_ptr();
        for badness in 0..3 * REPORTS_MAX as i64 {
            let Lists {
                considered,
                skipped,
                ladder,
            } = reports.empty_lists();
            assert_eq!((skipped.len(), skipped.capacity()), (0, SKIPPED_MAX));
            assert_eq!(
                (considered.len(), considered.capacity()),
                (0, CONSIDERED_MAX)
            );
            reports.push(OomReport {
                mm: MmId(1),
                victim: "victim".into(),
                reason: Reason::Badness,
                badness,
                considered,
                candidates: 1,
                frames: (0, 0),
                zswap: (0, 0),
                held: (0, 0),
                killed_at_ns: 0,
                first_page_ns: None,
                first_pass_ns: None,
                done_ns: None,
                back_ns: None,
                passes: 0,
                freed_frames: 0,
                freed_swapped: 0,
                skipped,
                ladder,
            });
            let newest = reports.last_of(MmId(1)).expect("pushed above");
            assert_eq!(newest.badness, badness);
            let holder = Skipped {
                holder: "gpu".into(),
                how: Held::Refused(Cause::WouldBlock),
                pages: 1,
            };
            newest.skipped.resize(SKIPPED_MAX, holder);
        }
        assert_eq!(reports.told.as_ptr(), reserved, "nothing grew");
        let kept = reports.told().iter().map(|report| report.badness);
        assert!(kept.eq(2 * REPORTS_MAX as i64..3 * REPORTS_MAX as i64));
    }
}
