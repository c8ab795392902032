//! Maps: what the validator treats as a lock though there is none.
//!
//! A map stands for anything that must not be entered while something is held that is needed
//! inside: reclaim, a callback, a work item, a thread that is joined.
//!
//! ```
//! use lockdep::Map;
//!
//! static RECLAIM: Map = Map::new("reclaim");
//!
//! fn reclaim() {
//!     let _inside = RECLAIM.enter();
//!     // Locks taken here may not be held by who allocates.
//! }
//!
//! fn allocate() {
//!     RECLAIM.might_acquire();
//! }
//! # reclaim();
//! # allocate();
//! ```
//!
//! Linux counterpart: the lockdep maps of mm/page_alloc.c and kernel/workqueue.c.

use std::marker::PhantomData;

use crate::class::Class;
use crate::event::{self, Acquire};
use crate::hooks;
use crate::registry::{Attributes, WaitType};
use crate::task::Site;
use crate::word::{ClassId, Mode};

/// A pretended lock.
#[derive(Debug)]
pub struct Map {
    class: Class,
    attributes: Attributes,
}

/// The time inside a map; stays in its thread.
#[must_use = "the map is left when the guard is dropped"]
#[derive(Debug)]
pub struct MapGuard<'a> {
    map: &'a Map,
    not_send: PhantomData<*const ()>,
}

impl Map {
    /// A map of the class of this name and place, which waits for nothing known.
    #[track_caller]
    pub const fn new(name: &'static str) -> Self {
        Self::with(name, Attributes::MAP)
    }

    /// A map that counts as a wait of this type: entering it where such waits are forbidden is
    /// reported.
    #[track_caller]
    pub const fn waiting(name: &'static str, wait: WaitType) -> Self {
        Self::with(name, Attributes::of(wait))
    }

    /// A map with these attributes.
    #[track_caller]
    pub const fn with(name: &'static str, attributes: Attributes) -> Self {
        Self {
            class: Class::new(name),
            attributes,
        }
    }

    /// Enters it alone.
    #[track_caller]
    pub fn enter(&self) -> MapGuard<'_> {
        self.enter_as(Mode::Exclusive)
    }

    /// Enters it as a reader: who is inside does not keep other readers out.
    #[track_caller]
    pub fn read(&self) -> MapGuard<'_> {
        self.enter_as(Mode::Shared)
    }

    /// Enters it as a reader that may be inside already.
    #[track_caller]
    pub fn read_recursive(&self) -> MapGuard<'_> {
        self.enter_as(Mode::SharedRecursive)
    }

    /// Enters it in this mode.
    #[track_caller]
    pub fn enter_as(&self, mode: Mode) -> MapGuard<'_> {
        event::acquire(&Acquire::new(self.id(), self.class.addr(), mode));
        MapGuard {
            map: self,
            not_send: PhantomData,
        }
    }

    /// Says that the caller might enter it, and does not.
    ///
    /// Kernel counterpart: `might_lock()`.
    #[track_caller]
    pub fn might_acquire(&self) {
        drop(self.enter());
    }

    /// Says that the caller might enter it as a reader.
    #[track_caller]
    pub fn might_read(&self) {
        drop(self.read());
    }

    /// Says that the caller waits until nobody is inside.
    #[track_caller]
    pub fn sync(&self) {
        event::sync(
            self.id(),
            self.class.addr(),
            Mode::Exclusive,
            Site::caller(),
        );
    }

    /// Whether the calling thread is inside; `None` when the validator is off.
    #[must_use]
    pub fn is_entered(&self) -> Option<bool> {
        event::is_held(self.class.addr(), event::HeldAs::Any)
    }

    /// Its class.
    #[must_use]
    pub fn id(&self) -> ClassId {
        self.class.id(&self.attributes)
    }

    pub(crate) fn addr(&self) -> usize {
        self.class.addr()
    }
}

impl Drop for MapGuard<'_> {
    fn drop(&mut self) {
        event::release_at(self.map.class.addr(), Site::Unknown);
    }
}

/// Says that the caller might sleep; reported where that is forbidden.
///
/// [`sync::sleep`](crate::sync::sleep) says so itself. Kernel counterpart: `might_sleep()`.
#[track_caller]
pub fn might_sleep() {
    might_sleep_at(Site::caller());
}

/// The same, at this place.
pub(crate) fn might_sleep_at(site: Site) {
    static SLEEP: Map = Map::waiting("sleep", WaitType::Sleep);
    if !hooks::load().has_validator() {
        return;
    }
    // Whoever holds a lock may sleep: only the wait type counts, so no order is recorded.
    event::acquire(&Acquire {
        site,
        ..Acquire::new(SLEEP.id(), SLEEP.addr(), Mode::Exclusive).unchecked()
    });
    event::release_at(SLEEP.addr(), Site::Unknown);
}
