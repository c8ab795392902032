//! How a machine cannot be made, and how a run can end.

use crate::errno::Errno;
use crate::mapping::AccessError;
use core::fmt;
use pinless_mm::fault::FaultError;

/// Why a virtual machine cannot be made, or not like that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no KVM, or not for this user.
    NoKvm(Errno),
    /// The kernel refused.
    Refused {
        /// What it was asked for.
        operation: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// Memory lies at a multiple of the page size.
    Misaligned {
        /// Where it was wanted.
        gpa: u64,
    },
    /// The guest has memory there already, or no addresses.
    Overlap {
        /// Where it was wanted.
        gpa: u64,
    },
    /// There is no such memory.
    NoSuchSlot,
}

impl fmt::Display for KvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKvm(errno) => write!(
                f,
                "/dev/kvm cannot be used: {errno}; load the kernel's KVM module, and give this \
                 user access to the file"
            ),
            Self::Refused { operation, errno } => write!(f, "{operation} failed: {errno}"),
            Self::Misaligned { gpa } => {
                write!(f, "guest address {gpa:#x} is not a multiple of 4096")
            }
            Self::Overlap { gpa } => write!(
                f,
                "the guest has memory at {gpa:#x} already, or no addresses; remove it first"
            ),
            Self::NoSuchSlot => f.write_str("the memory was removed already"),
        }
    }
}

impl std::error::Error for KvmError {}

/// Why a run of a processor ended that no exit of the guest's own ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RunError {
    /// The guest touched memory that it cannot be given. The access is tried again when the
    /// processor is run again: before that, repair the page (`advise(DontNeed)` makes it zeros) or
    /// let the guest know.
    Memory {
        /// The guest's address.
        gpa: u64,
        /// Why it cannot be given.
        error: AccessError,
    },
    /// The guest touched memory that is not there, and this kernel does not say which
    /// (`KVM_CAP_MEMORY_FAULT_INFO`): have service threads resolve its faults.
    NoAddress,
    /// The kernel refused to run the processor.
    Refused(Errno),
}

impl RunError {
    /// Why the memory manager had no page, if it is that.
    pub fn fault(&self) -> Option<FaultError> {
        match self {
            Self::Memory {
                error: AccessError::Fault { error, .. },
                ..
            } => Some(*error),
            _ => None,
        }
    }

    /// Whether the address space was killed: the guest is over.
    pub fn is_killed(&self) -> bool {
        self.fault() == Some(FaultError::Killed)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { gpa, error } => write!(f, "guest address {gpa:#x}: {error}"),
            Self::NoAddress => f.write_str(
                "the guest touched memory that is not there, and this kernel does not say which; \
                 use service threads for its memory",
            ),
            Self::Refused(errno) => write!(f, "KVM_RUN failed: {errno}"),
        }
    }
}

impl std::error::Error for RunError {}
