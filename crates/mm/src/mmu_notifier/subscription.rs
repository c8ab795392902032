//! Subscriptions to the list: what they match, and how they end.

use super::ability::Ability;
use super::member::Place;
use super::range::Range;
use super::registry::Registry;
use crate::addr::Vaddr;
use core::fmt;
use std::sync::Arc;

/// Which changes a subscription is told of. Fixed when it is made.
#[derive(Clone, Debug)]
pub enum Ranges {
    /// All of the address space.
    WholeMm,
    /// Those that overlap one of these; empty ranges match nothing.
    Only(Vec<core::ops::Range<Vaddr>>),
}

impl Ranges {
    /// The same ranges in ascending order, disjoint and not empty, so that one look finds a match.
    pub(super) fn normalize(self) -> Self {
        let Self::Only(mut ranges) = self else {
            return self;
        };
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, kept| {
            let is_joined = next.start <= kept.end;
            if is_joined {
                kept.end = kept.end.max(next.end);
            }
            is_joined
        });
        Self::Only(ranges)
    }

    /// Whether a change of `range` concerns these. They are normalized.
    #[inline]
    pub(super) fn matches(&self, range: &Range) -> bool {
        match self {
            Self::WholeMm => true,
            Self::Only(ranges) => is_any_met(ranges, range),
        }
    }
}

/// Whether `range` meets one of these. Not inlined: who is told of everything would read all of
/// the range beforehand.
#[inline(never)]
fn is_any_met(ranges: &[core::ops::Range<Vaddr>], range: &Range) -> bool {
    let after = ranges.partition_point(|own| own.end <= range.start);
    let next = ranges.get(after);
    next.is_some_and(|own| range.overlaps(own.start, own.end))
}

/// A place in the list of those who are told; made by [`Notifiers::subscribe`].
///
/// A drop ends the subscription without waiting: brackets that begin later do not call it, those
/// that are open still deliver their `end`, and the last of them lets go of the notifier, which
/// may be dropped there. To reuse what the callbacks use, [`synchronize`](Self::synchronize).
///
/// So a drop while a bracket is open is no misuse, other than that of an interval: no start is left
/// without its end, and what both use lives until then. It could not be avoided either: brackets
/// over any range come at any time, and unlike the owner of an interval, whose lookups wait for
/// them, who is on the list cannot know of them.
///
/// Before either, the device must have stopped using its translations: nobody will tell it again.
///
/// [`Notifiers::subscribe`]: super::Notifiers::subscribe
#[must_use = "a subscription ends when it is dropped"]
pub struct Subscription {
    name: Arc<str>,
    ability: Ability,
    place: Place,
    registry: Arc<Registry>,
}

impl Subscription {
    pub(super) fn new(
        name: Arc<str>,
        ability: Ability,
        place: Place,
        registry: Arc<Registry>,
    ) -> Self {
        Self {
            name,
            ability,
            place,
            registry,
        }
    }

    /// The name under which reports speak of the subscriber.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the subscriber can let go of when it is told, as it said when it subscribed.
    pub fn ability(&self) -> Ability {
        self.ability
    }

    /// Ends the subscription and waits until no callback of it runs or ever will: until each
    /// bracket is closed that was open now. The notifier has been let go of by then.
    ///
    /// Never call it in a callback, under a lock that a callback takes, or with a bracket open.
    pub fn synchronize(self) {
        let registry = Arc::clone(&self.registry);
        drop(self);
        registry.synchronize();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.registry.leave(self.place);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
