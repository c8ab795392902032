//! The bracket around a change: starts, and the guard whose drop is the end.
//!
//! Linux counterpart: __mmu_notifier_invalidate_range_start() and _end() in mm/mmu_notifier.c

use super::callback::{self, InCallback, running_callback};
use super::context::{Blockable, EndContext, NonBlock, Settling, Unsettled};
use super::error::{BracketError, Cause, Refused};
use super::member::{How, Member};
use super::misuse::Misuse;
use super::published::Published;
use super::range::{Mode, Range};
use super::registry::{Handle, Owed, Registry};
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
    /// Who was subscribed at the time of the start.
    handle: Arc<Handle>,
    ends: Ends,
}

/// The ends that are due to members of a version. Small and copied: what has just been written to
/// memory in parts stalls when it is moved as a whole, and every bracket would pay for that.
#[derive(Clone, Copy)]
struct Ends {
    /// So many of those whom the range concerns have been started, in their order.
    nr: usize,
    /// Where the interval among them is, if it is one and was not found at a glance.
    only: Only,
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
            let version = started.handle.version();
            started.ends.deliver(version, &self.range, How::Changed);
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

impl Ends {
    const NOBODY: Self = Self {
        nr: 0,
        only: Only::NOBODY,
    };

    fn deliver(self, version: &Version, range: &Range, how: How) {
        let mut left = self.nr;
        if version.has_intervals() {
            left = self.deliver_to_intervals(version, range, how);
        }
        let common = &version.common;
        for member in version.list(range).take(left) {
            if !is_forgotten(how, Inject::ForgetList, common) {
                call_end(member, range, common);
            }
        }
    }

    /// The intervals' part. Returns how many ends are due to the list.
    #[inline(never)]
    fn deliver_to_intervals(self, version: &Version, range: &Range, how: How) -> usize {
        let end_one = |member: &Arc<Member>| {
            let common = &version.common;
            if !is_forgotten(how, Inject::ForgetIntervals, common) {
                call_end(member, range, common);
                member.end(how, common);
            }
        };
        if let Some(member) = self.only.get().and_then(|path| version.interval(path)) {
            end_one(member);
            return self.nr - 1;
        }
        let mut left = self.nr;
        let _: ControlFlow<()> = version.visit_intervals(range, &mut |member, _| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            end_one(member);
            ControlFlow::Continue(())
        });
        left
    }
}

/// Whether a fault forgets the ends of those whom `fault` names.
#[inline(always)]
fn is_forgotten(how: How, fault: Inject, common: &Common) -> bool {
    how == How::GivenUp && common.counters.injected() == fault
}

/// Calls `end`. A panic is counted; whoever comes next gets its end all the same.
#[inline(always)]
fn call_end(member: &Arc<Member>, range: &Range, common: &Common) {
    let _: Option<()> = contain_member(common, range.mode, Callback::End, member, move || {
        Notifying::nonblock(member.name(), || {
            member.callbacks().end(range, &EndContext::new())
        });
    });
}

/// Why a start was the last. Whose it was is looked up again by who reports it: a name in here
/// would be moved about by every bracket.
#[derive(Clone, Copy)]
enum Stop {
    Refused,
    Panicked,
    /// An earlier call has not returned; it was not called.
    Overdue,
    /// The deadline of what earlier ones settled has passed.
    Late,
}

/// How far the starts of a bracket came.
#[derive(Clone, Copy)]
struct Reached {
    ends: Ends,
    stop: Option<Stop>,
}

/// Calls `start` of each whom the range concerns, until one stops it. `start` is lent nowhere, but
/// copied: so what it captures stays in registers.
#[inline]
fn start_each(
    version: &Version,
    range: &Range,
    fault: Inject,
    start: impl Fn(&Arc<Member>, usize) -> ControlFlow<Stop> + Copy,
) -> Reached {
    let mut ends = Ends::NOBODY;
    if version.has_intervals() {
        let reached = start_intervals(version, range, fault, start);
        if reached.stop.is_some() {
            return reached;
        }
        ends = reached.ends;
    }
    let mut stop = None;
    for member in version.list(range) {
        stop = start(member, ends.nr).break_value();
        if stop.is_some() {
            break;
        }
        ends.nr += 1;
    }
    Reached { ends, stop }
}

/// The intervals' part of [`start_each`]. Not inlined: what its search keeps in memory the list
/// keeps in registers.
#[inline(never)]
fn start_intervals(
    version: &Version,
    range: &Range,
    fault: Inject,
    start: impl Fn(&Arc<Member>, usize) -> ControlFlow<Stop>,
) -> Reached {
    let mut ends = Ends::NOBODY;
    let flow = version.visit_intervals(range, &mut |member, path| {
        member.begin(fault);
        let flow = start(member, ends.nr);
        member.begun(fault);
        if flow.is_break() {
            member.end(How::GivenUp, &version.common);
        } else {
            ends.nr += 1;
            ends.only = if ends.nr == 1 {
                Only::new(path)
            } else {
                Only::NOBODY
            };
        }
        flow
    });
    let stop = flow.break_value();
    Reached { ends, stop }
}

/// The ends that are due: none of those that a fault delivers although the change is still to come.
#[inline(always)]
fn due(ends: Ends, version: &Version, range: &Range, fault: Inject) -> Ends {
    if fault == Inject::LateEnd {
        ends.deliver(version, range, How::Changed);
        return Ends::NOBODY;
    }
    ends
}

impl Registry {
    /// Opens a bracket around what somebody may use.
    #[inline(always)]
    pub(super) fn start_nonblock(&self, range: &Range) -> Result<Started, Refused> {
        let handle = self.begin(range.event, Mode::NonBlock);
        let version = handle.version();
        let common = &*version.common;
        let fault = common.counters.injected();
        if fault == Inject::SkipNotifier {
            let ends = Ends::NOBODY;
            return Ok(Started { handle, ends });
        }
        if let Some(holder) = version.overdue_tlb_user() {
            return Err(overdue(common, holder));
        }
        let cx = &NonBlock::new();
        let Reached { ends, stop } = start_each(version, range, fault, move |member, _| {
            if member.is_overdue() {
                return ControlFlow::Break(Stop::Overdue);
            }
            let callback = Callback::StartNonBlock;
            let answer = contain_member(common, Mode::NonBlock, callback, member, move || {
                Notifying::nonblock(member.name(), || {
                    member.callbacks().start_nonblock(range, cx)
                })
            });
            match answer {
                Some(Ok(())) => ControlFlow::Continue(()),
                Some(Err(_)) => ControlFlow::Break(Stop::Refused),
                None => ControlFlow::Break(Stop::Panicked),
            }
        });
        if let Some(stop) = stop {
            return Err(refused(ends, stop, version, range));
        }
        let ends = due(ends, version, range, fault);
        Ok(Started { handle, ends })
    }

    /// Opens a bracket around what somebody may use, and waits for what was settled.
    #[inline(always)]
    pub(super) fn start_blockable(
        &self,
        range: &Range,
        settle_deadline: Duration,
    ) -> Result<Started, BracketError> {
        if running_callback() == Some(Mode::NonBlock) {
            self.report(Misuse::SleepInNonBlock);
        }
        let handle = self.begin(range.event, Mode::Blockable);
        let version = handle.version();
        let common = &*version.common;
        let fault = common.counters.injected();
        if fault == Inject::SkipNotifier {
            let ends = Ends::NOBODY;
            return Ok(Started { handle, ends });
        }
        if let Some(holder) = version.overdue_tlb_user() {
            let holder = Arc::clone(holder);
            return Err(BracketError::Overdue { holder });
        }
        let to_settle = Settling::new(settle_deadline);
        let settling = &to_settle;
        let cx = &Blockable::new(settling);
        let Reached { ends, stop } = start_each(version, range, fault, move |member, nr| {
            if settling.has_failed() {
                return ControlFlow::Break(Stop::Late);
            }
            if member.is_overdue() {
                return ControlFlow::Break(Stop::Overdue);
            }
            settling.enter(nr);
            let callback = Callback::StartBlockable;
            let answer = contain_member(common, Mode::Blockable, callback, member, move || {
                Notifying::blockable(member.name(), || {
                    member.callbacks().start_blockable(range, cx)
                });
            });
            match answer {
                Some(()) => ControlFlow::Continue(()),
                None => ControlFlow::Break(Stop::Panicked),
            }
        });
        if stop.is_none() && to_settle.is_idle() {
            // Nothing is in it, and to find that out again would be a call.
            core::mem::forget(to_settle);
        } else {
            settle(ends, stop, version, range, to_settle)?;
        }
        let ends = due(ends, version, range, fault);
        Ok(Started { handle, ends })
    }

    /// Calls `release` of everybody, waits for what they settled, and takes them out. Calls nobody
    /// while one of them is overdue: then it is for the caller to come again. Called again, it
    /// waits for what had not signalled, and calls nobody.
    pub(super) fn release(&self, settle_deadline: Duration) -> Result<(), BracketError> {
        self.check_overdue()?;
        let Some(handle) = self.close() else {
            self.settle_release(settle_deadline)?;
            if self.is_whole() {
                self.forget_all();
            }
            return Ok(());
        };
        let settling = Settling::collecting();
        let cx = Blockable::new(&settling);
        let mut owed = Vec::new();
        let mut panicked = None;
        let version = handle.version();
        let _: ControlFlow<()> = version.visit_all(&mut |member| {
            let (common, callback) = (&version.common, Callback::Release);
            let answer = contain_member(common, Mode::Blockable, callback, member, || {
                let _published = Published::enter(member.name());
                member.callbacks().release(&cx);
            });
            if answer.is_none() {
                panicked.get_or_insert_with(|| Arc::clone(member.name()));
            }
            owed.extend(settling.take().into_iter().map(|fence| Owed {
                holder: Arc::clone(member.name()),
                fence,
            }));
            ControlFlow::Continue(())
        });
        self.owe(owed, panicked.is_some());
        self.settle_release(settle_deadline)?;
        if let Some(holder) = panicked {
            return Err(BracketError::Panicked { holder });
        }
        self.forget_all();
        Ok(())
    }

    /// Waits for all that is owed of a release.
    fn settle_release(&self, settle_deadline: Duration) -> Result<(), BracketError> {
        let owed = self.owed();
        let settling = Settling::new(settle_deadline);
        for (nth, owed) in owed.iter().enumerate() {
            settling.enter(nth);
            settling.add(&owed.fence);
        }
        settling.wait().map_err(|unsettled| {
            add_one(&self.common().counters.stuck);
            BracketError::Stuck {
                holder: Arc::clone(&owed[unsettled.holder].holder),
                fence: unsettled.fence,
                waited: unsettled.waited,
            }
        })
    }

    /// Names one that is overdue.
    fn check_overdue(&self) -> Result<(), BracketError> {
        let handle = self.look();
        let found = handle.version().visit_all(&mut |member| {
            if member.is_overdue() {
                return ControlFlow::Break(Arc::clone(member.name()));
            }
            ControlFlow::Continue(())
        });
        let walker = handle.version().overdue_tlb_user().cloned();
        let overdue = found.break_value().or(walker);
        overdue.map_or(Ok(()), |holder| Err(BracketError::Overdue { holder }))
    }
}

/// A bracket that was not begun, because somebody has to return first.
#[cold]
fn overdue(common: &Common, holder: &Arc<str>) -> Refused {
    add_one(&common.counters.refusals);
    Refused {
        holder: Arc::clone(holder),
        cause: Cause::Overdue,
    }
}

/// Ends the bracket that somebody stopped.
#[cold]
fn refused(ends: Ends, stop: Stop, version: &Version, range: &Range) -> Refused {
    add_one(&version.common.counters.refusals);
    let holder = name_of(version, range, ends.nr);
    ends.deliver(version, range, How::GivenUp);
    let cause = match stop {
        Stop::Panicked => Cause::Panicked,
        Stop::Overdue => Cause::Overdue,
        // Nothing is late where nothing is waited for.
        Stop::Refused | Stop::Late => Cause::WouldBlock,
    };
    Refused { holder, cause }
}

/// Waits for what was settled; ends the bracket if that, or a start, has failed.
#[cold]
fn settle(
    ends: Ends,
    stop: Option<Stop>,
    version: &Version,
    range: &Range,
    settling: Settling,
) -> Result<(), BracketError> {
    let holder = || name_of(version, range, ends.nr);
    let settled = match stop {
        Some(Stop::Refused | Stop::Panicked) => Err(BracketError::Panicked { holder: holder() }),
        Some(Stop::Overdue) => Err(BracketError::Overdue { holder: holder() }),
        Some(Stop::Late) | None => settling
            .wait()
            .map_err(|unsettled| stuck(version, range, unsettled)),
    };
    settled.inspect_err(|_| ends.deliver(version, range, How::GivenUp))
}

/// Names whose fence did not signal, of those whom `range` concerns.
fn stuck(version: &Version, range: &Range, unsettled: Unsettled) -> BracketError {
    add_one(&version.common.counters.stuck);
    BracketError::Stuck {
        holder: name_of(version, range, unsettled.holder),
        fence: unsettled.fence,
        waited: unsettled.waited,
    }
}

/// The name of the subscriber that comes after `before` others, of those whom `range` concerns.
fn name_of(version: &Version, range: &Range, mut before: usize) -> Arc<str> {
    let found = version.visit(range, |member| {
        if before == 0 {
            return ControlFlow::Break(Arc::clone(member.name()));
        }
        before -= 1;
        ControlFlow::Continue(())
    });
    found.break_value().unwrap_or_else(|| "".into())
}

/// Runs a callback of a member, which is convicted if it overstays its budget in a worker; `None`
/// if it panicked, which is counted.
#[inline(always)]
pub(super) fn contain_member<R>(
    common: &Common,
    mode: Mode,
    callback: Callback,
    member: &Arc<Member>,
    call: impl Fn() -> R,
) -> Option<R> {
    let _watched = Watched::enter(callback, member);
    let answer = contain(common, mode, &**member, call);
    if answer.is_none() {
        tell_of_panic(common, callback, member);
    }
    answer
}

#[cold]
#[inline(never)]
fn tell_of_panic(common: &Common, callback: Callback, member: &Member) {
    common.misuses.tell(Misuse::Panic(callback), member.name());
}

/// Runs a callback of `whose`; `None` if it panicked, which is counted.
#[inline(always)]
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
            callback::bury(common, payload);
            None
        }
    }
}
