//! Managed memory as the `vm-memory` crate has it, for virtual machine monitors that are written
//! against its traits.
//!
//! A [`Region`] is a mapping at an address of the guest's; a [`GuestMemory`] is a sorted collection
//! of them. **A slice holds a pin**: the pages under it are resident and stay where they are until
//! the last slice that was made from it is dropped. The crate gives slices no place to put that,
//! but it gives them a bitmap of dirty pages, which is copied and cut with the slice: here it is
//! that bitmap that holds the pin ([`Held`]). Which pages were written is the memory manager's to
//! know, so nothing is marked.
//!
//! An access through `Bytes` pins a piece of at most [`PIECE_BYTES`] at a time, so that it may be
//! longer than the limit. A slice may not.

use crate::fork::is_forked_child;
use crate::kept::Kept;
use crate::mapping::{AccessError, SharedMapping};
use ::vm_memory::bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice};
pub use ::vm_memory::guest_memory::Result;
pub use ::vm_memory::{self, GuestAddress};
use ::vm_memory::{
    Address, AtomicAccess, Bytes, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection,
    GuestUsize, MemoryRegionAddress, ReadVolatile, VolatileSlice, WriteVolatile,
};
use core::fmt;
use core::sync::atomic::Ordering;
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::gfp::Gfp;
use pinless_mm::mm_struct::{Pin, Vma};
use pinless_mm::primary_mmu::Access;
use std::io;
use std::sync::Arc;

/// The bytes that one access pins at a time, at most.
pub const PIECE_BYTES: usize = 64 << 10;

/// All memory of a guest.
pub type GuestMemory = GuestRegionCollection<Region>;

/// A mapping at an address of the guest's.
pub struct Region {
    start: GuestAddress,
    memory: Kept,
    vma: Arc<Vma>,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("start", &self.start)
            .field("vma", &self.vma)
            .finish_non_exhaustive()
    }
}

/// What a slice holds: its pages. It stands where the crate has a bitmap of dirty pages.
#[derive(Clone, Debug, Default)]
pub struct Held {
    _pin: Option<Arc<Pin>>,
}

impl WithBitmapSlice<'_> for Held {
    type S = Self;
}

impl BitmapSlice for Held {}

impl Bitmap for Held {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) -> Self {
        self.clone()
    }
}

impl Region {
    /// Puts `memory`, whose pages are those of `vma`, at `start`.
    ///
    /// # Errors
    ///
    /// [`GuestMemoryError::HostAddressNotAvailable`] when the pages are not the same, and
    /// [`GuestMemoryError::GuestAddressOverflow`] when the guest has no such addresses.
    pub fn new(start: GuestAddress, memory: SharedMapping, vma: &Arc<Vma>) -> Result<Self> {
        let memory = Kept::new(memory);
        if !memory.mmu().is_over(vma) {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        if start.checked_add(memory.len_bytes() - 1).is_none() {
            return Err(GuestMemoryError::GuestAddressOverflow);
        }
        Ok(Self {
            start,
            memory,
            vma: Arc::clone(vma),
        })
    }

    /// What an access that may end early can have at once, at least one byte.
    fn piece(&self, addr: MemoryRegionAddress, wanted: usize) -> Result<Piece<'_>> {
        let left = self.len().checked_sub(addr.0).filter(|left| *left > 0);
        let left = left.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let count = wanted.min(PIECE_BYTES).min(left as usize);
        self.get_slice(addr, count)
    }

    /// Carries out an access of `len` bytes piece by piece: `access` says how far it came in one
    /// that begins so many bytes into the access. Ends with the first that is not done whole, or
    /// with the region.
    fn in_pieces(
        &self,
        addr: MemoryRegionAddress,
        len: usize,
        mut access: impl FnMut(&Piece<'_>, usize) -> Result<usize>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < len {
            let at = MemoryRegionAddress(addr.0 + done as u64);
            if done > 0 && !self.address_in_range(at) {
                break;
            }
            let piece = self.piece(at, len - done)?;
            let moved = access(&piece, done)?;
            done += moved;
            if moved < piece.len() {
                break;
            }
        }
        Ok(done)
    }
}

type Piece<'a> = VolatileSlice<'a, Held>;

/// An access that must not end early.
fn whole(expected: usize, completed: usize) -> Result<()> {
    if completed == expected {
        Ok(())
    } else {
        Err(GuestMemoryError::PartialBuffer {
            expected,
            completed,
        })
    }
}

impl GuestMemoryRegion for Region {
    type B = Held;

    fn len(&self) -> GuestUsize {
        self.memory.len_bytes()
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, Held> {
        Held::default()
    }

    /// For what registers addresses and is told when pages go, as KVM is; not for access.
    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        let addr = self.check_address(addr);
        let addr = addr.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.memory.as_ptr().wrapping_add(addr.0 as usize))
    }

    /// The pages stay while the slice, or one that was cut from it, lives. More than the limit of
    /// the memory cgroup is refused.
    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<Piece<'_>> {
        let end = offset.0.checked_add(count as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        if is_forked_child() {
            let error = io::Error::other(AccessError::ForkedChild);
            return Err(GuestMemoryError::IOError(error));
        }
        let page_bytes = PAGE_SIZE as u64;
        let first = offset.0 / page_bytes;
        let nr = (offset.0 + count as u64).div_ceil(page_bytes) - first;
        let run = PageRun::new(first as PageIndex, nr as u32);
        let pin = self.vma.pin(run, Access::Write, Gfp::Kernel);
        let pin = pin.map_err(|error| GuestMemoryError::IOError(io::Error::other(error)))?;
        let held = Held {
            _pin: Some(Arc::new(pin)),
        };
        let address = self.memory.as_ptr().wrapping_add(offset.0 as usize);
        // SAFETY: the bytes lie in the memory (checked above), which lives as long as `self` and
        // so as long as the slice, and which this process has (checked above). Its pages are
        // resident and writable while `held` lives, which the slice owns and hands on to each that
        // is cut from it. No Rust reference into a mapping is ever made; others use it through
        // copies, volatile accesses and devices.
        Ok(unsafe { VolatileSlice::with_bitmap(address, count, held, None) })
    }
}

impl Bytes<MemoryRegionAddress> for Region {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        self.in_pieces(addr, buf.len(), |piece, done| {
            Ok(piece.write(&buf[done..], 0)?)
        })
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        self.in_pieces(addr, buf.len(), |piece, done| {
            Ok(piece.read(&mut buf[done..], 0)?)
        })
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        whole(buf.len(), self.write(buf, addr)?)
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        let len = buf.len();
        whole(len, self.read(buf, addr)?)
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        self.in_pieces(addr, count, |piece, _| {
            Ok(piece.read_volatile_from(0, src, piece.len())?)
        })
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        let done = self.in_pieces(addr, count, |piece, _| {
            piece.read_exact_volatile_from(0, src, piece.len())?;
            Ok(piece.len())
        });
        whole(count, done?)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        self.in_pieces(addr, count, |piece, _| {
            Ok(piece.write_volatile_to(0, dst, piece.len())?)
        })
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        let done = self.in_pieces(addr, count, |piece, _| {
            piece.write_all_volatile_to(0, dst, piece.len())?;
            Ok(piece.len())
        });
        whole(count, done?)
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> Result<()> {
        let slice = self.get_slice(addr, size_of::<T>())?;
        Ok(slice.store(val, 0, order)?)
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        let slice = self.get_slice(addr, size_of::<T>())?;
        Ok(slice.load(0, order)?)
    }
}
