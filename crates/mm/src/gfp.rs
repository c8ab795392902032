//! How far an allocation may go to get a frame.
//!
//! Linux counterpart: `gfp_t` in `include/linux/gfp_types.h`.

/// What an allocation outside a fault may do when no frame is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gfp {
    /// May reclaim in the calling thread, which may call notifiers in non-blockable mode, and may
    /// wait for frames. Never under a lock that a notifier takes.
    Kernel,
    /// Neither reclaims nor waits for frames: gives up at once when none is free.
    NoWait,
}
