//! MMU notifiers: telling devices before memory changes under them.
//!
//! # The contract
//!
//! The memory manager puts a *bracket* around each change of a range: [`Notifiers`] calls the
//! `start` of every matching subscription, the change is made, and the drop of the
//! [`Invalidation`] calls `end`. What each side may rely on:
//!
//! * **Before and after.** While `start` runs, every page of the range is as it was. When it has
//!   returned `Ok`, the subscriber does not touch the old frames of the range again until it has
//!   made new translations. When `end` runs, the change is done and frames may be in other use.
//! * **No new translations in between.** From `start` to `end` no translation of the range may be
//!   installed, and one that was fetched before `start` must not be installed after it. The core
//!   cannot enforce this; counting `start` and `end`, or a sequence, can (`devices::engine::tlb`).
//! * **Exactly one end.** Each `start` that returned `Ok` gets one `end`, whatever happens to the
//!   rest of the bracket. A `start` that was refused, or that panicked, gets none.
//! * **A refusal changes nothing.** A non-blockable bracket stops at the first refusal, ends what
//!   it started, and the caller leaves the range alone. A blockable bracket cannot be refused; it
//!   can fail with a [`BracketError`] that names the holder, and then nothing has changed either.
//! * **Brackets are free.** Any number is open at once, in one thread too; they overlap, nest (an
//!   inner one may be wider) and end in any order. So nobody may hold a lock from `start` to `end`.
//!   A bracket may be wider than its change, and may end without any change.
//! * **Order.** The newest subscription is called first, at `start` and at `end`.
//! * **Filter.** A subscription that declared [`Ranges::Only`] is called for those alone. The
//!   ranges are fixed for its life, so that its starts and its ends always balance.
//! * **Callbacks** of one subscription may run at the same time as each other and as `release`.
//!   They allocate nothing, fault on nothing, take no lock that is ever held over an allocation or
//!   a fault, and neither make nor end subscriptions (`release` may end its own).
//! * **Joining late.** A subscription takes no part in brackets that were opened before it, and
//!   gets no `end` of them. The memory manager changes a page only while it owns it, and looks
//!   after it has taken it whether somebody has joined since the bracket began: then it leaves the
//!   page alone. Whoever joins after that look waits in [`Bus::fault_range`].
//! * **Leaving.** See [`Subscription`]: a drop ends it at once for new brackets, and those that are
//!   open still deliver their `end`; [`Subscription::synchronize`] also waits for them.
//! * **Teardown.** [`Notifiers::release`] calls `release` once for each subscription and then
//!   empties the list. Starts and ends may still come during `release` and, when a device does not
//!   answer in time, after it. The range goes when it has succeeded, and so must the subscriber's
//!   translations have gone.
//!
//! Whether a callback may block is a type, see [`Context`].
//!
//! ```
//! use mm::mmu_notifier::{Context, EndContext, Notifier, Range};
//! use lockdep::sync::{Mutex, ShortLock};
//! # use pinless_mm as mm;
//!
//! struct Table {
//!     entries: Mutex<Vec<Option<u64>>>,
//!     open: ShortLock<u32>,
//! }
//!
//! impl Notifier for Table {
//!     fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
//!         let mut entries = cx.lock(&self.entries)?; // taken or only tried: the mode decides
//!         entries.fill(None);
//!         *cx.short(&self.open) += 1; // last: nothing after this can be refused
//!         Ok(())
//!     }
//!
//!     fn end(&self, _range: &Range, cx: &EndContext<'_>) {
//!         *cx.short(&self.open) -= 1;
//!     }
//! }
//! ```
//!
//! Linux counterpart: mm/mmu_notifier.c
//!
//! [`Bus::fault_range`]: crate::bus::Bus::fault_range

mod ability;
mod bracket;
mod callback;
mod context;
mod error;
#[cfg(doctest)]
mod guide;
mod hooks;
mod interval;
mod member;
mod misuse;
mod node;
mod notifiers;
mod published;
mod range;
mod registry;
mod sequence;
mod shared;
mod stats;
mod subscription;
#[cfg(test)]
mod tests;
mod tree;
mod version;
mod wait;

pub use ability::{Ability, Attached, Immovable};
pub use bracket::Invalidation;
pub use callback::running_callback;
pub(crate) use callback::{Place, pay, prepare_thread};
pub use context::{Blockable, Context, EndContext, NonBlock, SETTLE_QUEUE, WouldBlock};
pub use error::{BracketError, Cause, Refused};
pub use hooks::{TlbContext, TlbSubscription, TlbUser};
pub use interval::{
    IntervalError, IntervalNotifier, IntervalSubscription, Seen, UpdateLock, Witness,
};
pub use misuse::{Misuse, MisuseReport};
pub use notifiers::Notifiers;
pub(crate) use published::Published;
pub use range::{Event, MmId, Mode, Owner, Range};
pub use shared::Shared;
pub use stats::{Inject, NotifierStats};
pub use subscription::{Ranges, Subscription};

/// What a subscriber does when memory changes. The module's head is the contract.
pub trait Notifier: Send + Sync + 'static {
    /// The pages of `range` are about to change: drop every translation of them, and stop using
    /// the old frames.
    ///
    /// Called in blockable and in non-blockable brackets; write it once, and reach every lock and
    /// every wait through `cx`. First find out whether the range is yours at all, and return `Ok`
    /// if not: a refusal for an unrelated range keeps memory from being freed for no reason. Do
    /// nothing that needs an `end` before the last step that can be refused.
    ///
    /// # Errors
    ///
    /// What a method of `cx` refused, passed on. Only a [`NonBlock`] context can refuse.
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal>;

    /// The change of `range` is over, or was given up. Called once for each `start` that
    /// returned `Ok`, with the same range; the frames may already be in other use.
    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        let _ = (range, cx);
    }

    /// The address space goes away: stop the device and drop everything. Called at most once, and
    /// before any page is freed.
    fn release(&self, cx: &Blockable<'_>) {
        let _ = cx;
    }

    /// Who this device is when it begins changes itself: of its own [`Event::Migrate`] and
    /// [`Event::Exclusive`] it is not told. Asked once, when it subscribes.
    fn owner(&self) -> Option<Owner> {
        None
    }

    /// What the device can let go of. Asked once, when it subscribes.
    fn ability(&self) -> Ability {
        Ability::DropRange
    }

    /// Whether the device has used a page of `range` since it was last asked; forgets it, and
    /// makes the device forget translations that would keep it from noticing the next use.
    fn age(&self, range: &Range, cx: &EndContext<'_>) -> bool {
        self.clear_young(range, cx)
    }

    /// Whether the device has used a page of `range` since it was last asked; forgets it. The
    /// device may go on with its translations, and so the next answer may be too low.
    fn clear_young(&self, range: &Range, cx: &EndContext<'_>) -> bool {
        let _ = (range, cx);
        false
    }

    /// Whether the device has used a page of `range` since it was last asked; changes nothing.
    fn test_young(&self, range: &Range, cx: &EndContext<'_>) -> bool {
        let _ = (range, cx);
        false
    }
}
