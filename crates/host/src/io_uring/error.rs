//! What can go wrong with a ring, and whose fault it is.

use crate::errno::Errno;
use core::fmt;
use core::ops::Range;
use pinless_mm::mm_struct::PinError;

/// Why there is no ring. The program can go on without this device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetupError {
    /// The machine's owner has switched io_uring off, or a sandbox forbids it.
    Forbidden {
        /// What the system call answered.
        errno: Errno,
    },
    /// The kernel has no io_uring, or none that can replace one registered buffer of a table.
    Missing {
        /// The system call.
        operation: &'static str,
        /// What it answered.
        errno: Errno,
    },
    /// The numbers that were asked for.
    Bounds {
        /// Operations at a time.
        entries: u32,
        /// Registered buffers.
        nr_slots: u32,
    },
    /// A system call failed for another reason.
    Os {
        /// The system call.
        operation: &'static str,
        /// What it answered.
        errno: Errno,
    },
}

impl SetupError {
    pub(super) fn from_os(operation: &'static str, errno: Errno) -> Self {
        match errno.0 {
            libc::EPERM | libc::EACCES => Self::Forbidden { errno },
            libc::ENOSYS | libc::EINVAL => Self::Missing { operation, errno },
            _ => Self::Os { operation, errno },
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden { errno } => write!(
                f,
                "io_uring is forbidden here ({errno}): the sysctl kernel.io_uring_disabled must \
                 be 0, and the container's seccomp profile must allow io_uring_setup"
            ),
            Self::Missing { operation, errno } => write!(
                f,
                "io_uring is missing ({operation}: {errno}): Linux 6.0 or newer is needed, and a \
                 sandbox that does not hide it"
            ),
            Self::Bounds { entries, nr_slots } => write!(
                f,
                "a ring of {entries} operations and {nr_slots} slots cannot be made: 1 to {} \
                 operations and 1 to {} slots can",
                super::ENTRIES_MAX,
                super::SLOTS_MAX
            ),
            Self::Os { operation, errno } => write!(f, "{operation} failed: {errno}"),
        }
    }
}

impl std::error::Error for SetupError {}

/// Why a mapping cannot be used with a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachError {
    /// The `Vma` is not over the pages of the `HostMapping`.
    NotTheSamePages,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTheSamePages => {
                f.write_str("the address space's mapping is not over the pages of this mapping")
            }
        }
    }
}

impl std::error::Error for AttachError {}

/// Why an operation failed. None is ever lost without one of these.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpError {
    /// The bytes are none, more than one operation can carry, or not in the mapping.
    OutOfRange {
        /// The bytes.
        bytes: Range<u64>,
        /// Bytes in the mapping.
        len_bytes: u64,
    },
    /// The mapping was attached to another ring.
    OtherRing,
    /// The ring belongs to another thread ([`super::Kind::SingleIssuer`]).
    NotOwner,
    /// As many operations are in flight, or finished and not waited for, as the ring has room for.
    Full {
        /// Operations at a time.
        entries: u32,
    },
    /// The pages cannot be pinned.
    Pin(PinError),
    /// The kernel ended the operation with an error.
    Failed {
        /// Which.
        errno: Errno,
    },
    /// Fewer bytes were transferred than asked for: the end of a file or a pipe.
    Short {
        /// Bytes transferred.
        done: u32,
        /// Bytes asked for.
        wanted: u32,
    },
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { bytes, len_bytes } => write!(
                f,
                "bytes {}..{} are no transfer in a mapping of {len_bytes} bytes",
                bytes.start, bytes.end
            ),
            Self::OtherRing => f.write_str("the mapping is attached to another ring"),
            Self::NotOwner => f.write_str("the ring is used by its owner's thread only"),
            Self::Full { entries } => write!(
                f,
                "{entries} operations are under way: wait for one before starting the next"
            ),
            Self::Pin(error) => write!(f, "{error}"),
            Self::Failed { errno } => write!(f, "the operation failed: {errno}"),
            Self::Short { done, wanted } => {
                write!(f, "the operation ended after {done} of {wanted} bytes")
            }
        }
    }
}

impl std::error::Error for OpError {}
