//! The subscriptions of one address space, as its memory manager and its devices see them.

use super::Notifier;
use super::bracket::Invalidation;
use super::callback::running_callback;
use super::error::{BracketError, Refused};
use super::interval::{IntervalError, IntervalNotifier, IntervalSubscription};
use super::member::Target;
use super::misuse::{Misuse, MisuseReport};
use super::published::running_in;
use super::range::{Event, MmId, Mode, Owner, Range};
use super::registry::Registry;
use super::shared::Kinds;
use super::stats::{Inject, NotifierStats};
use super::subscription::{Ranges, Subscription};
use crate::addr::Vaddr;
use crate::gfp::might_notify;
use core::fmt;
use core::time::Duration;
use std::sync::Arc;

/// Those who are told when one address space changes.
pub struct Notifiers {
    mm: MmId,
    registry: Arc<Registry>,
    kinds: Kinds,
}

impl Notifiers {
    /// Nobody is told of anything.
    pub fn new(mm: MmId) -> Self {
        Self {
            mm,
            registry: Registry::new(),
            kinds: Kinds::new(),
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
        let name: Arc<str> = name.into();
        let ability = notifier.ability();
        let target = Target::List(ranges.normalize());
        let joined = self.registry.join(&name, target, notifier);
        let place = joined.map_or_else(|place| place, |member| member.place());
        Subscription::new(name, ability, place, Arc::clone(&self.registry))
    }

    /// Tells `notifier` of every change of `start..end`, and counts these changes for
    /// [`read_begin`](IntervalSubscription::read_begin).
    ///
    /// Costs a bracket that does not concern it next to nothing, however many intervals there are;
    /// they may overlap and be equal. Does not wait: it may be called while brackets are open, and
    /// `read_begin` waits for those that do not know it. Allocates; never call it in a callback.
    ///
    /// # Errors
    ///
    /// [`IntervalError::Empty`] if there is no address in the interval, and
    /// [`IntervalError::Released`] if the address space is gone. Nothing was subscribed then.
    pub fn subscribe_interval<N: IntervalNotifier>(
        &self,
        name: &str,
        start: Vaddr,
        end: Vaddr,
        notifier: Arc<N>,
    ) -> Result<IntervalSubscription<N>, IntervalError> {
        if start >= end {
            return Err(IntervalError::Empty);
        }
        let target = Target::Interval {
            start: start.0,
            end: end.0,
        };
        let name: Arc<str> = name.into();
        let joined = self.registry.join(&name, target, Arc::clone(&notifier));
        let member = joined.map_err(|_| IntervalError::Released)?;
        Ok(IntervalSubscription::new(
            member,
            notifier,
            Arc::clone(&self.registry),
        ))
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
        self.start_nonblock_for(start, end, event, None)
    }

    /// Like [`start_nonblock`](Self::start_nonblock), for a change that `owner` began: if the
    /// event [leaves out its owner](Event::leaves_out_owner), who said to be that is not told.
    ///
    /// # Errors
    ///
    /// [`Refused`], as above.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    #[inline]
    pub fn start_nonblock_for(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
        owner: Option<Owner>,
    ) -> Result<Invalidation, Refused> {
        // Before the version: who joins in between is told, and counted as not told.
        let nr_joined = self.registry.nr_joined();
        let range = self.range(start, end, event, Mode::NonBlock, owner);
        if self.registry.is_empty() {
            return Ok(Invalidation::of_nobody(range, nr_joined));
        }
        self.tell_nonblock(start, end, event, owner, nr_joined)
    }

    /// Opens a bracket around what somebody may use. Not inlined: so the guard is made where the
    /// caller wants it, and is not moved.
    #[inline(never)]
    fn tell_nonblock(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
        owner: Option<Owner>,
        nr_joined: u64,
    ) -> Result<Invalidation, Refused> {
        // Made anew for the bracket: a copy of what was just written to be lent would stall.
        let range = || self.range(start, end, event, Mode::NonBlock, owner);
        let started = self.registry.start_nonblock(&range())?;
        Ok(Invalidation::open(range(), nr_joined, Some(started)))
    }

    /// Opens a non-blockable bracket if there is no subscription: for a thread that must not run
    /// anybody's callbacks, such as one in a fault.
    #[inline]
    pub(crate) fn start_for_nobody(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
    ) -> Option<Invalidation> {
        let range = self.range(start, end, event, Mode::NonBlock, None);
        // Before the version: who joins in between is told, and counted as not told.
        let nr_joined = self.registry.nr_joined();
        let bracket = || Invalidation::of_nobody(range, nr_joined);
        self.registry.is_empty().then(bracket)
    }

    /// Opens a bracket whose callbacks may block, and waits for what they settle: once, for all
    /// devices together, no longer than `settle_deadline`.
    ///
    /// The deadline bounds the waits that this call makes, not the callbacks themselves. There is
    /// no clock here: `n` waits that end in time may add up to `n / 64` of it. In a callback that
    /// may not block, use [`start_nonblock`](Self::start_nonblock).
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
        self.start_blockable_for(start, end, event, None, settle_deadline)
    }

    /// Like [`start_blockable`](Self::start_blockable), for a change that `owner` began.
    ///
    /// # Errors
    ///
    /// [`BracketError`], as above.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    #[inline]
    pub fn start_blockable_for(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
        owner: Option<Owner>,
        settle_deadline: Duration,
    ) -> Result<Invalidation, BracketError> {
        might_notify();
        // Before the version, as above.
        let nr_joined = self.registry.nr_joined();
        let range = self.range(start, end, event, Mode::Blockable, owner);
        if self.registry.is_empty() {
            return Ok(Invalidation::of_nobody(range, nr_joined));
        }
        self.tell_blockable((start, end), event, owner, settle_deadline, nr_joined)
    }

    /// Opens a bracket around what somebody may use. Not inlined, as above.
    #[inline(never)]
    fn tell_blockable(
        &self,
        (start, end): (Vaddr, Vaddr),
        event: Event,
        owner: Option<Owner>,
        settle_deadline: Duration,
        nr_joined: u64,
    ) -> Result<Invalidation, BracketError> {
        let range = || self.range(start, end, event, Mode::Blockable, owner);
        let started = self.registry.start_blockable(&range(), settle_deadline)?;
        Ok(Invalidation::open(range(), nr_joined, Some(started)))
    }

    /// Whether nobody has subscribed since the bracket began. The caller owns the page that it
    /// is going to change (see `page`): whoever subscribes after this finds the page owned.
    pub fn is_current(&self, bracket: &Invalidation) -> bool {
        self.registry.nr_joined() == bracket.nr_joined()
    }

    /// Tears down: calls `release` of each subscription once, intervals first and then the list
    /// from the newest on, waits for what they settled, and forgets all. Call it before any page
    /// of the address space is freed.
    ///
    /// Until it has returned `Ok`, brackets go on calling whoever is subscribed: as long as a
    /// device may use a page, it is told of what becomes of it.
    ///
    /// # Errors
    ///
    /// The first [`BracketError`], after all were called. Everybody is still subscribed. Called
    /// again after [`BracketError::Stuck`], it waits for what has not signalled by then.
    pub fn release(&self, settle_deadline: Duration) -> Result<(), BracketError> {
        self.registry.release(settle_deadline)
    }

    /// Forgets everybody: nothing is left that a device could use.
    pub(crate) fn forget_all(&self) {
        self.registry.forget_all();
    }

    /// Waits until every bracket is closed that is open now: then every subscription that was
    /// dropped before has been let go of.
    ///
    /// Never call it in a callback, under a lock that a callback takes, or with a bracket open.
    pub fn synchronize(&self) {
        self.registry.synchronize();
    }

    /// Whether there is a subscription.
    pub(crate) fn has_subscriptions(&self) -> bool {
        !self.registry.is_empty()
    }

    /// Whether anybody walks the page table.
    #[inline]
    pub(crate) fn has_tlb_users(&self) -> bool {
        self.registry.has_tlb_users()
    }

    /// Whether nobody is told of anything.
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty()
    }

    /// What happened so far.
    pub fn stats(&self) -> NotifierStats {
        NotifierStats::new(self.registry.starts(), &self.registry.common().counters)
    }

    /// Calls `report` at each use that breaks the contract, in the thread that broke it. It must
    /// not call back. Replaces the one before.
    ///
    /// A thread that resolves the faults of others speaks for a callback that waits for it, while
    /// the validator of locks is on; `report` uses no managed memory. What a callback does to
    /// another address space than its own is told when it returns.
    pub fn on_misuse(&self, report: impl Fn(&MisuseReport) + Send + Sync + 'static) {
        self.registry.common().misuses.set_sink(Arc::new(report));
    }

    /// Reports if the calling thread runs a callback, as then it may not use managed memory; says
    /// whether it does. Called where such memory is faulted in, pinned or translated by the thread
    /// that uses it.
    #[inline]
    pub fn note_touch(&self) -> bool {
        let is_misuse = running_callback().is_some();
        if is_misuse {
            self.registry.report(Misuse::TouchInCallback);
        }
        is_misuse
    }

    /// Reports if the thread with this number runs a callback, as far as that can be known: while
    /// the validator of locks is on. Called by a thread that resolves its fault.
    pub(crate) fn note_touch_by(&self, thread: u32) {
        if let Some(name) = running_in(thread) {
            self.registry
                .common()
                .misuse(Misuse::TouchInCallback, &name);
        }
    }

    /// Breaks the brackets that begin from now on, so that a test can prove that its checker sees
    /// it. Never for production; see [`Inject`].
    pub fn inject(&self, fault: Inject) {
        self.registry.common().counters.inject(fault);
    }

    pub(super) fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    #[inline]
    pub(super) fn range(
        &self,
        start: Vaddr,
        end: Vaddr,
        event: Event,
        mode: Mode,
        owner: Option<Owner>,
    ) -> Range {
        assert!(start < end, "a bracket around nothing");
        Range {
            mm: self.mm,
            start,
            end,
            event,
            owner,
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
