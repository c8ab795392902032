//! Charges: each goes to every level from the memory cgroup up to its root, or to none.
//!
//! A frame that is free at one level and not at another is given back at once. Who waits, waits at
//! the level that had none, and is woken when one comes free there.
//!
//! Linux counterpart: `try_charge_memcg`, `mem_cgroup_handle_over_high`.

use super::Memcg;
use super::frames::WaitFor;
use super::stat::count;
use crate::addr::PAGE_SIZE;
use crate::fault::FaultError;
use crate::limits::{THROTTLE_MAX, THROTTLE_MIN, total_reserve};
use crate::mm_struct::Mm;
use crate::swap::{Charge, NoRoom, Owner, Scratch, Stored};
use core::ops::ControlFlow;
use core::time::Duration;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// Over `high` by this share of it, a thread waits as long as it ever does.
const THROTTLE_SHARE: u64 = 8;

/// A charge that could not be had.
enum NoFrame<'a> {
    /// This level has none.
    At(&'a Memcg),
    /// The one who waited must not go on.
    Cancelled,
}

impl Memcg {
    /// This memory cgroup and those that it is in, from the bottom up.
    pub(crate) fn levels(&self) -> impl Iterator<Item = &Self> {
        core::iter::successors(Some(self), |level| level.parent.as_deref())
    }

    /// Frames that may be taken here before reclaim should have made room.
    pub(crate) fn room(&self) -> u64 {
        let frames = self.frames.counter();
        let usage = frames.usage();
        let to_high = self.high_frames().saturating_sub(usage);
        let total = &self.store_charges.total_bytes;
        let to_total = total.free().saturating_sub(total_reserve(total.max())) / PAGE_BYTES;
        frames.free().min(to_high).min(to_total)
    }

    fn try_charge_here(&self) -> bool {
        let total = &self.store_charges.total_bytes;
        let reserve = total_reserve(total.max());
        // Before a frame is taken: to give it back wakes all who wait, this thread first, which
        // would look again and again.
        if total.free() < PAGE_BYTES + reserve || self.frames.counter().try_charge(1).is_none() {
            return false;
        }
        let is_charged = total.try_charge_leaving(PAGE_BYTES, reserve).is_some();
        if !is_charged {
            self.frames.undo(1);
        }
        is_charged
    }

    /// Charges a frame at every level, or says which has none.
    fn try_charge_levels(&self) -> Result<(), NoFrame<'_>> {
        for level in self.levels() {
            if !level.try_charge_here() {
                for below in self.levels().take_while(|below| !below.is(level)) {
                    below.store_charges.total_bytes.uncharge(PAGE_BYTES);
                    below.frames.undo(1);
                }
                return Err(NoFrame::At(level));
            }
        }
        Ok(())
    }

    /// Gives `n` frames back.
    pub(crate) fn uncharge_frames(&self, n: u64) {
        for level in self.levels() {
            level.store_charges.total_bytes.uncharge(n * PAGE_BYTES);
            level.frames.uncharge(n);
        }
    }

    /// Charges a frame if one is free, and wakes reclaim when few are left.
    pub(crate) fn try_charge_frame(&self) -> bool {
        // Nobody goes before those who wait already.
        let is_charged = self.levels().all(|level| level.frames.nr_waiting() == 0)
            && self.try_charge_levels().is_ok();
        self.kick_if_few();
        is_charged
    }

    /// Charges a frame for a fault of `mm`: from what is free, or waits for it. Above `high`, the
    /// thread is held up for `hold_max` at most.
    pub(crate) fn charge_fault(&self, mm: &Mm, hold_max: Duration) -> Result<(), FaultError> {
        if !self.try_charge_frame() {
            count(&self.stat.pgfault_waited);
            self.wait_for_frame(mm)?;
            // The worker may have gone to sleep because this frame was free, while others still
            // wait.
            self.kick_if_few();
        }
        self.throttle(mm, hold_max);
        Ok(())
    }

    fn wait_for_frame(&self, mm: &Mm) -> Result<(), FaultError> {
        let is_cancelled = || mm.is_killed() || self.is_stopped();
        let _stalled = self.stall();
        let started_ns = self.clock.now_ns();
        let deadline = self.limits.fault_deadline;
        let until_ns = started_ns.saturating_add(deadline.as_nanos() as u64);
        let mut at = self;
        loop {
            let attempt = || {
                if is_cancelled() {
                    return ControlFlow::Break(Err(NoFrame::Cancelled));
                }
                match self.try_charge_levels() {
                    Err(NoFrame::At(level)) if level.is(at) => ControlFlow::Continue(()),
                    Ok(()) => {
                        self.levels().for_each(|level| level.frames.note_served());
                        ControlFlow::Break(Ok(()))
                    }
                    result => ControlFlow::Break(result),
                }
            };
            count(&at.stat.event_max);
            let kick = || self.reclaim.kick();
            match at
                .frames
                .wait(WaitFor::Frame, (&*self.clock, until_ns), attempt, kick)
            {
                Some(Ok(())) => return Ok(()),
                // There is one here now, and none there.
                Some(Err(NoFrame::At(level))) => at = level,
                Some(Err(NoFrame::Cancelled)) if mm.is_killed() => return Err(FaultError::Killed),
                Some(Err(NoFrame::Cancelled)) => return Err(FaultError::Unmapped),
                None => {
                    count(&self.stat.pgfault_noframe);
                    let waited_ns = self.clock.now_ns().saturating_sub(started_ns);
                    let waited = Duration::from_nanos(waited_ns);
                    return Err(FaultError::NoFrame { waited });
                }
            }
        }
    }

    /// Holds what the store may need for `nr_pages` of the total at every level, or nothing: a
    /// frame that is used again must leave as much of the total as one that is charged.
    pub(crate) fn hold_total(&self, nr_pages: u64) -> Option<HeldTotal<'_>> {
        // A slot is never twice as large as a page.
        let bytes = 2 * nr_pages * PAGE_BYTES;
        let mut held = HeldTotal {
            memcg: self,
            bytes,
            nr_levels: 0,
        };
        for level in self.levels() {
            let total = &level.store_charges.total_bytes;
            total.try_charge_leaving(bytes, total_reserve(total.max()))?;
            held.nr_levels += 1;
        }
        Some(held)
    }

    /// `n` frames came free and were used again at once.
    pub(crate) fn note_reused(&self, n: u64) {
        for level in self.levels() {
            level.frames.note_reused(n);
        }
    }

    /// Everybody who takes a frame asks this: with the last free frame somebody wakes reclaim.
    pub(crate) fn kick_if_few(&self) {
        if self.levels().any(|level| level.room() < level.marks().low) {
            self.reclaim.kick();
        }
    }

    /// Holds up a thread that has taken a frame above `high`, the longer the more is above it, and
    /// until there is room. It has its frame, and goes on in any case: so there is no memory
    /// cgroup above `high` in which nobody gets anywhere.
    fn throttle(&self, mm: &Mm, hold_max: Duration) {
        for level in self.levels() {
            let (high, usage) = (level.high_frames(), level.frames.counter().usage());
            let delay = throttle_delay(usage, high).min(hold_max);
            if usage > high {
                count(&level.stat.event_high);
            }
            if delay.is_zero() {
                continue;
            }
            let is_over = || {
                let usage = level.frames.counter().usage();
                match usage <= level.high_frames() || mm.is_killed() || self.is_stopped() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let _stalled = self.stall();
            let until_ns = self.clock.now_ns() + delay.as_nanos() as u64;
            let kick = || self.reclaim.kick();
            let clock = &*self.clock;
            let _ = level
                .frames
                .wait(WaitFor::Room, (clock, until_ns), is_over, kick);
        }
    }
}

/// A part of the total, until dropped.
pub(crate) struct HeldTotal<'a> {
    memcg: &'a Memcg,
    bytes: u64,
    nr_levels: usize,
}

impl Drop for HeldTotal<'_> {
    fn drop(&mut self) {
        for level in self.memcg.levels().take(self.nr_levels) {
            level.store_charges.total_bytes.uncharge(self.bytes);
            level.frames.tell_of_room();
        }
    }
}

/// How long a thread waits that finds `usage` frames in use above `high`: it grows with the square
/// of what is above.
fn throttle_delay(usage: u64, high: u64) -> Duration {
    let over = usage
        .saturating_sub(high)
        .saturating_mul(THROTTLE_SHARE * 1000);
    let permille = (over / high.max(1)).min(1000) as u32;
    let delay = THROTTLE_MAX * permille / 1000 * permille / 1000;
    if delay < THROTTLE_MIN {
        Duration::ZERO
    } else {
        delay
    }
}

/// Charges of what is stored at every level, or at none.
impl Charge for Memcg {
    fn try_charge(&self, bytes: u64) -> bool {
        for level in self.levels() {
            if !level.store_charges.try_charge(bytes) {
                for below in self.levels().take_while(|below| !below.is(level)) {
                    below.uncharge_stored_here(bytes);
                }
                return false;
            }
        }
        true
    }

    fn uncharge(&self, bytes: u64) {
        for level in self.levels() {
            level.uncharge_stored_here(bytes);
        }
    }
}

impl Memcg {
    /// Who waits for a frame may have one, and wait for the total alone.
    fn uncharge_stored_here(&self, bytes: u64) {
        if bytes > 0 {
            self.store_charges.uncharge(bytes);
            self.frames.tell_of_room();
        }
    }

    /// Stores a page, and charges it.
    pub(crate) fn store(
        &self,
        owner: Owner,
        contents: &[u8; PAGE_SIZE],
        scratch: &mut Scratch,
    ) -> Result<Stored, NoRoom> {
        if !self.try_charge_swap() {
            return Err(NoRoom::for_any());
        }
        let stored = self.zswap.store_for(self, owner, contents, scratch);
        if stored.is_err() {
            self.uncharge_swap();
            self.kick_compaction();
        }
        self.kick_write_back();
        stored
    }

    /// Gives a stored copy back.
    pub(crate) fn free_stored(&self, stored: Stored) {
        match (stored, self.file()) {
            (Stored::File { handle, .. }, Some(file)) => {
                file.free(handle);
                let levels = self.levels();
                levels.for_each(|level| level.store_charges.leave_file());
            }
            _ => self.leave_slot(stored),
        }
        self.uncharge_swap();
    }

    /// The contents of a stored page go from its slot to the file. Called before anybody can find
    /// them there, and give them back.
    pub(crate) fn note_in_file(&self) {
        self.levels()
            .for_each(|level| level.store_charges.enter_file());
    }

    /// Gives the slot of a page back that is still charged as stored.
    pub(crate) fn leave_slot(&self, stored: Stored) {
        let bytes = self.zswap.charge_of(stored);
        if self.zswap.free(stored) {
            self.kick_compaction();
        }
        Charge::uncharge(self, bytes);
    }

    /// Whether there is room now for what there was none for.
    pub(crate) fn has_room_for(&self, refused: NoRoom) -> bool {
        let bytes = refused.slot_bytes();
        self.levels()
            .all(|level| level.store_charges.has_room(bytes))
            && self.zswap.has_room_for(refused)
    }

    fn try_charge_swap(&self) -> bool {
        for level in self.levels() {
            if level.store_charges.swap_pages.try_charge(1).is_none() {
                for below in self.levels().take_while(|below| !below.is(level)) {
                    below.store_charges.swap_pages.uncharge(1);
                }
                return false;
            }
        }
        true
    }

    fn uncharge_swap(&self) {
        for level in self.levels() {
            level.store_charges.swap_pages.uncharge(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(usage: u64, high: u64, delay_ms: u64) {
        assert_eq!(
            throttle_delay(usage, high).as_millis(),
            u128::from(delay_ms)
        );
    }

    #[test]
    fn a_thread_waits_longer_the_more_is_above_high() {
        check(900, 1000, 0);
        check(1000, 1000, 0);
        check(1001, 1000, 0);
        check(1062, 1000, 24);
        check(1125, 1000, 100);
        check(5000, 1000, 100);
        check(5, u64::MAX, 0);
        check(1, 0, 100);
    }
}
