//! How much an address space is to blame.
//!
//! Linux counterpart: `oom_badness`.

use crate::mm_struct::Mm;

/// Never chosen.
pub(super) const OOM_SCORE_ADJ_MIN: i32 = -1000;

/// The pages that would come free, plus the adjustment in thousandths of the limit; `None` for
/// who must not be chosen, or would give nothing back.
pub(super) fn badness(mm: &Mm, limit_pages: u64) -> Option<i64> {
    let adj = mm.oom_score_adj();
    if adj == OOM_SCORE_ADJ_MIN || mm.is_killed() {
        return None;
    }
    let pages = (mm.nr_frames() + mm.nr_swapped()) as i64;
    if pages == 0 {
        return None;
    }
    Some(pages + i64::from(adj) * limit_pages as i64 / 1000)
}
