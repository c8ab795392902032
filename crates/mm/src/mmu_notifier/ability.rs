//! What a device can let go of when it is told, and what it may be given for that.
//!
//! | declared | what happens in a bracket |
//! |---|---|
//! | [`Ability::DropRange`] | the device drops what it holds of the range |
//! | [`Ability::DropAll`] | it can only drop everything, so any bracket over its ranges costs all |
//! | [`Ability::DropLater`] | it drops when a fence signals, which it hands to `settle` |
//! | [`Immovable`] | it drops nothing, and is given pinned memory only |
//!
//! The last is no [`Notifier`](super::Notifier): there is nothing to tell it. What it uses is held
//! by a [`Pin`], and there is no other way to hand it memory:
//!
//! ```compile_fail,E0308
//! # use pinless_mm::Vma;
//! # use pinless_mm::mmu_notifier::{Attached, Immovable};
//! # use std::sync::Arc;
//! fn attach<D: Immovable>(device: Arc<D>, mapping: Arc<Vma>) -> Attached<D> {
//!     Attached::new(device, mapping) // not pinned
//! }
//! ```
//!
//! ```
//! # use pinless_mm::Pin;
//! # use pinless_mm::mmu_notifier::{Attached, Immovable};
//! # use std::sync::Arc;
//! fn attach<D: Immovable>(device: Arc<D>, pages: Pin) -> Attached<D> {
//!     Attached::new(device, pages)
//! }
//! ```

use crate::mm_struct::Pin;
use core::fmt;
use std::sync::Arc;

/// What a device can let go of when it is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ability {
    /// Any range of what it holds, at once.
    DropRange,
    /// All that it holds, at once, and no less.
    DropAll,
    /// What it holds, when a fence signals.
    DropLater,
}

/// A device that can let go of nothing while it uses memory.
pub trait Immovable: Send + Sync + 'static {
    /// Its name, for reports: in it the pages are pinned while they are attached.
    fn name(&self) -> &str;

    /// The device may use these pages from now on: they stay where they are.
    fn attach(&self, pages: &Pin);

    /// The device must stop using these pages before it returns.
    fn detach(&self, pages: &Pin);
}

/// Pinned pages in use by a device; the drop takes them from it and then unpins them.
#[must_use = "the pages are taken from the device when this is dropped"]
pub struct Attached<D: Immovable> {
    device: Arc<D>,
    pages: Pin,
}

impl<D: Immovable> Attached<D> {
    /// Hands pinned pages to a device, in whose name they are pinned from now on.
    pub fn new(device: Arc<D>, mut pages: Pin) -> Self {
        let holder = pages.vma().mm().pin_holder(device.name());
        pages.hand_to(&holder);
        device.attach(&pages);
        Self { device, pages }
    }

    /// The pages.
    pub fn pages(&self) -> &Pin {
        &self.pages
    }
}

impl<D: Immovable> Drop for Attached<D> {
    fn drop(&mut self) {
        self.device.detach(&self.pages);
    }
}

impl<D: Immovable> fmt::Debug for Attached<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}
