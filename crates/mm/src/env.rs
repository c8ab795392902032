//! What the memory manager needs from outside and must not take itself.

/// A clock that only goes forward.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some fixed moment. Allocates nothing; callable from a signal handler.
    fn now_ns(&self) -> u64;
}
