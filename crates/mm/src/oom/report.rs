//! What is told of a kill.

use crate::mmu_notifier::MmId;
use core::fmt;
use std::sync::Arc;

/// Reports that are kept; older ones are dropped.
pub(super) const REPORTS_MAX: usize = 64;

/// Holders that one report can name.
pub(super) const SKIPPED_MAX: usize = 8;

/// Somebody who did not let go of memory, and of how much.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The name of the subscription, or what else held the memory.
    pub holder: Arc<str>,
    /// Pages left behind because of it, in the last pass.
    pub pages: u64,
}

/// The story of one kill. Times are nanoseconds after the decision.
#[derive(Clone, Debug)]
pub struct OomReport {
    /// Who was killed.
    pub mm: MmId,
    /// Its name.
    pub victim: Arc<str>,
    /// Its badness.
    pub badness: i64,
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
    /// Passes over the victim.
    pub passes: u32,
    /// Frames given back.
    pub freed_frames: u64,
    /// Stored pages given back.
    pub freed_swapped: u64,
    /// Who held what back, most pages first.
    pub skipped: Vec<Skipped>,
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
        writeln!(
            f,
            "killed {}: badness {}, the highest of {}",
            self.victim, self.badness, self.candidates
        )?;
        writeln!(
            f,
            "because nothing could be freed: {} of {} frames, {} of {} compressed bytes in use",
            self.frames.0, self.frames.1, self.zswap.0, self.zswap.1
        )?;
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
                for Skipped { holder, pages } in skipped {
                    write!(f, " {pages} pages held by {holder};")?;
                }
                Ok(())
            }
        }
    }
}

/// The reports of a memory cgroup, oldest first. Everything that they need is reserved at the
/// start: who runs out of memory must not ask for any.
pub(super) struct Reports {
    told: Vec<OomReport>,
    /// Lists of holders for reports to come; one for each that there is still room for.
    spare: Vec<Vec<Skipped>>,
}

impl Reports {
    pub(super) fn new() -> Self {
        let list = |_| Vec::with_capacity(SKIPPED_MAX);
        Self {
            told: Vec::with_capacity(REPORTS_MAX),
            spare: (0..REPORTS_MAX).map(list).collect(),
        }
    }

    /// A list for the next report; when there are as many as are kept, that of the oldest.
    pub(super) fn empty_list(&mut self) -> Vec<Skipped> {
        self.spare.pop().unwrap_or_else(|| {
            let mut list = self.told.remove(0).skipped;
            list.clear();
            list
        })
    }

    /// Adds a report, whose list of holders is from [`Reports::empty_list`].
    pub(super) fn push(&mut self, report: OomReport) {
        assert!(
            self.told.len() < REPORTS_MAX && report.skipped.capacity() >= SKIPPED_MAX,
            "a report without a place"
        );
        self.told.push(report);
    }

    pub(super) fn told(&self) -> &[OomReport] {
        &self.told
    }

    /// The newest report.
    pub(super) fn last(&mut self) -> Option<&mut OomReport> {
        self.told.last_mut()
    }

    /// The newest report of a victim.
    pub(super) fn last_of(&mut self, victim: &str) -> Option<&mut OomReport> {
        let mut newest_first = self.told.iter_mut().rev();
        newest_first.find(|report| *report.victim == *victim)
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
            let skipped = reports.empty_list();
            assert_eq!((skipped.len(), skipped.capacity()), (0, SKIPPED_MAX));
            reports.push(OomReport {
                mm: MmId(1),
                victim: "victim".into(),
                badness,
                candidates: 1,
                frames: (0, 0),
                zswap: (0, 0),
                held: (0, 0),
                killed_at_ns: 0,
                first_page_ns: None,
                first_pass_ns: None,
                done_ns: None,
                passes: 0,
                freed_frames: 0,
                freed_swapped: 0,
                skipped,
            });
            let newest = reports.last_of("victim").expect("pushed above");
            assert_eq!(newest.badness, badness);
            let holder = Skipped {
                holder: "gpu".into(),
                pages: 1,
            };
            newest.skipped.resize(SKIPPED_MAX, holder);
        }
        assert_eq!(reports.told.as_ptr(), reserved, "nothing grew");
        let kept = reports.told().iter().map(|report| report.badness);
        assert!(kept.eq(2 * REPORTS_MAX as i64..3 * REPORTS_MAX as i64));
    }
}
