//! A validator to be tested itself: its races come often, and faults can be put into it.

use crate::validator::Validator;

/// A fault of a validator, put in on purpose: who tests it must notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Inject {
    /// None.
    #[default]
    Nothing,
    /// Orders from a lock that is held as a reader are not recorded.
    MissReaders,
    /// Chains are put into a table that was cleared after their beginnings were looked up.
    StaleChains,
    /// Chains are told to others before they are validated.
    EarlyChains,
}

impl Validator {
    /// One that has seen nothing, with room for very few chains, and that trusts each of them at
    /// once. A simulator may let other tasks go on between its own steps.
    ///
    /// As chains are forgotten all the time, their numbers come back soon. A thread may hold three
    /// locks.
    #[must_use]
    pub fn tight() -> Self {
        Self::made_tight()
    }

    /// Puts a fault in.
    pub fn inject(&self, fault: Inject) {
        self.unwatched(|inner| inner.core.lock().injected = fault);
    }
}
