//! lockdep.
