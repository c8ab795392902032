//! What stands in front of the contents in a slot.

use super::{Owner, TAG_MASK};
use crate::fault::StoreError;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a header in its slot.
pub(super) const HEADER_BYTES: usize = 24;

/// The header of a slot.
///
/// A slot that was freed has a header of zeros, and no store has sequence number zero: a slot
/// that was taken again but not written matches no expectation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    checksum: u64,
    owner: Owner,
    sequence: u32,
    /// Bytes that follow.
    len: u16,
}

impl Header {
    /// The header for `payload`, stored with `sequence` for `owner`.
    pub(super) fn new(owner: Owner, sequence: u32, payload: &[u8]) -> Self {
        assert!(
            sequence != 0,
            "sequence number zero marks a slot that is not in use"
        );
        let mut header = Self {
            checksum: 0,
            owner,
            sequence,
            len: payload.len() as u16,
        };
        header.checksum = header.sum(payload);
        header
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.owner.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// Reads the header of `slot`; the bytes that it leaves unused must be zero.
    pub(super) fn decode(slot: &[u8]) -> Result<Self, StoreError> {
        if slot[22..HEADER_BYTES] != [0; 2] {
            return Err(StoreError::Corrupt);
        }
        Ok(Self {
            checksum: u64::from_le_bytes(array(&slot[0..8])),
            owner: Owner(u64::from_le_bytes(array(&slot[8..16]))),
            sequence: u32::from_le_bytes(array(&slot[16..20])),
            len: u16::from_le_bytes(array(&slot[20..22])),
        })
    }

    /// The payload at the start of `body`, if this is the slot of `owner`'s store with `tag`. Who
    /// reads it has still to [`Header::verify`] it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Misplaced`] of a slot that is whole and another store's, or free;
    /// [`StoreError::Corrupt`] of one that is not even what it says.
    pub(super) fn expect<'a>(
        &self,
        owner: Owner,
        tag: u16,
        body: &'a [u8],
    ) -> Result<&'a [u8], StoreError> {
        let payload = body.get(..self.len as usize).ok_or(StoreError::Corrupt)?;
        if self.owner_and_tag() == Some((owner, tag)) {
            return Ok(payload);
        }
        // A turned bit may be in the owner or the sequence number, too.
        let is_free = self.encode() == [0; HEADER_BYTES];
        if !is_free {
            self.verify(payload)?;
        }
        Err(StoreError::Misplaced)
    }

    /// Whose slot this is, and the tag of the store; none of a slot that was never written.
    pub(super) fn owner_and_tag(&self) -> Option<(Owner, u16)> {
        (self.sequence != 0).then(|| (self.owner, tag_of(self.sequence)))
    }

    /// Says whether `payload` is what was stored.
    pub(super) fn verify(&self, payload: &[u8]) -> Result<(), StoreError> {
        if self.sum(payload) == self.checksum {
            Ok(())
        } else {
            Err(StoreError::Corrupt)
        }
    }

    /// The checksum covers the payload and every other field.
    fn sum(&self, payload: &[u8]) -> u64 {
        let mut fields = [0; 16];
        fields[0..8].copy_from_slice(&self.owner.0.to_le_bytes());
        fields[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        fields[12..14].copy_from_slice(&self.len.to_le_bytes());
        // The payload's sum is the seed: to hash both in one go would need a copy, and a seed
        // for the long input costs more than one for the short.
        xxh3_64_with_seed(&fields, xxh3_64(payload))
    }
}

/// The tag of a store's sequence number.
pub(super) fn tag_of(sequence: u32) -> u16 {
    sequence as u16 & TAG_MASK
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes
        .try_into()
        .expect("the caller cut the slice to this length")
}
