//! What a mapping is to be like.

use crate::FaultMode;
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::limits::MAPPING_PAGES_MAX;

/// The longest mapping, in bytes: 4 TiB.
pub const MAPPING_BYTES_MAX: u64 = MAPPING_PAGES_MAX as u64 * PAGE_SIZE as u64;

/// What a mapping is to be like; a number of bytes alone means all the rest as the
/// [`Builder`](crate::Builder) has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapOptions {
    len_bytes: u64,
    fault_mode: Option<FaultMode>,
    is_shared: bool,
}

impl MapOptions {
    /// A mapping of `len_bytes`: a multiple of [`PAGE_SIZE`], 1 page to [`MAPPING_BYTES_MAX`].
    pub const fn new(len_bytes: u64) -> Self {
        Self {
            len_bytes,
            fault_mode: None,
            is_shared: false,
        }
    }

    /// A mapping of so many pages.
    pub const fn of_pages(nr_pages: u32) -> Self {
        Self::new(nr_pages as u64 * PAGE_SIZE as u64)
    }

    /// Who resolves its faults.
    #[must_use]
    pub const fn fault_mode(mut self, mode: FaultMode) -> Self {
        self.fault_mode = Some(mode);
        self
    }

    /// Other processes can map it, too: see [`Pinless::share`](crate::Pinless::share). The kernel
    /// does not keep a page of such memory in its place for a device that nobody was told of;
    /// private memory it does.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.is_shared = true;
        self
    }

    pub(crate) fn is_shared(self) -> bool {
        self.is_shared
    }

    pub(crate) fn fault_mode_or(self, default: FaultMode) -> FaultMode {
        self.fault_mode.unwrap_or(default)
    }

    /// The pages, if there can be so many.
    pub(crate) fn nr_pages(self) -> Option<u32> {
        let is_possible = self.len_bytes.is_multiple_of(PAGE_SIZE as u64)
            && (1..=MAPPING_BYTES_MAX).contains(&self.len_bytes);
        is_possible.then(|| (self.len_bytes / PAGE_SIZE as u64) as u32)
    }

    pub(crate) fn len_bytes(self) -> u64 {
        self.len_bytes
    }
}

impl From<u64> for MapOptions {
    fn from(len_bytes: u64) -> Self {
        Self::new(len_bytes)
    }
}
