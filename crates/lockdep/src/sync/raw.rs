//! The validator's own lock: never one of a user's, and never validated.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock inside the validator.
///
/// It is held for bounded work without foreign code, waits or allocation, so it may be taken under
/// any lock of a program, and inside an allocator. It knows no scheduler: its holder is never
/// switched out by one, as nothing under it passes a point.
#[derive(Debug)]
pub(crate) struct RawLock<T>(Mutex<T>);

impl<T> RawLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
