//! A subscription as brackets see it: its callbacks, what it is told of, and its sequence.

use super::Notifier;
use super::context::{Blockable, EndContext, NonBlock, WouldBlock};
use super::node::{Key, Spans};
use super::range::{Owner, Range};
use super::sequence::{Ended, Sequence};
use super::stats::Inject;
use super::subscription::Ranges;
use super::version::Common;
use crate::watch::Suspect;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use std::sync::Arc;

/// A [`Notifier`] without its generic parameter.
pub(super) trait Callbacks: Send + Sync {
    fn start_blockable(&self, range: &Range, cx: &Blockable<'_>);
    fn start_nonblock(&self, range: &Range, cx: &NonBlock<'_>) -> Result<(), WouldBlock>;
    fn end(&self, range: &Range, cx: &EndContext<'_>);
    fn release(&self, cx: &Blockable<'_>);
    fn age(&self, range: &Range, cx: &EndContext<'_>) -> bool;
    fn clear_young(&self, range: &Range, cx: &EndContext<'_>) -> bool;
    fn test_young(&self, range: &Range, cx: &EndContext<'_>) -> bool;
}

impl<N: Notifier> Callbacks for N {
    fn start_blockable(&self, range: &Range, cx: &Blockable<'_>) {
        let Ok(()) = self.start(range, cx);
    }

    fn start_nonblock(&self, range: &Range, cx: &NonBlock<'_>) -> Result<(), WouldBlock> {
        self.start(range, cx)
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        Notifier::end(self, range, cx);
    }

    fn release(&self, cx: &Blockable<'_>) {
        Notifier::release(self, cx);
    }

    fn age(&self, range: &Range, cx: &EndContext<'_>) -> bool {
        Notifier::age(self, range, cx)
    }

    fn clear_young(&self, range: &Range, cx: &EndContext<'_>) -> bool {
        Notifier::clear_young(self, range, cx)
    }

    fn test_young(&self, range: &Range, cx: &EndContext<'_>) -> bool {
        Notifier::test_young(self, range, cx)
    }
}

/// What a subscription is told of.
pub(super) enum Target {
    /// A member of the list: looked at in every bracket.
    List(Ranges),
    /// One interval, found in the tree; it has a sequence.
    Interval { start: u64, end: u64 },
}

/// Where a member stands in a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the list, under this number.
    List(u64),
    /// In the tree, under this key and with this end.
    Interval(Key, u64),
}

/// A subscription, as long as a bracket can reach it.
///
/// What a hit needs stands in front, and nothing is aligned: of a million of these a bracket finds
/// one in no cache, and the fewer pages they fill the sooner the processor knows where it is.
#[repr(C)]
pub(super) struct Member {
    sequence: Sequence,
    callbacks: Arc<dyn Callbacks>,
    target: Target,
    /// Calls of it that have not returned in their time.
    nr_overdue: AtomicU32,
    /// The bracket that its sequence began with is over.
    has_joined: AtomicBool,
    id: u64,
    owner: Option<Owner>,
    name: Arc<str>,
}

/// Where an interval stands in the tree. A member of the list, which never does, spans nothing.
impl Spans for Member {
    fn key(&self) -> Key {
        let start = match self.target {
            Target::Interval { start, .. } => start,
            Target::List(_) => 0,
        };
        Key { start, id: self.id }
    }

    fn end(&self) -> u64 {
        match self.target {
            Target::Interval { end, .. } => end,
            Target::List(_) => 0,
        }
    }
}

impl Member {
    /// A member whose sequence counts one bracket as open.
    pub(super) fn new<N: Notifier>(
        name: &Arc<str>,
        id: u64,
        target: Target,
        notifier: Arc<N>,
    ) -> Self {
        Self {
            id,
            nr_overdue: AtomicU32::new(0),
            has_joined: AtomicBool::new(false),
            sequence: Sequence::new_open(0),
            owner: notifier.owner(),
            callbacks: notifier,
            target,
            name: Arc::clone(name),
        }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether a call of it has not returned in its time: then it is not called.
    #[inline]
    pub(super) fn is_overdue(&self) -> bool {
        self.nr_overdue.load(Ordering::Relaxed) > 0
    }

    pub(super) fn place(&self) -> Place {
        match self.target {
            Target::List(_) => Place::List(self.id),
            Target::Interval { end, .. } => Place::Interval(self.key(), end),
        }
    }

    pub(super) fn is_interval(&self) -> bool {
        matches!(self.target, Target::Interval { .. })
    }

    pub(super) fn callbacks(&self) -> &dyn Callbacks {
        &*self.callbacks
    }

    pub(super) fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Whether it began the change of `range` itself, and so is not told.
    #[inline]
    pub(super) fn is_left_out(&self, range: &Range) -> bool {
        range.owner.is_some() && self.is_left_out_by_owner(range)
    }

    /// Most changes have no owner: so this is not inlined.
    #[cold]
    #[inline(never)]
    fn is_left_out_by_owner(&self, range: &Range) -> bool {
        range.owner == self.owner && range.event.leaves_out_owner()
    }

    /// Whether a change of `range` concerns a member of the list.
    #[inline]
    pub(super) fn is_concerned(&self, range: &Range) -> bool {
        match &self.target {
            Target::List(ranges) => !self.is_left_out(range) && ranges.matches(range),
            // It is found in the tree.
            Target::Interval { .. } => false,
        }
    }

    /// The brackets are over that began before it did: its device may look up pages.
    pub(super) fn join(&self, common: &Common) {
        if self.sequence.end() == Ended::Wake {
            self.wake(common);
        }
        // Release: pairs with the Acquire in `is_under_bracket`.
        self.has_joined.store(true, Ordering::Release);
    }

    /// Whether a bracket is open that calls it. It may miss one at the moment at which it joins.
    pub(super) fn is_under_bracket(&self) -> bool {
        // Acquire, and first: who has joined is not under the bracket that it began with.
        let nr_unknown = u64::from(!self.has_joined.load(Ordering::Acquire));
        let (nr_open, _) = self.sequence.snapshot();
        nr_open > nr_unknown
    }

    /// A bracket reaches it: comes before the callback.
    #[inline]
    pub(super) fn begin(&self, fault: Inject) {
        if self.is_interval() {
            if fault == Inject::BumpAfter {
                return self.sequence.hold_open();
            }
            self.sequence.begin();
        }
    }

    /// The callback has returned.
    #[inline]
    pub(super) fn begun(&self, fault: Inject) {
        if fault == Inject::BumpAfter && self.is_interval() {
            self.sequence.bump();
        }
    }

    /// Wakes who waits until no bracket is open over it.
    pub(super) fn wake(&self, common: &Common) {
        common.waits.wake(self.id, &self.sequence);
    }

    /// Sleeps until no bracket is open over it; see [`Waits::wait`](super::wait::Waits::wait).
    pub(super) fn wait(&self, common: &Common, timeout: Option<Duration>) -> Option<u64> {
        common.waits.wait(self.id, &self.sequence, timeout)
    }

    /// A bracket is over for it: comes after the callback.
    #[inline]
    pub(super) fn end(&self, how: How, common: &Common) {
        if !self.is_interval() {
            return;
        }
        let ended = match how {
            How::Changed => self.sequence.end(),
            How::GivenUp => self.sequence.roll_back(),
        };
        if ended == Ended::Wake && common.counters.injected() != Inject::LoseWakeUp {
            self.wake(common);
        }
    }
}

impl Suspect for Member {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn convict(&self) {
        self.nr_overdue.fetch_add(1, Ordering::Relaxed);
    }

    fn acquit(&self) {
        self.nr_overdue.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What came of a bracket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// It was open: its range may have changed.
    Changed,
    /// It was refused, or failed: nothing has changed.
    GivenUp,
}
