//! The tables of a ring: what is registered, and what is in flight.

use super::area::AreaOwner;
use super::index::{AreaId, SlotNr};
use super::kernel::Queues;
use lockdep::sync::Fence;
use pinless_mm::addr::PageRun;
use pinless_mm::mm_struct::Pin;
use std::sync::Arc;

/// How many pins one pass lets go of.
const RETIRED_BATCH: usize = 16;

/// How far a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotPhase {
    /// Nothing is registered.
    Free,
    /// Registered, for any operation to use.
    Ready,
    /// To be cleared by somebody who may; no new operation uses it.
    Posted,
    /// Cleared; the kernel lets go when the last operation has ended.
    Clearing,
}

/// A place in the kernel's table of buffers.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: SlotPhase,
    pub(super) area: AreaId,
    pub(super) run: PageRun,
    /// Operations in flight that use it.
    pub(super) nr_ops: u32,
    /// When it was last used, by [`State::tick`].
    pub(super) used: u64,
    /// Counts the registrations: an operation remembers which of them it used.
    pub(super) generation: u32,
    /// Signals when the kernel has let go.
    pub(super) released: Option<Fence>,
}

/// How far an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OpPhase {
    /// The place is empty.
    Free,
    /// In the kernel's hands.
    InFlight,
    /// In the kernel's hands, and nobody will ask for the result.
    Orphan,
    /// Finished; the result has not been asked for.
    Done,
    /// Finished, and only its pin is left.
    Retired,
}

/// What must live until the kernel is done with an operation. Its drop may wait, allocate and call
/// back: never under the ring's lock.
#[derive(Debug)]
pub(super) struct Keep {
    #[expect(dead_code, reason = "held for its destructor")]
    pub(super) pin: Pin,
    #[expect(
        dead_code,
        reason = "held for its destructor: the memory and its subscription"
    )]
    pub(super) area: Arc<AreaOwner>,
}

/// A place for an operation.
///
/// # Invariants
///
/// `keep` is there in every phase but `Free`.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) phase: OpPhase,
    /// The slot it uses, and the slot's generation then.
    pub(super) slot: Option<(SlotNr, u32)>,
    pub(super) run: PageRun,
    pub(super) wanted: u32,
    pub(super) result: i32,
    keep: Option<Keep>,
}

/// What was kept for operations that are over. Dropped with no lock held.
pub(super) type Retired = [Option<Keep>; RETIRED_BATCH];

/// Everything that the ring's lock protects. Allocates when it is made and never again.
#[derive(Debug)]
pub(super) struct State {
    pub(super) queues: Queues,
    pub(super) slots: Box<[Slot]>,
    pub(super) ops: Box<[Op]>,
    free_slots: Vec<SlotNr>,
    free_ops: Vec<u32>,
    pub(super) nr_in_flight: u32,
    /// Slots in `Posted`.
    pub(super) nr_posted: u32,
    /// Slots in `Posted` or `Clearing`.
    pub(super) nr_settling: u32,
    nr_retired: u32,
    /// Operations in `Orphan`.
    nr_orphans: u32,
    tick: u64,
    /// Somebody waits in the kernel for completions, and alone takes them.
    pub(super) is_driven: bool,
    /// Threads that wait for the one that does.
    pub(super) nr_followers: u32,
    /// A kick is on its way.
    pub(super) is_kicked: bool,
    /// The doorbell rang and was not answered yet.
    pub(super) is_rung: bool,
    /// The kernel watches the doorbell.
    pub(super) is_armed: bool,
    /// The ring was dropped.
    pub(super) is_closing: bool,
}

impl State {
    pub(super) fn new(queues: Queues, entries: u32, nr_slots: u32) -> Self {
        let slot = |_| Slot {
            phase: SlotPhase::Free,
            area: AreaId(0),
            run: PageRun::new(0, 0),
            nr_ops: 0,
            used: 0,
            generation: 0,
            released: None,
        };
        let op = |_| Op {
            phase: OpPhase::Free,
            slot: None,
            run: PageRun::new(0, 0),
            wanted: 0,
            result: 0,
            keep: None,
        };
        Self {
            queues,
            slots: (0..nr_slots).map(slot).collect(),
            ops: (0..entries).map(op).collect(),
            free_slots: (0..nr_slots).rev().collect(),
            free_ops: (0..entries).rev().collect(),
            nr_in_flight: 0,
            nr_posted: 0,
            nr_settling: 0,
            nr_retired: 0,
            nr_orphans: 0,
            tick: 0,
            is_driven: false,
            nr_followers: 0,
            is_kicked: false,
            is_rung: false,
            is_armed: false,
            is_closing: false,
        }
    }

    pub(super) fn slot(&self, slot: SlotNr) -> &Slot {
        &self.slots[slot as usize]
    }

    pub(super) fn slot_mut(&mut self, slot: SlotNr) -> &mut Slot {
        &mut self.slots[slot as usize]
    }

    pub(super) fn op(&self, op: u32) -> &Op {
        &self.ops[op as usize]
    }

    pub(super) fn op_mut(&mut self, op: u32) -> &mut Op {
        &mut self.ops[op as usize]
    }

    pub(super) fn pop_free_slot(&mut self) -> Option<SlotNr> {
        self.free_slots.pop()
    }

    pub(super) fn push_free_slot(&mut self, slot: SlotNr) {
        self.free_slots.push(slot);
    }

    /// The registered slot that nothing uses and that was used least recently.
    pub(super) fn coldest_idle(&self) -> Option<SlotNr> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.phase == SlotPhase::Ready && slot.nr_ops == 0)
            .min_by_key(|(_, slot)| slot.used)
            .map(|(number, _)| number)
    }

    /// Puts registered memory into a slot that was free.
    pub(super) fn fill_slot(&mut self, number: SlotNr, area: AreaId, run: PageRun, fence: Fence) {
        let slot = self.slot_mut(number);
        assert!(
            slot.phase == SlotPhase::Free && slot.nr_ops == 0,
            "registered in a slot that is in use"
        );
        slot.phase = SlotPhase::Ready;
        (slot.area, slot.run) = (area, run);
        slot.generation = slot.generation.wrapping_add(1);
        slot.released = Some(fence);
    }

    pub(super) fn has_free_op(&self) -> bool {
        !self.free_ops.is_empty()
    }

    /// Takes a place for an operation that is handed to the kernel next.
    pub(super) fn begin_op(
        &mut self,
        slot: Option<SlotNr>,
        run: PageRun,
        wanted: u32,
        keep: Keep,
    ) -> Result<u32, Keep> {
        let Some(number) = self.free_ops.pop() else {
            return Err(keep);
        };
        self.tick += 1;
        let tick = self.tick;
        let slot = slot.map(|slot| {
            let entry = self.slot_mut(slot);
            assert!(
                entry.phase == SlotPhase::Ready,
                "used a slot that is not ready"
            );
            entry.nr_ops += 1;
            entry.used = tick;
            (slot, entry.generation)
        });
        // INVARIANT: the place gets its `keep` with its phase.
        *self.op_mut(number) = Op {
            phase: OpPhase::InFlight,
            slot,
            run,
            wanted,
            result: 0,
            keep: Some(keep),
        };
        self.nr_in_flight += 1;
        Ok(number)
    }

    /// Takes an operation back that the kernel never saw.
    pub(super) fn abort_op(&mut self, number: u32) -> Option<Keep> {
        self.leave_kernel(number);
        self.free_op(number)
    }

    /// The kernel has finished an operation; false if it was not in flight.
    pub(super) fn complete_op(&mut self, number: u32, result: i32) -> bool {
        let next = match self.ops.get(number as usize).map(|op| op.phase) {
            Some(OpPhase::InFlight) => OpPhase::Done,
            Some(OpPhase::Orphan) => {
                self.nr_orphans -= 1;
                self.nr_retired += 1;
                OpPhase::Retired
            }
            _ => return false,
        };
        let op = self.op_mut(number);
        (op.phase, op.result) = (next, result);
        self.leave_kernel(number);
        true
    }

    /// Nobody will ask for the result any more.
    pub(super) fn disown_op(&mut self, number: u32) -> Option<Keep> {
        match self.op(number).phase {
            OpPhase::InFlight => {
                self.op_mut(number).phase = OpPhase::Orphan;
                self.nr_orphans += 1;
                None
            }
            OpPhase::Done => self.finish_op(number),
            phase => unreachable!("an operation with a handle is {phase:?}"),
        }
    }

    /// The result was taken. What was kept goes now, or when the slot has let go.
    pub(super) fn finish_op(&mut self, number: u32) -> Option<Keep> {
        assert!(
            self.op(number).phase == OpPhase::Done,
            "the result of an operation that is not done"
        );
        if self.has_let_go(number) {
            return self.free_op(number);
        }
        self.op_mut(number).phase = OpPhase::Retired;
        self.nr_retired += 1;
        None
    }

    /// Whether a completion is due that nobody may be waiting for.
    pub(super) fn has_unwatched(&self) -> bool {
        if self.is_closing {
            self.nr_in_flight > 0
        } else {
            self.nr_settling > self.nr_posted || self.nr_orphans > 0
        }
    }

    /// Whether some operation's pin waits to be let go of, and can be.
    pub(super) fn has_releasable(&self) -> bool {
        self.nr_retired > 0 && (0..self.ops.len() as u32).any(|op| self.is_releasable(op))
    }

    /// Takes out what was kept for operations that are over. To be dropped without the lock.
    pub(super) fn take_retired(&mut self) -> Retired {
        let mut retired = [const { None }; RETIRED_BATCH];
        if self.nr_retired == 0 {
            return retired;
        }
        let mut places = retired.iter_mut();
        for op in 0..self.ops.len() as u32 {
            if !self.is_releasable(op) {
                continue;
            }
            let Some(place) = places.next() else { break };
            self.nr_retired -= 1;
            *place = self.free_op(op);
        }
        retired
    }

    /// Whether pins of operations on `slot` hold every page of `run`. Such pages stay where they
    /// are, whatever the bracket is about, until the slot has let go of them.
    pub(super) fn is_pinned(&self, slot: SlotNr, run: PageRun) -> bool {
        let this = Some((slot, self.slot(slot).generation));
        let mut next = run.first;
        while next < run.end() {
            let pinned = self
                .ops
                .iter()
                .filter(|op| op.phase != OpPhase::Free && op.slot == this && op.run.contains(next));
            match pinned.map(|op| op.run.end()).max() {
                Some(end) => next = end,
                None => return false,
            }
        }
        true
    }

    fn is_releasable(&self, op: u32) -> bool {
        self.op(op).phase == OpPhase::Retired && self.has_let_go(op)
    }

    /// Whether a finished operation's pin may go: its slot is registered as before, so that an
    /// invalidation will find it, or the kernel has let go of it. While the kernel still holds a
    /// cleared slot, the pin tells the memory manager so. When the ring is closing nothing will
    /// use a slot again, and the tags of the last ones may never come.
    fn has_let_go(&self, op: u32) -> bool {
        if self.is_closing {
            return true;
        }
        let Some((number, generation)) = self.op(op).slot else {
            return true;
        };
        let slot = self.slot(number);
        slot.generation != generation || matches!(slot.phase, SlotPhase::Free | SlotPhase::Ready)
    }

    fn leave_kernel(&mut self, op: u32) {
        self.nr_in_flight -= 1;
        if let Some((slot, generation)) = self.op(op).slot {
            let slot = self.slot_mut(slot);
            // The kernel lets go of a slot after its operations have ended, and not before.
            assert!(
                slot.generation == generation && slot.nr_ops > 0,
                "a slot was used again before its operations had ended"
            );
            slot.nr_ops -= 1;
        }
    }

    fn free_op(&mut self, number: u32) -> Option<Keep> {
        let op = self.op_mut(number);
        (op.phase, op.slot) = (OpPhase::Free, None);
        let keep = op.keep.take();
        self.free_ops.push(number);
        keep
    }
}
