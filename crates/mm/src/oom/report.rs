//! What is told of a kill.

use core::fmt;
use std::sync::Arc;

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
