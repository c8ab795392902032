//! One subscription for each kind of subscriber, shared by all who need it.
//!
//! Linux counterpart: mmu_notifier_get() and mmu_notifier_put()

use super::Notifier;
use super::notifiers::Notifiers;
use super::subscription::{Ranges, Subscription};
use core::any::{Any, TypeId};
use core::fmt;
use lockdep::sync::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// The subscriptions that are shared, one for each type of subscriber.
pub(super) struct Kinds {
    by_type: Mutex<BTreeMap<TypeId, Weak<dyn Any + Send + Sync>>>,
}

impl Kinds {
    pub(super) fn new() -> Self {
        Self {
            by_type: Mutex::new("mmu_notifier.kinds", BTreeMap::new()),
        }
    }
}

/// A share of a subscription; made by [`Notifiers::get`].
///
/// The drop of the last share ends the subscription as the drop of a [`Subscription`] does:
/// without waiting, so it is allowed in [`release`](Notifier::release). To wait,
/// [`Notifiers::synchronize`].
#[must_use = "the subscription ends when the last share is dropped"]
pub struct Shared<N> {
    kind: Arc<Kind<N>>,
}

struct Kind<N> {
    notifier: Arc<N>,
    subscription: Subscription,
}

impl Notifiers {
    /// A share of the subscription of the subscriber of type `N`, which is made if there is none:
    /// then `make` gives the subscriber, and it is subscribed to `ranges`.
    ///
    /// One subscriber of a type in one address space, however many ask: what the first said of
    /// `name` and `ranges` holds for all, so let all say the same. Allocates; never call it
    /// in a callback. `make` must not call back.
    ///
    /// # Errors
    ///
    /// That of `make`; nothing was subscribed then.
    pub fn get<N: Notifier, E>(
        &self,
        name: &str,
        ranges: Ranges,
        make: impl FnOnce() -> Result<Arc<N>, E>,
    ) -> Result<Shared<N>, E> {
        let mut by_type = self.kinds().by_type.lock();
        by_type.retain(|_, kind| kind.strong_count() > 0);
        let found = by_type.get(&TypeId::of::<N>()).and_then(Weak::upgrade);
        if let Some(kind) = found.and_then(|kind| kind.downcast::<Kind<N>>().ok()) {
            return Ok(Shared { kind });
        }
        let notifier = make()?;
        let kind = Arc::new(Kind {
            subscription: self.subscribe(name, ranges, Arc::clone(&notifier)),
            notifier,
        });
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(&kind) as _;
        by_type.insert(TypeId::of::<N>(), Arc::downgrade(&any));
        Ok(Shared { kind })
    }
}

impl<N> Shared<N> {
    /// The subscriber.
    pub fn notifier(&self) -> &Arc<N> {
        &self.kind.notifier
    }

    /// The name under which reports speak of it.
    pub fn name(&self) -> &str {
        self.kind.subscription.name()
    }
}

impl<N> Clone for Shared<N> {
    fn clone(&self) -> Self {
        Self {
            kind: Arc::clone(&self.kind),
        }
    }
}

impl<N> fmt::Debug for Shared<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}
