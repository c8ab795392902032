//! The bracket around a change: starts, the guard whose drop is the end, and how it can fail.

use super::Notifier;
use super::context::{Blockable, EndContext, NonBlock, Settling, Unsettled};
use super::range::{Event, MmId, Mode, Range};
use super::stats::{Inject, NotifierStats, add_one};
use super::subscription::{List, Member, Ranges, Registry, Subscription};
use crate::addr::Vaddr;
use core::fmt;
use core::time::Duration;
use lockdep::sync::Fence;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The list of those who are told when one address space changes.
pub struct Notifiers {
    mm: MmId,
    registry: Arc<Registry>,
}

impl Notifiers {
    /// A list on which nobody is.
    pub fn new(mm: MmId) -> Self {
        Self {
            mm,
            registry: Registry::new(),
        }
    }

    /// The address space whose changes these are.
    pub fn mm(&self) -> MmId {
        self.mm
    }

    /// Tells `notifier` of every change of `ranges` whose bracket begins from now on.
    ///
    /// Takes no part in brackets that are open, as the module's head tells. After
    /// [`release`](Self::release) the subscription is never called: there is nothing to translate.
    /// Allocates; never call it in a callback.
    pub fn subscribe<N: Notifier>(
        &self,
        name: &str,
        ranges: Ranges,
        notifier: Arc<N>,
    ) -> Subscription {
        self.registry.subscribe(name, ranges, notifier)
    }

    /// Opens a bracket whose callbacks may not block. Never sleeps, never waits for a device.
    ///
    /// # Errors
    ///
    /// [`Refused`]: leave the range alone. Every start that succeeded has got its end.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    #[inline]
    pub fn start_nonblock(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
    ) -> Result<Invalidation, Refused> {
        let range = self.range(start, end, event, Mode::NonBlock);
        // Before the list: who joins in between is told, and counted as not told.
        let nr_joined = self.registry.nr_joined();
        if self.registry.is_empty() {
            return Ok(Invalidation::of_nobody(range).after(nr_joined));
        }
        start_nonblock(self.registry.list(), range).map(|bracket| bracket.after(nr_joined))
    }

    /// Opens a non-blockable bracket if there is no subscription: for a thread that must not run
    /// anybody's callbacks, such as one in a fault.
    pub(crate) fn start_for_nobody(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
    ) -> Option<Invalidation> {
        let range = self.range(start, end, event, Mode::NonBlock);
        // Before the list: who joins in between is told, and counted as not told.
        let nr_joined = self.registry.nr_joined();
        let bracket = || Invalidation::of_nobody(range).after(nr_joined);
        self.registry.is_empty().then(bracket)
    }

    /// Whether there is a subscription.
    pub(crate) fn has_subscriptions(&self) -> bool {
        !self.registry.is_empty()
    }

    /// Opens a bracket whose callbacks may block, and waits for what they settle: once, for all
    /// devices together, no longer than `settle_deadline`.
    ///
    /// The deadline bounds the waits that this call makes, not the callbacks themselves. There is
    /// no clock here: `n` waits that end in time may add up to `n / 64` of it.
    ///
    /// # Errors
    ///
    /// [`BracketError`]: leave the range alone. Every start that succeeded has got its end.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    #[inline]
    pub fn start_blockable(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
        settle_deadline: Duration,
    ) -> Result<Invalidation, BracketError> {
        let range = self.range(start, end, event, Mode::Blockable);
        // Before the list, as above.
        let nr_joined = self.registry.nr_joined();
        if self.registry.is_empty() {
            return Ok(Invalidation::of_nobody(range).after(nr_joined));
        }
        start_blockable(self.registry.list(), range, settle_deadline)
            .map(|bracket| bracket.after(nr_joined))
    }

    /// Whether nobody has subscribed since the bracket began. The caller owns the page that it
    /// is going to change (see `page`): whoever subscribes after this finds the page owned.
    pub(crate) fn is_current(&self, bracket: &Invalidation) -> bool {
        self.registry.nr_joined() == bracket.nr_joined
    }

    /// Tears down: calls `release` of each subscription once, newest first, waits for what they
    /// settled, and empties the list. Call it before any page of the address space is freed.
    ///
    /// Until it has returned `Ok`, brackets go on calling whoever is on the list: as long as a
    /// device may use a page, it is told of what becomes of it.
    ///
    /// # Errors
    ///
    /// The first [`BracketError`], after all were called. The list is as it was.
    pub fn release(&self, settle_deadline: Duration) -> Result<(), BracketError> {
        let Some(list) = self.registry.close() else {
            return Ok(());
        };
        let settling = Settling::new(settle_deadline);
        let mut panicked = None;
        for (holder, member) in list.members().iter().enumerate() {
            settling.enter(holder);
            if contain(&list, || member.release(&Blockable::new(&settling))).is_none() {
                panicked.get_or_insert_with(|| Arc::clone(member.name()));
            }
        }
        settling
            .wait()
            .map_err(|unsettled| stuck(&list, unsettled))?;
        if let Some(holder) = panicked {
            return Err(BracketError::Panicked { holder });
        }
        self.forget_all();
        Ok(())
    }

    /// Empties the list: nothing is left that a device could use.
    pub(crate) fn forget_all(&self) {
        self.registry.forget_all();
    }

    /// Whether nobody is told of anything.
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty()
    }

    /// What happened so far.
    pub fn stats(&self) -> NotifierStats {
        self.registry.counters().snapshot()
    }

    /// Breaks the brackets that begin from now on, so that a test can prove that its checker sees
    /// it. Never for production; see [`Inject`].
    pub fn inject(&self, fault: Inject) {
        self.registry.counters().inject(fault);
    }

    #[inline]
    fn range(&self, start: Vaddr, end: Vaddr, event: Event, mode: Mode) -> Range {
        assert!(start < end, "a bracket around nothing");
        Range {
            mm: self.mm,
            start,
            end,
            event,
            mode,
        }
    }
}

impl fmt::Debug for Notifiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifiers")
            .field("mm", &self.mm)
            .finish_non_exhaustive()
    }
}

/// An open bracket: from its making to its drop the range may change.
///
/// The drop calls `end` of exactly those subscriptions whose `start` succeeded, in the same order.
/// Any number may be open at once, and they may be dropped in any order, in any thread.
#[must_use = "the bracket ends when this is dropped"]
pub struct Invalidation {
    range: Range,
    /// The list at the time of the start, and how far along it the starts succeeded.
    started: Option<(Arc<List>, usize)>,
    /// How many had subscribed before.
    nr_joined: u64,
}

impl Invalidation {
    /// What may change while this lives.
    pub fn range(&self) -> &Range {
        &self.range
    }

    #[inline]
    fn of_nobody(range: Range) -> Self {
        Self {
            range,
            started: None,
            nr_joined: 0,
        }
    }

    #[inline]
    fn after(mut self, nr_joined: u64) -> Self {
        self.nr_joined = nr_joined;
        self
    }

    /// The starts of the first `nr` members have succeeded.
    fn open(range: Range, list: Arc<List>, nr: usize) -> Self {
        let invalidation = Self {
            range,
            started: Some((list, nr)),
            nr_joined: 0,
        };
        invalidation.apply_late_end()
    }

    fn apply_late_end(mut self) -> Self {
        let started = self.started.as_ref();
        if started.is_some_and(|(list, _)| list.counters().injected() == Inject::LateEnd) {
            self.end();
        }
        self
    }

    /// Delivers the ends, if they are due.
    fn end(&mut self) {
        let Some((list, nr)) = self.started.take() else {
            return;
        };
        let cx = EndContext::new();
        for member in matching(&list.members()[..nr], &self.range) {
            // A panic was counted; whoever comes next gets its end all the same.
            let _: Option<()> = contain(&list, || member.end(&self.range, &cx));
        }
    }
}

impl Drop for Invalidation {
    #[inline]
    fn drop(&mut self) {
        if self.started.is_some() {
            self.end();
        }
    }
}

impl fmt::Debug for Invalidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalidation")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

fn start_nonblock(list: Arc<List>, range: Range) -> Result<Invalidation, Refused> {
    if !is_concerned(&list, &range) {
        return Ok(Invalidation::of_nobody(range));
    }
    let cx = NonBlock::new();
    for (position, member) in list.members().iter().enumerate() {
        if !member.matches(&range) {
            continue;
        }
        if let Some(Ok(())) = contain(&list, || member.start_nonblock(&range, &cx)) {
            continue;
        }
        let holder = Arc::clone(member.name());
        add_one(&list.counters().refusals);
        drop(Invalidation::open(range, list, position));
        return Err(Refused { holder });
    }
    let nr = list.members().len();
    Ok(Invalidation::open(range, list, nr))
}

fn start_blockable(
    list: Arc<List>,
    range: Range,
    settle_deadline: Duration,
) -> Result<Invalidation, BracketError> {
    if !is_concerned(&list, &range) {
        return Ok(Invalidation::of_nobody(range));
    }
    let settling = Settling::new(settle_deadline);
    let cx = Blockable::new(&settling);
    let mut nr = 0;
    for (position, member) in list.members().iter().enumerate() {
        if settling.has_failed() {
            break;
        }
        if member.matches(&range) {
            settling.enter(position);
            if contain(&list, || member.start_blockable(&range, &cx)).is_none() {
                let holder = Arc::clone(member.name());
                drop(Invalidation::open(range, list, position));
                return Err(BracketError::Panicked { holder });
            }
        }
        nr = position + 1;
    }
    match settling.wait() {
        Ok(()) => Ok(Invalidation::open(range, list, nr)),
        Err(unsettled) => {
            let error = stuck(&list, unsettled);
            drop(Invalidation::open(range, list, nr));
            Err(error)
        }
    }
}

/// Whether the bracket calls anybody; counts it if so.
fn is_concerned(list: &List, range: &Range) -> bool {
    if matching(list.members(), range).next().is_none() {
        return false;
    }
    list.counters().started(range.event, range.mode);
    list.counters().injected() != Inject::SkipNotifier
}

/// The members that a change of `range` concerns, in the order in which they are called.
fn matching<'a>(
    members: &'a [Arc<Member>],
    range: &'a Range,
) -> impl Iterator<Item = &'a Arc<Member>> {
    members.iter().filter(|member| member.matches(range))
}

fn stuck(
    list: &List,
    Unsettled {
        holder,
        fence,
        waited,
    }: Unsettled,
) -> BracketError {
    add_one(&list.counters().stuck);
    let holder = Arc::clone(list.members()[holder].name());
    BracketError::Stuck {
        holder,
        fence,
        waited,
    }
}

/// Runs a callback; `None` if it panicked, which is counted.
fn contain<R>(list: &List, callback: impl FnOnce() -> R) -> Option<R> {
    // Unwind safe: the core's own state is not borrowed while a callback runs, and a notifier that
    // panicked answers for its own.
    match catch_unwind(AssertUnwindSafe(callback)) {
        Ok(answer) => Some(answer),
        Err(payload) => {
            add_one(&list.counters().panics);
            // What was thrown is foreign too, and its drop may panic in turn.
            if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                core::mem::forget(second);
            }
            None
        }
    }
}

/// A subscription could not let go of the range without waiting. Nothing has changed.
///
/// Not an error: the caller tries another range, or this one later, or in a blockable bracket.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The name of the subscription.
    pub holder: Arc<str>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` would have to wait", self.holder)
    }
}

/// Why a blockable bracket could not be opened. Nothing has changed.
#[derive(Clone, Debug)]
pub enum BracketError {
    /// A device still uses the range after the deadline.
    Stuck {
        /// The name of the subscription that the fence belongs to.
        holder: Arc<str>,
        /// Signals when the device has let go after all.
        fence: Fence,
        /// How long the bracket waited.
        waited: Duration,
    },
    /// A callback panicked.
    Panicked {
        /// The name of the subscription.
        holder: Arc<str>,
    },
}

impl BracketError {
    /// The name of the subscription at fault.
    pub fn holder(&self) -> &Arc<str> {
        match self {
            Self::Stuck { holder, .. } | Self::Panicked { holder } => holder,
        }
    }
}

impl fmt::Display for BracketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck { holder, waited, .. } => {
                write!(
                    f,
                    "`{holder}` still uses the range after {} ms",
                    waited.as_millis()
                )
            }
            Self::Panicked { holder } => write!(f, "a callback of `{holder}` panicked"),
        }
    }
}

impl core::error::Error for BracketError {}
