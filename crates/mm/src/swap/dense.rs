//! The dense codec: zstd, for pages that stay away for long.
//!
//! It takes several times as long as the fast one in both directions, and gives less. So it is for
//! a worker that has time, and for pages that nobody has asked for. Without the feature `zstd`
//! there is none, and nothing is stored that would need it.
//!
//! Linux counterpart: recompression in `drivers/block/zram/zram_drv.c`.

#[cfg(feature = "zstd")]
pub(crate) use with_zstd::{Decoders, Encoder};
#[cfg(not(feature = "zstd"))]
pub(crate) use without::Decoders;

#[cfg(feature = "zstd")]
mod with_zstd {
    use crate::addr::PAGE_SIZE;
    use core::fmt;
    use lockdep::sync::{Mutex, MutexGuard};
    use zstd::bulk::{Compressor, Decompressor};

    /// How hard it tries: the library's own choice.
    const LEVEL: i32 = 3;

    /// Pages that may be decompressed at the same time.
    const NR_DECODERS: usize = 4;

    /// Why a context that is made at start is there.
    const HAS_MEMORY: &str = "memory for a context of the codec";

    /// Working memory of whoever compresses.
    pub(crate) struct Encoder {
        context: Compressor<'static>,
        output: Box<[u8; PAGE_SIZE]>,
    }

    impl Encoder {
        /// Allocates it. The first page makes the context as large as any other does.
        pub(crate) fn new() -> Self {
            let mut encoder = Self {
                context: Compressor::new(LEVEL).expect(HAS_MEMORY),
                output: Box::new([0; PAGE_SIZE]),
            };
            let _ = encoder.compress(&[0; PAGE_SIZE], 0, PAGE_SIZE);
            encoder
        }

        /// Compresses `bytes` to where `nr_before` bytes of room stand before them, all of which is
        /// returned; `None` if that takes more than `bytes_max`.
        pub(in super::super) fn compress(
            &mut self,
            bytes: &[u8],
            nr_before: usize,
            bytes_max: usize,
        ) -> Option<&mut [u8]> {
            let end = nr_before.checked_add(bytes_max)?.min(PAGE_SIZE);
            let room = self.output.get_mut(nr_before..end)?;
            let len = self.context.compress_to_buffer(bytes, room).ok()?;
            Some(&mut self.output[..nr_before + len])
        }
    }

    impl fmt::Debug for Encoder {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Encoder").finish_non_exhaustive()
        }
    }

    /// Contexts for whoever decompresses: a fault allocates nothing.
    pub(crate) struct Decoders([Mutex<Decompressor<'static>>; NR_DECODERS]);

    impl Decoders {
        pub(crate) fn new() -> Self {
            let decoder = || Decompressor::new().expect(HAS_MEMORY);
            Self(core::array::from_fn(|_| {
                Mutex::new("zswap.decoder", decoder())
            }))
        }

        /// Decompresses to `into`; returns how many bytes that were, or nothing when it was not
        /// this codec that made `bytes`, or more came out.
        pub(in super::super) fn decompress(&self, bytes: &[u8], into: &mut [u8]) -> Option<usize> {
            self.any().decompress_to_buffer(bytes, into).ok()
        }

        /// A context that nobody uses; if there is none, the first that comes free in its turn.
        fn any(&self) -> MutexGuard<'_, Decompressor<'static>> {
            let free = self.0.iter().find_map(Mutex::try_lock);
            free.unwrap_or_else(|| self.0[0].lock())
        }
    }
}

#[cfg(not(feature = "zstd"))]
mod without {
    /// Nothing is stored densely.
    pub(crate) struct Decoders;

    impl Decoders {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(in super::super) fn decompress(
            &self,
            _bytes: &[u8],
            _into: &mut [u8],
        ) -> Option<usize> {
            None
        }
    }
}
