//! The sizes that slots come in.

use super::header::HEADER_BYTES;
use crate::addr::PAGE_SIZE;

/// Bytes of a block. One block holds slots of one class: of each class, half a block is free on the
/// average.
pub(super) const BLOCK_BYTES: usize = 128 * 1024;

/// The most slots that a block can hold.
pub(super) const SLOTS_PER_BLOCK_MAX: usize = BLOCK_BYTES / SLOT_BYTES_MIN;

/// A compressed page that is longer is stored as it is: what would be won is not worth the time
/// to decompress.
pub(super) const COMPRESSED_BYTES_MAX: usize = PAGE_SIZE * 3 / 4;

const SLOT_BYTES_MIN: usize = 64;

/// How many classes there are.
pub(super) const NR_CLASSES: usize = count_classes();

/// The class for pages that are stored as they are.
pub(super) const RAW: SizeClass = SizeClass(NR_CLASSES as u8 - 1);

static SLOT_BYTES: [u16; NR_CLASSES] = build_sizes();
/// For each eighth byte of slot length the class that fits.
static CLASS_OF: [u8; NR_STEPS] = build_lookup();

const STEP_BYTES: usize = 8;
const NR_STEPS: usize = (PAGE_SIZE + HEADER_BYTES) / STEP_BYTES + 1;

/// A slot size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SizeClass(u8);

impl SizeClass {
    /// The smallest class whose slots hold a header and `len` bytes.
    pub(super) fn for_payload(len: usize) -> Self {
        assert!(
            len <= PAGE_SIZE,
            "a payload of {len} bytes is larger than a page"
        );
        Self(CLASS_OF[(HEADER_BYTES + len).div_ceil(STEP_BYTES)])
    }

    /// All classes, from the smallest to [`RAW`].
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..NR_CLASSES as u8).map(Self)
    }

    pub(super) fn from_index(index: u8) -> Self {
        assert!(
            (index as usize) < NR_CLASSES,
            "there is no size class {index}"
        );
        Self(index)
    }

    /// The next smaller one.
    #[cfg(feature = "zstd")]
    pub(super) fn smaller(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes of a slot, header included.
    pub(super) fn slot_bytes(self) -> usize {
        SLOT_BYTES[self.index()] as usize
    }

    /// How many slots a block of this class has.
    pub(super) fn slots_per_block(self) -> usize {
        BLOCK_BYTES / self.slot_bytes()
    }
}

/// The size after `bytes`: a sixteenth more, so that less than a sixteenth of a slot is wasted, if
/// it is not one of the smallest.
const fn next_size(bytes: usize) -> usize {
    let grown = (bytes + bytes / 16) / STEP_BYTES * STEP_BYTES;
    let grown = if grown == bytes {
        bytes + STEP_BYTES
    } else {
        grown
    };
    let largest_compressed = COMPRESSED_BYTES_MAX + HEADER_BYTES;
    if bytes < largest_compressed && grown > largest_compressed {
        largest_compressed
    } else {
        grown
    }
}

const fn count_classes() -> usize {
    let mut bytes = SLOT_BYTES_MIN;
    let mut nr = 1;
    while bytes < COMPRESSED_BYTES_MAX + HEADER_BYTES {
        bytes = next_size(bytes);
        nr += 1;
    }
    nr + 1
}

const fn build_sizes() -> [u16; NR_CLASSES] {
    let mut sizes = [0; NR_CLASSES];
    let mut bytes = SLOT_BYTES_MIN;
    let mut i = 0;
    while i < NR_CLASSES - 1 {
        sizes[i] = bytes as u16;
        bytes = next_size(bytes);
        i += 1;
    }
    sizes[NR_CLASSES - 1] = (PAGE_SIZE + HEADER_BYTES) as u16;
    sizes
}

const fn build_lookup() -> [u8; NR_STEPS] {
    let sizes = build_sizes();
    let mut lookup = [0; NR_STEPS];
    let mut step = 0;
    let mut class = 0;
    while step < NR_STEPS {
        while (sizes[class] as usize) < step * STEP_BYTES {
            class += 1;
        }
        lookup[step] = class as u8;
        step += 1;
    }
    lookup
}

// All sizes are multiples of a step, so that the lookup is exact, and the handle's slot number
// has room for the most slots of a block.
const _: () = assert!((PAGE_SIZE + HEADER_BYTES).is_multiple_of(STEP_BYTES));
const _: () = assert!((COMPRESSED_BYTES_MAX + HEADER_BYTES).is_multiple_of(STEP_BYTES));
const _: () = assert!(SLOTS_PER_BLOCK_MAX <= 1 << super::SLOT_BITS);
const _: () = assert!(NR_CLASSES <= u8::MAX as usize);
