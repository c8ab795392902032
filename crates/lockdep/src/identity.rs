//! What an object keeps of its class: everything, or nothing where nothing watches.
//!
//! Without the feature `validate` it takes no room, so that a lock is as large as the lock inside.

use std::panic::Location;
#[cfg(feature = "validate")]
use std::sync::atomic::{AtomicU32, Ordering};

use crate::class::Class;
use crate::word::ClassId;

/// Name, place and number of a class.
#[cfg(feature = "validate")]
pub(crate) struct Identity {
    name: &'static str,
    location: &'static Location<'static>,
    /// The number of the class, 0 until the first use.
    ///
    /// Relaxed: the number alone is used, and what it stands for is read under the registry's lock.
    id: AtomicU32,
}

#[cfg(feature = "validate")]
impl Identity {
    pub(crate) const fn new(name: &'static str, location: &'static Location<'static>) -> Self {
        Self {
            name,
            location,
            id: AtomicU32::new(0),
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) const fn location(&self) -> &'static Location<'static> {
        self.location
    }

    #[inline(always)]
    pub(crate) fn id(&self) -> Option<ClassId> {
        match self.id.load(Ordering::Relaxed) {
            0 => None,
            id => Some(ClassId::from_index(id)),
        }
    }

    pub(crate) fn set_id(&self, id: ClassId) {
        self.id.store(id.index(), Ordering::Relaxed);
    }
}

#[cfg(feature = "validate")]
impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            id: AtomicU32::new(self.id.load(Ordering::Relaxed)),
            ..*self
        }
    }
}

/// Nothing: all objects are of the class that is not tracked.
#[cfg(not(feature = "validate"))]
#[derive(Clone)]
pub(crate) struct Identity;

#[cfg(not(feature = "validate"))]
impl Identity {
    pub(crate) const fn new(_name: &'static str, _location: &'static Location<'static>) -> Self {
        Self
    }

    pub(crate) const fn name(&self) -> &'static str {
        ""
    }

    pub(crate) const fn location(&self) -> &'static Location<'static> {
        Location::caller()
    }

    pub(crate) fn id(&self) -> Option<ClassId> {
        Some(ClassId::of_key(0))
    }

    pub(crate) fn set_id(&self, _id: ClassId) {}
}

/// A class by reference, of no size where classes have none.
#[derive(Clone, Copy)]
pub(crate) struct ClassRef<'a> {
    #[cfg(feature = "validate")]
    class: &'a Class,
    #[cfg(not(feature = "validate"))]
    class: std::marker::PhantomData<&'a Class>,
}

#[cfg(feature = "validate")]
impl<'a> ClassRef<'a> {
    #[inline(always)]
    pub(crate) const fn new(class: &'a Class) -> Self {
        Self { class }
    }

    #[inline(always)]
    pub(crate) const fn get(self) -> &'a Class {
        self.class
    }
}

#[cfg(not(feature = "validate"))]
impl<'a> ClassRef<'a> {
    pub(crate) const fn new(_class: &'a Class) -> Self {
        Self {
            class: std::marker::PhantomData,
        }
    }

    pub(crate) const fn get(self) -> &'a Class {
        const { &Class::new("") }
    }
}
