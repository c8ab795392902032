//! What the handles of a ring share: its lock, and who takes completions when.
//!
//! # Who drives the completion queue
//!
//! * Whoever waits for an operation drives: it takes what has come, and waits in the kernel with
//!   no lock held. One thread at a time does that; the others wait for it, as *followers*.
//! * Other code takes completions only in passing, under the lock (a notifier, to see that a slot
//!   was let go of). If it takes one while somebody waits in the kernel, that thread may have been
//!   about to wait for this very one, so it is *kicked*: an empty request completes and wakes it.
//! * A completion that nobody may be waiting for (the release of a slot that an invalidation took
//!   away under an operation in flight, or an operation whose handle was dropped) is the business
//!   of the ring's own *service thread*. So a bracket that waits for a slot never depends on the
//!   thread that opened the bracket, even if that thread holds the operation's handle.
//! * On a single-issuer ring only the owner registers and submits. Others post what they want to
//!   be cleared, and ring the doorbell: an owner that waits wakes up and does it; between its calls
//!   nobody can make it hurry. Its own brackets first do what others have posted, and completions
//!   are taken by the service thread here too, so it never waits for itself.
//!
//! # Lock order
//!
//! `host.io_uring.state`, then `host.io_uring.index` (short). Under neither is memory pinned,
//! unpinned, touched or allocated, nor a subscription made or ended: pins of finished operations
//! are taken out under the lock and dropped after it. Under the state lock the kernel is called to
//! register (it pins pages that are pinned already, so it meets no fault) and to submit (which
//! does not wait); never to wait.

use super::Kind;
use super::area::AreaOwner;
use super::error::OpError;
use super::index::{AreaId, Index, SlotNr};
use super::kernel::{Kernel, Token, Transfer};
use super::state::{Keep, Slot, SlotPhase, State};
use super::stats::{Counters, add, count};
use crate::fork::is_forked_child;
use core::cell::Cell;
use lockdep::sync::{Condvar, Fence, Mutex, ShortLock};
use pinless_mm::addr::PageRun;
use pinless_mm::mmu_notifier::Event;
use std::sync::Arc;

/// Identifies a thread for as long as it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ThreadMark(usize);

impl ThreadMark {
    fn current() -> Self {
        thread_local! {
            static HERE: Cell<u8> = const { Cell::new(0) };
        }
        HERE.with(|here| Self(core::ptr::from_ref(here).addr()))
    }
}

/// A ring without its handle.
pub(super) struct Core {
    kernel: Kernel,
    pub(super) kind: Kind,
    owner: ThreadMark,
    pub(super) state: Mutex<State>,
    /// Followers wait here.
    completed: Condvar,
    /// The service thread waits here.
    unwatched: Condvar,
    pub(super) index: ShortLock<Index>,
    pub(super) counters: Counters,
}

impl Core {
    pub(super) fn new(kernel: Kernel, kind: Kind, state: State) -> Self {
        let nr_slots = state.slots.len() as u32;
        Self {
            kernel,
            kind,
            owner: ThreadMark::current(),
            state: Mutex::new("host.io_uring.state", state),
            completed: Condvar::new("host.io_uring.completed"),
            unwatched: Condvar::new("host.io_uring.unwatched"),
            index: ShortLock::new("host.io_uring.index", Index::new(nr_slots)),
            counters: Counters::default(),
        }
    }

    /// Whether this thread may submit and register.
    pub(super) fn may_issue(&self) -> bool {
        // In a child of a fork the queues are the parent's.
        let is_owner = self.kind == Kind::Shared || self.owner == ThreadMark::current();
        is_owner && !is_forked_child()
    }

    /// Starts a transfer of pinned pages; `transfer.slot` is chosen here. Returns its number.
    pub(super) fn start_op(
        &self,
        area: &Arc<AreaOwner>,
        run: PageRun,
        mut transfer: Transfer,
        keep: Keep,
    ) -> Result<u32, OpError> {
        // Declared after `keep`, so that the lock is released first when this returns early.
        let mut state = self.state.lock();
        self.carry_out(&mut state);
        if !state.is_driven || !state.has_free_op() {
            self.take_completions_beside(&mut state);
        }
        transfer.slot = self.index.lock().covering(area.id(), run);
        if transfer.slot.is_some() {
            count(&self.counters.hits);
        } else {
            drop(state);
            let fence = Fence::new("host.io_uring.slot");
            state = self.state.lock();
            transfer.slot = self.find_or_install(&mut state, area, run, fence);
        }
        let refused = match state.begin_op(transfer.slot, run, transfer.len, keep) {
            // SAFETY: 1. the table keeps the pages pinned and their memory mapped until the
            // completion has come and the slot has let go (`Keep`, `State::finish_op`); managed
            // memory is never the target of a Rust reference. 2. the slot is ready (`begin_op`
            // asserts it), and it was found or registered for `run`.
            Ok(op) if unsafe { self.push_transfer(&mut state, op, &transfer) } => {
                // What the kernel has no memory for now stays queued; whoever waits hands it over
                // again.
                self.kernel.submit(&mut state.queues);
                return Ok(op);
            }
            Ok(op) => state.abort_op(op),
            Err(keep) => Some(keep),
        };
        let entries = state.ops.len() as u32;
        drop(state);
        drop(refused);
        Err(OpError::Full { entries })
    }

    /// Queues a transfer, making room if need be; false when there is none.
    ///
    /// # Safety
    ///
    /// As for [`Kernel::push_transfer`].
    unsafe fn push_transfer(&self, state: &mut State, op: u32, transfer: &Transfer) -> bool {
        // SAFETY: passed on.
        let is_pushed = unsafe { self.kernel.push_transfer(&mut state.queues, op, transfer) };
        if is_pushed || !self.kernel.submit(&mut state.queues) {
            return is_pushed;
        }
        // SAFETY: passed on; the first try queued nothing.
        unsafe { self.kernel.push_transfer(&mut state.queues, op, transfer) }
    }

    fn find_or_install(
        &self,
        state: &mut State,
        area: &Arc<AreaOwner>,
        run: PageRun,
        fence: Fence,
    ) -> Option<SlotNr> {
        let found = self.index.lock().covering(area.id(), run);
        let slot = found.or_else(|| self.install(state, area, run, fence));
        if slot.is_none() {
            count(&self.counters.bypasses);
        }
        slot
    }

    /// Registers the pages of `run`, which the caller has pinned for writing. `None` when there is
    /// no slot for them now, when they are being invalidated, or when the kernel refuses.
    fn install(
        &self,
        state: &mut State,
        area: &Arc<AreaOwner>,
        run: PageRun,
        fence: Fence,
    ) -> Option<SlotNr> {
        let slot = state.pop_free_slot().or_else(|| self.reuse_slot(state))?;
        // From here on an invalidation of these pages needs the ring's lock, so none begins until
        // the slot is ready; one that is open now keeps us out. The kernel looks the pages up
        // after this, so no translation from before an invalidation is installed after it. Between
        // the pin and this nothing changed: pinned pages stay.
        if !self.index.lock().insert(area.id(), run, slot) {
            state.push_free_slot(slot);
            return None;
        }
        // If the mapping is alive here, its end is announced after this, and the announcement
        // finds the entry. If it is not, the announcement may be over: nobody would tell us again.
        let installed = if area.is_gone() {
            None
        } else {
            // SAFETY: the address lies in the mapping of `area`, whose memory lives until its
            // owner goes. Before that every slot of it is retired (`AreaOwner::drop`), and
            // operations in flight keep the owner. No Rust reference into a mapping is ever made.
            let done = unsafe {
                self.kernel
                    .install(slot, area.address(run.first), run.len_bytes())
            };
            done.inspect_err(|_| count(&self.counters.registration_errors))
                .ok()
        };
        if installed.is_none() {
            self.index.lock().remove(area.id(), run, slot);
            state.push_free_slot(slot);
            return None;
        }
        count(&self.counters.registrations);
        state.fill_slot(slot, area.id(), run, fence);
        Some(slot)
    }

    /// Empties the idle slot that was used least recently.
    fn reuse_slot(&self, state: &mut State) -> Option<SlotNr> {
        let slot = state.coldest_idle()?;
        self.revoke_slot(state, slot);
        self.take_completions_beside(state);
        state.pop_free_slot()
    }

    /// Waits until `done` has an answer, driving the completion queue if nobody else does.
    pub(super) fn drive_until<R>(&self, mut done: impl FnMut(&mut State) -> Option<R>) -> R {
        let mut state = self.state.lock();
        loop {
            self.carry_out(&mut state);
            if !state.is_driven {
                self.take_completions(&mut state);
            }
            if let Some(answer) = done(&mut state) {
                if !state.is_driven && state.nr_followers > 0 {
                    self.completed.notify_all();
                }
                return answer;
            }
            if state.is_driven {
                state.nr_followers += 1;
                state = self.completed.wait(state);
                state.nr_followers -= 1;
                continue;
            }
            let is_submitted = !self.may_issue() || self.kernel.submit(&mut state.queues);
            state.is_driven = true;
            drop(state);
            if is_submitted {
                self.kernel.wait();
            } else {
                std::thread::yield_now();
            }
            state = self.state.lock();
            state.is_driven = false;
        }
    }

    /// The body of the service thread, which ends when the ring is dropped and the kernel is done
    /// with everything.
    pub(super) fn serve(&self) {
        loop {
            let is_over = self.drive_until(|state| {
                if state.has_releasable() {
                    Some(false)
                } else if state.has_unwatched() {
                    None
                } else {
                    Some(state.is_closing)
                }
            });
            self.release_retired();
            if is_over {
                return;
            }
            let state = self.state.lock();
            let is_idle = |state: &mut State| {
                !(state.is_closing || state.has_unwatched() || state.has_releasable())
            };
            drop(self.unwatched.wait_while(state, is_idle));
        }
    }

    /// Does what was left for this thread to do: revocations, if it is the owner, and submissions.
    pub(super) fn carry_out(&self, state: &mut State) {
        if !self.may_issue() {
            return;
        }
        state.is_rung = false;
        if state.nr_posted > 0 {
            for slot in 0..state.slots.len() as SlotNr {
                if state.slot(slot).phase == SlotPhase::Posted {
                    self.clear_posted(state, slot);
                }
            }
        }
        if self.kind == Kind::SingleIssuer && !state.is_armed && !state.is_closing {
            state.is_armed = self.kernel.push_doorbell(&mut state.queues);
            self.kernel.submit(&mut state.queues);
        }
    }

    /// Takes the completions that have come, from a place where another thread may wait for them.
    pub(super) fn take_completions_beside(&self, state: &mut State) {
        if !self.may_issue() {
            return;
        }
        let was_kicked = state.is_kicked;
        let finished = self.take_completions(state);
        // A kick that was meant for that thread and taken here is owed to it still.
        let has_taken_kick = was_kicked && !state.is_kicked;
        if finished > 0 || has_taken_kick {
            self.kick(state);
        }
    }

    /// Wakes the thread that waits in the kernel, or is about to.
    fn kick(&self, state: &mut State) {
        if state.is_driven && !state.is_kicked {
            state.is_kicked = self.kernel.push_kick(&mut state.queues);
            self.kernel.submit(&mut state.queues);
        }
    }

    /// Takes the completions that have come; says how many operations are finished by them.
    fn take_completions(&self, state: &mut State) -> u64 {
        let mut finished = 0;
        let mut must_notify = false;
        while let Some(completion) = self.kernel.next(&mut state.queues) {
            match completion.token {
                Some(Token::Op(op)) if state.complete_op(op, completion.result) => {
                    finished += 1;
                    count(&self.counters.ops);
                    add(&self.counters.bytes, completion.result.max(0) as u64);
                }
                Some(Token::Released(slot)) => self.free_slot(state, slot),
                Some(Token::Kick) => state.is_kicked = false,
                Some(Token::Doorbell) => {
                    state.is_armed &= completion.has_more;
                    must_notify = true;
                }
                Some(Token::Cancel) => {}
                Some(Token::Op(_)) | None => count(&self.counters.strays),
            }
        }
        if (finished > 0 || must_notify) && state.nr_followers > 0 {
            self.completed.notify_all();
        }
        finished
    }

    /// The kernel has let go of what a slot held.
    fn free_slot(&self, state: &mut State, number: SlotNr) {
        let is_known = (number as usize) < state.slots.len()
            && state.slot(number).phase == SlotPhase::Clearing;
        if !is_known {
            count(&self.counters.strays);
            return;
        }
        let slot = state.slot_mut(number);
        slot.phase = SlotPhase::Free;
        let (area, run) = (slot.area, slot.run);
        if let Some(released) = slot.released.take() {
            released.signal();
        }
        state.nr_settling -= 1;
        self.index.lock().remove(area, run, number);
        state.push_free_slot(number);
    }

    /// Whether an operation in flight uses pages of `run` that no pin of ours keeps in place.
    pub(super) fn is_used_unpinned(
        &self,
        state: &State,
        area: AreaId,
        run: PageRun,
        event: Event,
    ) -> bool {
        let mut from = 0;
        while let Some(slot) = self.next_overlapping(area, run, from) {
            from = slot + 1;
            if state.slot(slot).nr_ops > 0 && !keeps_in_place(state, slot, run, event) {
                return true;
            }
        }
        false
    }

    /// Takes back every slot that overlaps `run`, or has the owner do so.
    pub(super) fn revoke_overlapping(&self, state: &mut State, area: AreaId, run: PageRun) {
        // What others have posted to this thread may be what its own bracket waits for next.
        self.carry_out(state);
        let mut from = 0;
        while let Some(slot) = self.next_overlapping(area, run, from) {
            from = slot + 1;
            if state.slot(slot).phase == SlotPhase::Ready {
                self.revoke_slot(state, slot);
            }
        }
        self.take_completions_beside(state);
        if state.nr_posted > 0 && !state.is_rung && !self.may_issue() {
            state.is_rung = true;
            self.kernel.ring_doorbell();
            self.completed.notify_all();
        }
        self.wake_service(state);
    }

    /// What an invalidation of `run` still has to wait for: the lowest slot from `from` on that
    /// the kernel has not let go of, although its pages may change.
    pub(super) fn next_unsettled(
        &self,
        state: &State,
        area: AreaId,
        run: PageRun,
        event: Event,
        mut from: SlotNr,
    ) -> Option<(SlotNr, Fence)> {
        while let Some(slot) = self.next_overlapping(area, run, from) {
            from = slot + 1;
            if keeps_in_place(state, slot, run, event) {
                continue;
            }
            if let Some(released) = &state.slot(slot).released {
                return Some((slot, released.clone()));
            }
        }
        None
    }

    /// Has the service thread see to what nobody else may be waiting for.
    pub(super) fn wake_service(&self, state: &State) {
        if state.is_closing || state.has_unwatched() || state.has_releasable() {
            self.unwatched.notify_one();
        }
    }

    /// Lets go of what was kept for operations that are over. Not in a callback.
    pub(super) fn release_retired(&self) {
        loop {
            let retired = self.state.lock().take_retired();
            if retired.iter().all(Option::is_none) {
                return;
            }
            drop(retired);
        }
    }

    /// Asks the kernel to end an operation early.
    pub(super) fn cancel(&self, op: u32) {
        let mut state = self.state.lock();
        self.carry_out(&mut state);
        self.kernel.push_cancel(&mut state.queues, op);
        self.kernel.submit(&mut state.queues);
        self.take_completions_beside(&mut state);
    }

    /// Takes back every slot that no operation uses, if this thread may.
    pub(super) fn give_back_idle(&self) {
        let mut state = self.state.lock();
        self.carry_out(&mut state);
        if !self.may_issue() {
            return;
        }
        for slot in 0..state.slots.len() as SlotNr {
            let &Slot { phase, nr_ops, .. } = state.slot(slot);
            if phase == SlotPhase::Ready && nr_ops == 0 {
                self.revoke_slot(&mut state, slot);
            }
        }
        self.take_completions_beside(&mut state);
        self.wake_service(&state);
    }

    /// Ends all use of the ring; says whether the kernel is done with everything.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        self.carry_out(&mut state);
        state.is_closing = true;
        for slot in 0..state.slots.len() as SlotNr {
            if state.slot(slot).phase == SlotPhase::Ready {
                self.revoke_slot(&mut state, slot);
            }
        }
        if state.nr_in_flight > 0 && self.may_issue() {
            self.kernel.push_cancel_all(&mut state.queues);
            self.kernel.submit(&mut state.queues);
            self.kernel.run_task_work();
        }
        self.take_completions_beside(&mut state);
        if self.may_issue() {
            self.kick(&mut state);
        } else {
            self.kernel.ring_doorbell();
        }
        self.completed.notify_all();
        self.wake_service(&state);
        state.nr_in_flight == 0
    }

    /// The overlapping slot with the lowest number from `from` on. A function, so that the index is
    /// unlocked when it returns.
    fn next_overlapping(&self, area: AreaId, run: PageRun, from: SlotNr) -> Option<SlotNr> {
        self.index.lock().next_overlapping(area, run, from)
    }

    fn revoke_slot(&self, state: &mut State, number: SlotNr) {
        let slot = state.slot_mut(number);
        assert!(
            slot.phase == SlotPhase::Ready,
            "took back a slot that holds nothing"
        );
        slot.phase = SlotPhase::Posted;
        let (area, run) = (slot.area, slot.run);
        state.nr_posted += 1;
        state.nr_settling += 1;
        count(&self.counters.revocations);
        self.index.lock().retire(area, run, number);
        if self.may_issue() {
            self.clear_posted(state, number);
        }
    }

    fn clear_posted(&self, state: &mut State, number: SlotNr) {
        match self.kernel.clear(number) {
            Ok(()) => {
                state.slot_mut(number).phase = SlotPhase::Clearing;
                state.nr_posted -= 1;
            }
            // It stays posted, and is tried again.
            Err(_) => count(&self.counters.strays),
        }
    }
}

/// Whether pins of ours keep all pages of `run` that `slot` holds where they are for as long as the
/// slot holds them. Then an invalidation that takes pages away cannot mean these, and need not
/// wait: it is wider than its change. One that changes access rights can.
fn keeps_in_place(state: &State, slot: SlotNr, run: PageRun, event: Event) -> bool {
    let held = state.slot(slot).run;
    let first = held.first.max(run.first);
    let end = held.end().min(run.end());
    !event.keeps_pages() && state.is_pinned(slot, PageRun::new(first, end - first))
}
