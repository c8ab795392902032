//! Accesses to a range of addresses that end in an error, not in a signal.

use crate::mapping::AccessError;
use crate::uaccess::{self, UserFault};
use pinless_mm::gfp::might_touch;

/// A range of managed memory.
///
/// # Invariants
///
/// The range is mapped for as long as somebody has this value.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    base: usize,
    len: usize,
}

impl Window {
    /// # Safety
    ///
    /// The `len` bytes from `base` on are a mapping of this crate, which stays while the value
    /// is in use.
    pub(crate) unsafe fn new((base, len): (usize, usize)) -> Self {
        // INVARIANT: by this function's contract.
        Self { base, len }
    }

    #[track_caller]
    pub(crate) fn read_at(self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        let address = self.locate(offset, into.len())?;
        might_touch();
        // SAFETY: the bytes lie in the range (`locate`), which is mapped (type invariant).
        unsafe { uaccess::copy_in(into, address as *const u8) }.map_err(|fault| self.failed(fault))
    }

    #[track_caller]
    pub(crate) fn write_at(self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        let address = self.locate(offset, from.len())?;
        might_touch();
        // SAFETY: as in `read_at`; no Rust reference into a mapping is ever made.
        unsafe { uaccess::copy_out(address as *mut u8, from) }.map_err(|fault| self.failed(fault))
    }

    #[track_caller]
    pub(crate) fn load_u64(self, offset: u64) -> Result<u64, AccessError> {
        let address = self.locate_word(offset)?;
        might_touch();
        // SAFETY: as in `read_at`; the address is aligned (`locate_word`).
        unsafe { uaccess::load_u64(address as *const u64) }.map_err(|fault| self.failed(fault))
    }

    #[track_caller]
    pub(crate) fn store_u64(self, offset: u64, value: u64) -> Result<(), AccessError> {
        let address = self.locate_word(offset)?;
        might_touch();
        // SAFETY: as in `write_at`; the address is aligned (`locate_word`).
        unsafe { uaccess::store_u64(address as *mut u64, value) }
            .map_err(|fault| self.failed(fault))
    }

    /// The address of `offset`, from which `len` bytes lie in the range.
    pub(crate) fn locate(self, offset: u64, len: usize) -> Result<usize, AccessError> {
        let mapped = self.len as u64;
        if offset <= mapped && len as u64 <= mapped - offset {
            Ok(self.base + offset as usize)
        } else {
            Err(AccessError::OutOfRange { offset, len })
        }
    }

    fn locate_word(self, offset: u64) -> Result<usize, AccessError> {
        let len = size_of::<u64>();
        if offset.is_multiple_of(len as u64) {
            self.locate(offset, len)
        } else {
            Err(AccessError::Misaligned { offset })
        }
    }

    fn failed(self, fault: UserFault) -> AccessError {
        let offset = fault.address.0 - self.base as u64;
        AccessError::at(offset, fault.cause)
    }
}
