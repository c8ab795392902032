//! A file that clusters of stored pages are written to and read from.
//!
//! The file owns staging buffers of one cluster each, so that it can register them with its device
//! once. The memory manager says which buffer an operation uses and has one operation at most in
//! each, so there are as many under way as there are buffers:
//!
//! ```text
//! with_buffer (fill) -> submit(Write) -> ... -> wait
//!                       submit(Read)  -> ... -> wait -> with_buffer (look)
//! ```
//!
//! What a file gives back is never trusted: each page in a cluster has a header with its owner and
//! a checksum. A write that was torn or lost, and a bit that flipped, need not be noticed here.
//!
//! Linux counterpart: `mm/page_io.c` (`swap_readpage`, `swap_writepage`).

use core::fmt;

/// Bytes of a cluster: what is written at once.
pub const CLUSTER_BYTES: usize = 64 * 1024;

/// What operations are aligned to, in bytes: offset and length are multiples of it.
pub const BLOCK_BYTES: u32 = 4096;

/// The number of a cluster in its file, from zero.
pub type Cluster = u32;

/// The number of a staging buffer, from zero.
pub type Buffer = u32;

/// What to do with a staging buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileOp {
    /// Writes the whole buffer to a cluster.
    Write {
        /// Which.
        cluster: Cluster,
    },
    /// Reads a part of a cluster to the same place of the buffer.
    Read {
        /// Which cluster.
        cluster: Cluster,
        /// Where the part begins in the cluster, in bytes; a multiple of [`BLOCK_BYTES`].
        offset: u32,
        /// How long it is, in bytes; a multiple of [`BLOCK_BYTES`].
        len: u32,
    },
}

/// Why an operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileError {
    /// There is no room on the device: a write that was not carried out.
    Full,
    /// The device answered with this error number (`errno`).
    Device {
        /// The error number.
        errno: i32,
    },
    /// Less was read or written than was asked for.
    Short {
        /// Bytes that were.
        bytes: u32,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "there is no room left on the device of the store's file"),
            Self::Device { errno } => {
                write!(
                    f,
                    "the device of the store's file answered with error number {errno}"
                )
            }
            Self::Short { bytes } => write!(f, "the store's file moved only {bytes} bytes"),
        }
    }
}

impl std::error::Error for FileError {}

/// A file with clusters, and staging buffers for them.
///
/// Any number of threads call it at once, for different buffers. No call allocates, calls back into
/// the memory manager, or touches managed memory.
pub trait BackingFile: Send + Sync + fmt::Debug {
    /// How many clusters the file has room for; does not change.
    fn nr_clusters(&self) -> u32;

    /// How many staging buffers there are, from 3 to 64; does not change. The worker reads into one
    /// while it fills another, and a fault has one left.
    fn nr_buffers(&self) -> u32;

    /// Lends the [`CLUSTER_BYTES`] bytes of a buffer. No operation is under way in it. Does not
    /// wait; may be called in a fault.
    fn with_buffer(&self, buffer: Buffer, work: &mut dyn FnMut(&mut [u8]));

    /// Begins an operation in a buffer in which none is under way. Does not wait for it; may be
    /// called in a fault. What goes wrong is told by [`BackingFile::wait`].
    fn submit(&self, buffer: Buffer, op: FileOp);

    /// Waits until the operation that was begun in `buffer` is over: once for each. May be called
    /// in a fault, in a signal handler too; takes as long as the device does.
    ///
    /// # Errors
    ///
    /// See [`FileError`]. After a failed write the cluster may hold anything.
    fn wait(&self, buffer: Buffer) -> Result<(), FileError>;
}
