//! Where the contents of pages go that are in no frame.
//!
//! [`Zswap`] keeps them compressed in memory that was set aside at start: by a fast codec at first,
//! by a dense one when they stay away, and packed closer when its blocks have become sparse. What a
//! page's state word has to remember of a stored page is a [`Stored`]: 32 bits of payload, one
//! flag, ten bits of tag.
//!
//! # Fault model
//!
//! A store may be lost (acknowledged, never written) and a slot may change by itself. Neither is
//! ever returned as data: every slot names its owner, carries a sequence number whose low bits are
//! the tag, and a checksum over all of it. [`Inject`] makes both faults happen, so that a test can
//! show that they are seen.
//!
//! Linux counterpart: `mm/zswap.c`, `mm/zsmalloc.c`.

mod backing_file;
mod codec;
mod dense;
mod file_store;
mod header;
mod randomness;
mod repack;
mod size_class;
mod slab;
mod zswap;

#[cfg(test)]
mod tests;

pub use backing_file::{
    BLOCK_BYTES, BackingFile, Buffer, CLUSTER_BYTES, Cluster, FileError, FileOp,
};
pub use codec::Scratch;
#[cfg(feature = "zstd")]
pub(crate) use dense::Encoder;
pub(crate) use file_store::{CLUSTER_SLOTS_MAX, Filling, FoundSlot, SLOT_BYTES_MAX, slots_in};
pub use file_store::{FileStats, FileStore};
#[cfg(feature = "zstd")]
pub(crate) use repack::Packed;
pub(crate) use zswap::Charge;
pub use zswap::{Inject, NoRoom, Stats, Zswap};

use core::num::NonZeroU32;

/// Who a stored page belongs to: an identity of the pair of mapping and page that is not used
/// twice while both live.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(pub u64);

impl Owner {
    /// The owner for `page` of the mapping with the identity `mapping`.
    pub const fn new(mapping: u32, page: u32) -> Self {
        Self((mapping as u64) << 32 | page as u64)
    }

    /// The identity of the mapping.
    pub(crate) const fn mapping(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The page.
    pub(crate) const fn page(self) -> u32 {
        self.0 as u32
    }
}

/// Bits of a tag.
pub const TAG_BITS: u32 = 10;

/// What a tag may hold.
pub(crate) const TAG_MASK: u16 = (1 << TAG_BITS) - 1;

/// Bits of a handle that number the slot in its block.
const SLOT_BITS: u32 = 11;

/// Where in the store a slot is: its block and its place in the block. Fits 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotHandle(NonZeroU32);

impl SlotHandle {
    /// The most blocks that handles can tell apart.
    const NR_BLOCKS_MAX: usize = (1 << (u32::BITS - SLOT_BITS)) - 1;

    fn new(block: usize, slot: usize) -> Self {
        assert!(
            block < Self::NR_BLOCKS_MAX,
            "a handle has no room for block {block}"
        );
        assert!(
            slot < 1 << SLOT_BITS,
            "a handle has no room for slot {slot}"
        );
        // Blocks count from one, so that no handle is zero.
        let bits = (block as u32 + 1) << SLOT_BITS | slot as u32;
        Self(NonZeroU32::new(bits).expect("the block part is at least one"))
    }

    const fn block(self) -> usize {
        (self.0.get() >> SLOT_BITS) as usize - 1
    }

    const fn slot(self) -> usize {
        self.0.get() as usize & ((1 << SLOT_BITS) - 1)
    }

    /// The handle as a number that is not zero.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// Where in a file a slot is: its cluster, and its place there. Fits 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileHandle(u32);

impl FileHandle {
    /// Bits that number the place in the cluster.
    const UNIT_BITS: u32 = 10;

    /// The most clusters that handles can tell apart.
    const NR_CLUSTERS_MAX: u32 = 1 << (u32::BITS - Self::UNIT_BITS);

    fn new(cluster: Cluster, unit: u32) -> Self {
        assert!(
            cluster < Self::NR_CLUSTERS_MAX && unit < 1 << Self::UNIT_BITS,
            "a handle has no room for unit {unit} of cluster {cluster}"
        );
        Self(cluster << Self::UNIT_BITS | unit)
    }

    pub(crate) const fn cluster(self) -> Cluster {
        self.0 >> Self::UNIT_BITS
    }

    const fn unit(self) -> u32 {
        self.0 & ((1 << Self::UNIT_BITS) - 1)
    }
}

/// What is remembered of a page whose contents are in the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stored {
    /// The page was one 32-bit pattern over and over: nothing had to be stored.
    SameFilled(u32),
    /// The contents are in a slot.
    Slot {
        /// Which slot.
        handle: SlotHandle,
        /// The low bits of the store's sequence number; ten bits.
        tag: u16,
    },
    /// The contents are in the file.
    File {
        /// Where.
        handle: FileHandle,
        /// The tag that its slot had.
        tag: u16,
    },
}

impl Stored {
    /// The 32 bits that a state word keeps: the pattern or the handle.
    pub const fn payload(self) -> u32 {
        match self {
            Self::SameFilled(pattern) => pattern,
            Self::Slot { handle, .. } => handle.get(),
            Self::File { handle, .. } => handle.0,
        }
    }

    /// The tag that a state word keeps; zero for a same-filled page.
    pub const fn tag(self) -> u16 {
        match self {
            Self::SameFilled(_) => 0,
            Self::Slot { tag, .. } | Self::File { tag, .. } => tag,
        }
    }

    /// Whether no slot is used.
    pub const fn is_same_filled(self) -> bool {
        matches!(self, Self::SameFilled(_))
    }

    /// The place in the file that a state word with this payload and tag names.
    pub(crate) fn in_file(payload: u32, tag: u16) -> Self {
        let handle = FileHandle(payload);
        Self::File { handle, tag }
    }

    /// The slot that a state word with this payload and tag names.
    ///
    /// # Panics
    ///
    /// If no [`Stored::Slot`] has such a payload or tag: the state word is broken.
    pub fn from_slot_parts(payload: u32, tag: u16) -> Self {
        assert!(
            tag <= TAG_MASK,
            "tag {tag:#x} has more than {TAG_BITS} bits"
        );
        assert!(payload >> SLOT_BITS != 0, "{payload:#x} names no slot");
        let handle = SlotHandle(NonZeroU32::new(payload).expect("the block part is not zero"));
        Self::Slot { handle, tag }
    }
}
