//! A mapping that is kept by whoever hands its addresses on.

use crate::mapping::{HostMapping, SharedMapping};
use crate::primary_mmu::HostMmu;
use std::sync::Arc;

/// A mapping, with whatever has it.
///
/// What has it is a type of the program's, which may answer with another mapping each time, and
/// keeps which of them it likes. So it is asked once, and the memory that it answered with then is
/// kept here: that is what the addresses are of.
#[derive(Clone)]
pub(crate) struct Kept {
    /// Before the memory: it ends the resolving of faults there.
    owner: SharedMapping,
    mmu: Arc<HostMmu>,
}

impl Kept {
    pub(crate) fn new(owner: SharedMapping) -> Self {
        let mmu = (*owner).as_ref().mmu();
        Self { owner, mmu }
    }

    /// The memory: there as long as this value, whatever the owner does.
    pub(crate) fn mmu(&self) -> &HostMmu {
        &self.mmu
    }

    /// The address of the first byte.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.mmu().mapping_range().0 as *mut u8
    }

    /// Bytes in the mapping.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.mmu().mapping_range().1 as u64
    }

    /// For accesses, each of which is checked by itself: should the owner answer with another
    /// mapping now, the access is to that one, inside of it.
    #[cfg_attr(not(feature = "kvm"), expect(dead_code, reason = "for guests of KVM"))]
    pub(crate) fn mapping(&self) -> &HostMapping {
        (*self.owner).as_ref()
    }
}
