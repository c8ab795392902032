//! The end of a piece of work that somebody else does, shared by all who care.
//!
//! Linux counterpart: drivers/dma-buf/dma-fence.c.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Waited;
use super::gate::Gate;
use super::scheduler::PointKind;
use crate::{Class, wait};

/// A one-shot event, held by reference: clones are the same fence, and equal.
///
/// Whoever makes a fence owes a signal: nothing between its making and the signal may wait for
/// anything that itself waits for fences.
///
/// Kernel counterpart: `struct dma_fence`.
#[derive(Clone)]
pub struct Fence {
    gate: Arc<Gate>,
}

impl Fence {
    /// An unsignalled fence of the class of this name and place; allocates.
    #[track_caller]
    pub fn new(class: &'static str) -> Self {
        let gate = Gate::new(Class::new(class));
        gate.begin();
        Self {
            gate: Arc::new(gate),
        }
    }

    /// Signals the fence and lets all waiters go on; true for the first call only.
    ///
    /// What the caller did before is seen by whoever has waited. Never sleeps; allocates nothing.
    /// Kernel counterpart: `dma_fence_signal()`.
    #[track_caller]
    pub fn signal(&self) -> bool {
        self.gate.open(PointKind::Signal)
    }

    /// Whether the fence was signalled: one load, no scheduler point.
    ///
    /// Kernel counterpart: `dma_fence_is_signaled()`.
    #[inline]
    pub fn is_signalled(&self) -> bool {
        self.gate.is_open()
    }

    /// Sleeps until the fence is signalled.
    ///
    /// May sleep; allocates nothing. Kernel counterpart: `dma_fence_wait()`.
    #[track_caller]
    pub fn wait(&self) {
        wait::might_wait_for_fence();
        let _: Waited = self.gate.wait(None);
    }

    /// Sleeps until the fence is signalled, but for no longer than `timeout`, virtual under a
    /// scheduler.
    ///
    /// May sleep; allocates nothing. Kernel counterpart: `dma_fence_wait_timeout()`.
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> Waited {
        self.gate.wait(Some(timeout))
    }

    /// What the fence is called, and where it was built.
    pub fn class(&self) -> &Class {
        self.gate.class()
    }
}

/// Two handles are equal when they are the same fence.
impl PartialEq for Fence {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.gate, &other.gate)
    }
}

impl Eq for Fence {}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence")
            .field("class", &self.class().name())
            .field("signalled", &self.is_signalled())
            .finish()
    }
}
