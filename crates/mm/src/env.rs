//! What the memory manager needs from outside and must not take itself.

use std::sync::OnceLock;

/// A clock that only goes forward.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some fixed moment. Allocates nothing; callable from a signal handler.
    fn now_ns(&self) -> u64;
}

static NUMBER: OnceLock<fn() -> u32> = OnceLock::new();

/// Says how a machine numbers threads whose faults others resolve: `number` gives the calling one
/// the number, not zero, by which [`FaultHandler::touched`] speaks of it. The first that says so
/// is heard.
///
/// [`FaultHandler::touched`]: crate::fault::FaultHandler::touched
pub fn number_threads(number: fn() -> u32) {
    NUMBER.get_or_init(|| number);
}

/// The number of the calling thread, if threads have numbers.
#[cfg(feature = "notifiers")]
pub(crate) fn thread_number() -> Option<u32> {
    NUMBER.get().map(|number| number())
}
