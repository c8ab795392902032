//! What a lock is called, where it was built, and which of the validator's classes it is of.
//!
//! Linux counterpart: struct lock_class_key in include/linux/lockdep_types.h.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::Location;

use crate::identity::Identity;
use crate::registry::{self, Attributes, KeyName};
use crate::task;
use crate::word::ClassId;

/// The name of a lock and the place of its constructor call.
///
/// Two locks are of one class when both are equal: lock orders are judged between classes, so that
/// what was seen on one object counts for all of them. Each object carries its own `Class`, and the
/// address of that field is the address by which a [`Scheduler`](crate::Scheduler) and the
/// validator know the object.
///
/// Without the feature `validate` it is empty, and so are its name and place.
///
/// Kernel counterpart: `struct lock_class_key`, of which a static one stands at each init call.
#[derive(Clone)]
pub struct Class {
    identity: Identity,
}

impl Class {
    /// A class of this name, built where the caller stands.
    ///
    /// Constructors that pass a name on are `#[track_caller]` themselves, so the place is that of
    /// the outermost one.
    #[track_caller]
    pub const fn new(name: &'static str) -> Self {
        Self {
            identity: Identity::new(name, Location::caller()),
        }
    }

    /// The name given to the constructor.
    pub const fn name(&self) -> &'static str {
        self.identity.name()
    }

    /// The place of the constructor call.
    pub const fn location(&self) -> &'static Location<'static> {
        self.identity.location()
    }

    /// The validator's number of this class; found out at the first use, and kept in the object.
    #[inline]
    pub(crate) fn id(&self, attributes: &Attributes) -> ClassId {
        self.known_id().unwrap_or_else(|| self.resolve(attributes))
    }

    /// The number in the object, if it was found out before.
    #[inline(always)]
    pub(crate) fn known_id(&self) -> Option<ClassId> {
        self.identity.id()
    }

    #[cold]
    fn resolve(&self, attributes: &Attributes) -> ClassId {
        let resolve = || {
            let id = registry::resolve_site(self.name(), self.location(), attributes);
            self.set_id(id);
            id
        };
        match task::unless_busy(resolve) {
            Some(id) => id,
            None if registry::is_started() => resolve(),
            // An allocator at work for the registry: it has to wait for its class.
            None => ClassId::of_key(0),
        }
    }

    /// Makes the object one of another class.
    pub(crate) fn set_id(&self, id: ClassId) {
        self.identity.set_id(id);
    }

    /// The address that stands for the object which holds this class.
    ///
    /// A class that is watched has a size and lies inside its object, so no two live objects share
    /// it.
    pub(crate) fn addr(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl PartialEq for Class {
    fn eq(&self, other: &Self) -> bool {
        (self.name(), self.location()) == (other.name(), other.location())
    }
}

impl Eq for Class {}

impl Hash for Class {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.name(), self.location()).hash(state);
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class")
            .field("name", &self.name())
            .field("location", &self.location())
            .finish()
    }
}

/// A class made at run time, for locks whose class is not their construction site.
///
/// For example one class a device. Dropping it *zaps* the class: every order with it is
/// forgotten, and a lock of it that is still held is reported. Keep it alive for as long as locks
/// of it are used; a lock of a zapped class is no longer validated.
///
/// Kernel counterpart: `lockdep_register_key()` and `lockdep_unregister_key()`.
#[derive(Debug)]
pub struct DynamicClass {
    id: ClassId,
}

impl DynamicClass {
    /// A class of this name, unlike every other; allocates.
    #[must_use]
    pub fn new(name: impl Into<String>, attributes: Attributes) -> Self {
        let id = registry::register(KeyName::unique(), name.into().into(), &attributes);
        Self { id }
    }

    /// The number of its class of subclass 0.
    pub fn id(&self) -> ClassId {
        self.id
    }
}

impl Drop for DynamicClass {
    fn drop(&mut self) {
        crate::event::zap(self.id);
    }
}
