//! Stored pages move within the compressed store: to smaller slots, and out of blocks that are
//! nearly empty.
//!
//! Whoever moves one owns its page, or finds out afterwards that the page was used meanwhile, and
//! gives the new slot back. What is wrong with a slot is never moved: its page has the error.

use super::header::{HEADER_BYTES, Header, tag_of};
use super::size_class::SizeClass;
use super::zswap::put;
use super::{Owner, SlotHandle, Stored, Zswap};
use crate::addr::PAGE_SIZE;

#[cfg(feature = "zstd")]
use super::{codec, dense::Encoder, zswap::Charge};

/// What became of a slot that was to be packed closer.
#[cfg(feature = "zstd")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packed {
    /// What was in it is in a smaller one, too.
    Into(Stored),
    /// It needs as much as before.
    No,
    /// There is no room for the smaller one now.
    NoRoom,
}

impl Zswap {
    /// Copies what is in a slot to another of its size. Both are in use then. `None` when it is not
    /// what `owner` stored, or there is no room.
    pub(crate) fn copy_slot(
        &self,
        owner: Owner,
        (handle, tag): (SlotHandle, u16),
    ) -> Option<Stored> {
        let mut copy = [0; HEADER_BYTES + PAGE_SIZE];
        let taken = self.with_slot(owner, (handle, tag), |slot| {
            copy[..slot.len()].copy_from_slice(slot);
            slot.len()
        });
        let len = taken.ok()?;
        let (head, payload) = copy[..len].split_at(HEADER_BYTES);
        // A new checksum would make an error look right.
        Header::decode(head).ok()?.verify(payload).ok()?;
        let class = self.slab.class_of(handle);
        self.charge(class).ok()?;
        let taken = self.slab.insert(class, |slot, sequence| {
            put(slot, owner, sequence, payload);
        });
        let Some((handle, sequence)) = taken else {
            self.uncharge(class);
            return None;
        };
        self.note_payload(payload);
        self.note_moved();
        let tag = tag_of(sequence);
        Some(Stored::Slot { handle, tag })
    }

    /// Takes the emptiest block of each size out of use, one after the other, where there is room
    /// for what is in it; `relocate` is called with each page in it and is to take it away, with
    /// [`Zswap::copy_slot`]. Returns whether there may be more to win now: a block came free, or
    /// turned out to be one that cannot be emptied.
    pub(crate) fn empty_blocks(&self, mut relocate: impl FnMut(Owner, (SlotHandle, u16))) -> bool {
        let mut goes_on = false;
        for isolated in SizeClass::all().filter_map(|class| self.slab.isolate(class)) {
            isolated.for_each(|handle| {
                if let Some((owner, tag)) = self.owner_of(handle) {
                    relocate(owner, (handle, tag));
                }
            });
            // What stays is not tried once more, so this comes to an end.
            goes_on |= isolated.is_empty() || !isolated.was_tried();
        }
        goes_on
    }

    /// Whose slot this is, as it says itself.
    fn owner_of(&self, handle: SlotHandle) -> Option<(Owner, u16)> {
        let header = self.slab.read_if_used(handle, Header::decode)?.ok()?;
        header.owner_and_tag()
    }

    /// Packs what is in a slot closer, if that makes it smaller by a size at least; `slot` is a
    /// copy of it, as [`Zswap::with_slot`] gives it.
    #[cfg(feature = "zstd")]
    pub(crate) fn pack(
        &self,
        payer: &dyn Charge,
        owner: Owner,
        (slot, tag): (&[u8], u16),
        encoder: &mut Encoder,
    ) -> Packed {
        let mut contents = [0; PAGE_SIZE];
        if codec::is_dense(&slot[HEADER_BYTES..]) {
            return Packed::No;
        }
        let unpacked = self.unpack(slot, (owner, tag), &mut contents);
        let class = SizeClass::for_payload(slot.len() - HEADER_BYTES);
        let Some(smaller) = class.smaller().filter(|_| unpacked.is_ok()) else {
            return Packed::No;
        };
        let bytes_max = smaller.slot_bytes() - HEADER_BYTES;
        let Some(payload) = codec::compress_densely(&contents, encoder, bytes_max) else {
            return Packed::No;
        };
        match self.store_payload(payer, owner, payload) {
            Ok(stored) => {
                self.note_moved();
                Packed::Into(stored)
            }
            Err(_) => Packed::NoRoom,
        }
    }
}
