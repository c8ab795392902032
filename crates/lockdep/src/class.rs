//! What a lock is called, and where it was built.
//!
//! Linux counterpart: struct lock_class_key in include/linux/lockdep_types.h.

use std::panic::Location;

/// The name of a lock and the place of its constructor call.
///
/// Two locks are of one class when both are equal: lock orders are judged between classes, so that
/// what was seen on one object counts for all of them. Each object carries its own `Class`, and the
/// address of that field is the address by which a [`Scheduler`](crate::Scheduler) knows the
/// object.
///
/// Kernel counterpart: `struct lock_class_key`, of which a static one stands at each init call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Class {
    name: &'static str,
    location: &'static Location<'static>,
}

impl Class {
    /// A class of this name, built where the caller stands.
    ///
    /// Constructors that pass a name on are `#[track_caller]` themselves, so the place is that of
    /// the outermost one.
    #[track_caller]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            location: Location::caller(),
        }
    }

    /// The name given to the constructor.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The place of the constructor call.
    pub const fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// The address that stands for the object which holds this class.
    ///
    /// A class has a size and lies inside its object, so no two live objects share it.
    pub(crate) fn addr(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}
