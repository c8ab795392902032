//! Nobody to tell: a memory manager without devices.
//!
//! Brackets are there, so that the code that opens them is one, and cost nothing: a bracket is a
//! value without a size, and every question about it is answered by the compiler.

mod error;
mod range;

use crate::addr::Vaddr;
use core::time::Duration;

pub use error::{BracketError, Cause, Refused};
pub use range::{Event, MmId, Mode, Owner, Range};

/// Those who are told when one address space changes: nobody.
#[derive(Debug)]
pub struct Notifiers {
    mm: MmId,
}

/// An open bracket, of which nobody knows.
#[derive(Debug)]
#[must_use = "the bracket ends when this is dropped"]
pub struct Invalidation(());

impl Notifiers {
    /// Nobody is told of anything.
    pub fn new(mm: MmId) -> Self {
        Self { mm }
    }

    /// The address space whose changes these are.
    pub fn mm(&self) -> MmId {
        self.mm
    }

    /// Opens a bracket.
    ///
    /// # Errors
    ///
    /// None.
    #[inline]
    pub fn start_nonblock(
        &self,
        _start: Vaddr,
        _end: Vaddr,
        _event: Event,
    ) -> Result<Invalidation, Refused> {
        Ok(Invalidation(()))
    }

    #[inline]
    pub(crate) fn start_for_nobody(
        &self,
        _start: Vaddr,
        _end: Vaddr,
        _event: Event,
    ) -> Option<Invalidation> {
        Some(Invalidation(()))
    }

    /// Opens a bracket.
    ///
    /// # Errors
    ///
    /// None.
    #[inline]
    pub fn start_blockable(
        &self,
        _start: Vaddr,
        _end: Vaddr,
        _event: Event,
        _settle_deadline: Duration,
    ) -> Result<Invalidation, BracketError> {
        Ok(Invalidation(()))
    }

    /// Whether nobody has subscribed since the bracket began.
    #[inline]
    pub fn is_current(&self, _bracket: &Invalidation) -> bool {
        true
    }

    /// Tears down.
    ///
    /// # Errors
    ///
    /// None.
    #[inline]
    pub fn release(&self, _settle_deadline: Duration) -> Result<(), BracketError> {
        Ok(())
    }

    #[inline]
    pub(crate) fn forget_all(&self) {}

    #[inline]
    pub(crate) fn has_subscriptions(&self) -> bool {
        false
    }

    #[inline]
    pub(crate) fn has_tlb_users(&self) -> bool {
        false
    }

    #[inline]
    pub(crate) fn has_overdue_tlb_user(&self) -> bool {
        false
    }

    #[inline]
    pub(crate) fn flush_tlb_users(&self, _start: Vaddr, _end: Vaddr, _event: Event) {}

    #[inline]
    pub(crate) fn note_touch(&self) -> bool {
        false
    }

    #[inline]
    pub(crate) fn note_touch_by(&self, _thread: u32) {}

    #[inline]
    pub(crate) fn test_young(&self, _start: Vaddr, _end: Vaddr) -> bool {
        false
    }

    #[inline]
    pub(crate) fn clear_young(&self, _start: Vaddr, _end: Vaddr) -> bool {
        false
    }

    /// Whether nobody is told of anything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bracket_has_no_size() {
        assert_eq!(size_of::<Invalidation>(), 0);
        let notifiers = Notifiers::new(MmId(1));
        let bracket = notifiers.start_nonblock(Vaddr(0), Vaddr(4096), Event::Clear);
        assert!(notifiers.is_current(&bracket.expect("nobody refuses")));
        assert!(notifiers.is_empty());
    }
}
