//! What a ring counts.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters that only grow.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        /// The counters of a [`Ring`](super::Ring) at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct RingStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> RingStats {
                RingStats {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }

        impl RingStats {
            /// Every counter with its name.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Operations that the kernel has finished.
    ops,
    /// Bytes that they transferred.
    bytes,
    /// Operations that found their slot registered.
    hits,
    /// Buffers registered.
    registrations,
    /// Operations through their address, for want of a slot or because a bracket was open.
    bypasses,
    /// Slots taken back for an invalidation, for another run, or at the end.
    revocations,
    /// Non-blockable invalidations that were refused.
    refusals,
    /// Operations that ended short or in an error.
    op_errors,
    /// Registrations that the kernel refused.
    registration_errors,
    /// Completions that belong to nothing, and other things that must not happen.
    strays,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `n`.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
