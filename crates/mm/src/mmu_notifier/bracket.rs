//! The bracket around a change: starts, and the guard whose drop is the end.
//!
//! Linux counterpart: __mmu_notifier_invalidate_range_start() and _end() in mm/mmu_notifier.c

use super::callback::{self, InCallback, running_callback};
use super::context::{Blockable, EndContext, NonBlock, Settling, Unsettled};
use super::error::{BracketError, Cause, Refused};
use super::member::{How, Member};
use super::misuse::Misuse;
use super::range::{Mode, Range};
use super::registry::{Handle, Registry};
use super::stats::{Inject, add_one};
use super::tree::Only;
use super::version::{Common, Version};
use crate::gfp::Notifying;
use crate::watch::{Callback, Watched};
use core::fmt;
use core::ops::ControlFlow;
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// An open bracket: from its making to its drop the range may change.
///
/// The drop calls `end` of exactly those subscriptions whose `start` succeeded, in the same order.
/// Any number may be open at once, and they may be dropped in any order, in any thread.
///
/// There is no other way to deliver an end, so none can come without its start, or twice.
#[must_use = "the bracket ends when this is dropped"]
pub struct Invalidation {
    range: Range,
    started: Option<Started>,
    /// How many had subscribed before.
    nr_joined: u64,
}

/// Whose ends are due.
pub(super) struct Started {
    /// Where the one is, if it is one and was not found at a glance.
    only: Only,
    /// Who was subscribed at the time of the start.
    handle: Arc<Handle>,
    /// So many of those whom the range concerns have been started, in their order.
    nr: usize,
}

impl Invalidation {
    /// What may change while this lives.
    pub fn range(&self) -> &Range {
        &self.range
    }

    #[inline]
    pub(super) fn nr_joined(&self) -> u64 {
        self.nr_joined
    }

    #[inline]
    pub(super) fn of_nobody(range: Range, nr_joined: u64) -> Self {
        Self::open(range, nr_joined, None)
    }

    /// A bracket whose starts have been called.
    #[inline]
    pub(super) fn open(range: Range, nr_joined: u64, started: Option<Started>) -> Self {
        Self {
            range,
            started,
            nr_joined,
        }
    }
}

impl Drop for Invalidation {
    #[inline]
    fn drop(&mut self) {
        // Where it is: taken out it would be a copy of what was just written, and that stalls.
        if let Some(started) = &self.started {
            started.end(&self.range, How::Changed);
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

impl Started {
    /// No end is due.
    #[cold]
    fn nobody(handle: Arc<Handle>) -> Self {
        Self {
            only: Only::NOBODY,
            handle,
            nr: 0,
        }
    }

    /// Delivers the ends.
    fn end(&self, range: &Range, how: How) {
        if self.nr == 0 {
            return;
        }
        let version = self.handle.version();
        if let Some(member) = self.only.get().and_then(|path| version.interval(path)) {
            return end_one(member, range, how, &version.common);
        }
        let mut left = self.nr;
        let _: ControlFlow<()> = version.visit_intervals(range, &mut |member, _| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            end_one(member, range, how, &version.common);
            ControlFlow::Continue(())
        });
        for member in version.list(range).take(left) {
            end_one(member, range, how, &version.common);
        }
    }
}

#[inline]
fn end_one(member: &Arc<Member>, range: &Range, how: How, common: &Common) {
    let forgets = if member.is_interval() {
        Inject::ForgetIntervals
    } else {
        Inject::ForgetList
    };
    if how == How::GivenUp && common.counters.injected() == forgets {
        return;
    }
    // A panic was counted; whoever comes next gets its end all the same.
    let _: Option<()> = contain_member(common, range.mode, Callback::End, member, || {
        let _inside = Notifying::nonblock();
        member.callbacks().end(range, &EndContext::new());
    });
    member.end(how, common);
}

/// Why a start was the last.
enum Stopped {
    Refused(Arc<str>),
    Panicked(Arc<str>),
    /// An earlier call has not returned; it was not called.
    Overdue(Arc<str>),
    /// The deadline of what earlier ones settled has passed.
    Late,
}

impl Stopped {
    /// What a bracket that may not block is refused with.
    #[cold]
    fn refused(self) -> Option<Refused> {
        let (holder, cause) = match self {
            Self::Refused(holder) => (holder, Cause::WouldBlock),
            Self::Panicked(holder) => (holder, Cause::Panicked),
            Self::Overdue(holder) => (holder, Cause::Overdue),
            Self::Late => return None,
        };
        Some(Refused { holder, cause })
    }
}

/// Calls `start` of each whom the range concerns, until one stops it. Returns those who were
/// started, and so must be ended.
#[inline]
fn start_each(
    version: &Version,
    range: &Range,
    fault: Inject,
    mut start: impl FnMut(&Arc<Member>, usize) -> ControlFlow<Stopped>,
) -> (usize, Only, Option<Stopped>) {
    let mut nr = 0;
    let mut only = Only::NOBODY;
    let mut flow = version.visit_intervals(range, &mut |member, path| {
        member.begin(fault);
        let flow = start(member, nr);
        member.begun(fault);
        if flow.is_break() {
            member.end(How::GivenUp, &version.common);
        } else {
            nr += 1;
            only = Only::new(path);
        }
        flow
    });
    if flow.is_continue() {
        for member in version.list(range) {
            flow = start(member, nr);
            if flow.is_break() {
                break;
            }
            nr += 1;
        }
    }
    if nr != 1 {
        only = Only::NOBODY;
    }
    (nr, only, flow.break_value())
}

/// The ends that are due: none of those that a fault delivers at once.
#[inline(always)]
fn due(handle: Arc<Handle>, nr: usize, only: Only, range: &Range, fault: Inject) -> Started {
    if fault == Inject::LateEnd {
        return end_early(handle, nr, only, range);
    }
    Started { only, handle, nr }
}

/// Delivers the ends although the change is still to come.
#[cold]
fn end_early(handle: Arc<Handle>, nr: usize, only: Only, range: &Range) -> Started {
    let started = Started { only, handle, nr };
    started.end(range, How::Changed);
    Started::nobody(started.handle)
}

impl Registry {
    /// Opens a bracket around what somebody may use.
    pub(super) fn start_nonblock(&self, range: &Range) -> Result<Started, Refused> {
        let handle = self.begin(range.event, range.mode);
        let common = self.common();
        let counters = &common.counters;
        let fault = counters.injected();
        if fault == Inject::SkipNotifier {
            return Ok(Started::nobody(handle));
        }
        let cx = NonBlock::new();
        let (nr, only, stopped) = start_each(handle.version(), range, fault, |member, _| {
            if member.is_overdue() {
                return ControlFlow::Break(Stopped::Overdue(Arc::clone(member.name())));
            }
            let callback = Callback::StartNonBlock;
            let answer = contain_member(common, range.mode, callback, member, || {
                let _inside = Notifying::nonblock();
                member.callbacks().start_nonblock(range, &cx)
            });
            match answer {
                Some(Ok(())) => ControlFlow::Continue(()),
                Some(Err(_)) => ControlFlow::Break(Stopped::Refused(Arc::clone(member.name()))),
                None => ControlFlow::Break(Stopped::Panicked(Arc::clone(member.name()))),
            }
        });
        if let Some(refused) = stopped.and_then(Stopped::refused) {
            add_one(&counters.refusals);
            Started { handle, nr, only }.end(range, How::GivenUp);
            return Err(refused);
        }
        Ok(due(handle, nr, only, range, fault))
    }

    /// Opens a bracket around what somebody may use, and waits for what was settled.
    pub(super) fn start_blockable(
        &self,
        range: &Range,
        settle_deadline: Duration,
    ) -> Result<Started, BracketError> {
        if running_callback() == Some(Mode::NonBlock) {
            self.report(Misuse::SleepInNonBlock);
        }
        let handle = self.begin(range.event, range.mode);
        let common = self.common();
        let fault = common.counters.injected();
        if fault == Inject::SkipNotifier {
            return Ok(Started::nobody(handle));
        }
        let settling = Settling::new(settle_deadline);
        let cx = Blockable::new(&settling);
        let (nr, only, stopped) = start_each(handle.version(), range, fault, |member, nr| {
            if settling.has_failed() {
                return ControlFlow::Break(Stopped::Late);
            }
            if member.is_overdue() {
                return ControlFlow::Break(Stopped::Overdue(Arc::clone(member.name())));
            }
            settling.enter(nr);
            let callback = Callback::StartBlockable;
            let answer = contain_member(common, range.mode, callback, member, || {
                let _inside = Notifying::blockable();
                member.callbacks().start_blockable(range, &cx);
            });
            match answer {
                Some(()) => ControlFlow::Continue(()),
                None => ControlFlow::Break(Stopped::Panicked(Arc::clone(member.name()))),
            }
        });
        let failed = match stopped {
            Some(Stopped::Refused(holder) | Stopped::Panicked(holder)) => {
                Some(BracketError::Panicked { holder })
            }
            Some(Stopped::Overdue(holder)) => Some(BracketError::Overdue { holder }),
            Some(Stopped::Late) | None => settling
                .wait()
                .err()
                .map(|unsettled| stuck(handle.version(), Some(range), unsettled)),
        };
        if let Some(error) = failed {
            Started { handle, nr, only }.end(range, How::GivenUp);
            return Err(error);
        }
        Ok(due(handle, nr, only, range, fault))
    }

    /// Calls `release` of everybody, waits for what they settled, and takes them out.
    pub(super) fn release(&self, settle_deadline: Duration) -> Result<(), BracketError> {
        let Some(handle) = self.close() else {
            return Ok(());
        };
        let version = handle.version();
        let settling = Settling::new(settle_deadline);
        let cx = Blockable::new(&settling);
        let mut nr = 0;
        let mut panicked = None;
        let _: ControlFlow<()> = version.visit_all(&mut |member| {
            settling.enter(nr);
            nr += 1;
            let (common, callback) = (&version.common, Callback::Release);
            let answer = contain_member(common, Mode::Blockable, callback, member, || {
                member.callbacks().release(&cx);
            });
            if answer.is_none() {
                panicked.get_or_insert_with(|| Arc::clone(member.name()));
            }
            ControlFlow::Continue(())
        });
        settling
            .wait()
            .map_err(|unsettled| stuck(version, None, unsettled))?;
        if let Some(holder) = panicked {
            return Err(BracketError::Panicked { holder });
        }
        self.forget_all();
        Ok(())
    }
}

/// Names whose fence did not signal: of those whom `range` concerns, or of all.
#[cold]
fn stuck(
    version: &Version,
    range: Option<&Range>,
    Unsettled {
        holder,
        fence,
        waited,
    }: Unsettled,
) -> BracketError {
    add_one(&version.common.counters.stuck);
    let mut before = holder;
    let mut find = |member: &Arc<Member>| {
        if before == 0 {
            return ControlFlow::Break(Arc::clone(member.name()));
        }
        before -= 1;
        ControlFlow::Continue(())
    };
    let found = match range {
        Some(range) => version.visit(range, find),
        None => version.visit_all(&mut find),
    };
    BracketError::Stuck {
        holder: found.break_value().unwrap_or_else(|| "".into()),
        fence,
        waited,
    }
}

/// Runs a callback of a member, which is convicted if it overstays its budget in a worker; `None`
/// if it panicked, which is counted.
#[inline]
pub(super) fn contain_member<R>(
    common: &Common,
    mode: Mode,
    callback: Callback,
    member: &Arc<Member>,
    call: impl Fn() -> R,
) -> Option<R> {
    let _watched = Watched::enter(callback, member);
    contain(common, mode, &**member, call)
}

/// Runs a callback of `whose`; `None` if it panicked, which is counted.
#[inline]
pub(super) fn contain<W: ?Sized, R>(
    common: &Common,
    mode: Mode,
    whose: &W,
    call: impl Fn() -> R,
) -> Option<R> {
    let _inside = InCallback::enter(mode, whose);
    // Unwind safe: the core's own state is not borrowed while a callback runs, and a notifier that
    // panicked answers for its own. The call is lent, because what is given to `catch_unwind` is
    // copied, and a copy of what was just written stalls.
    match catch_unwind(AssertUnwindSafe(&call)) {
        Ok(answer) => Some(answer),
        Err(payload) => {
            callback::bury(&common.counters.panics, payload);
            None
        }
    }
}
