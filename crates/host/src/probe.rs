//! What this machine can do, found out by doing it.
//!
//! Each feature is tried on scratch pages. Kernel versions are not asked: features are backported,
//! switched off, and refused by sandboxes.

use crate::errno::Errno;
use crate::pagemap::{Entry, Pagemap};
use crate::region::Region;
use crate::uffd::{Holes, OpenError, Source, Stopped, Track, Uffd, Unavailable, feature};
use core::fmt;
use pinless_mm::addr::PAGE_SIZE;

/// Something that Pinless needs of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// The page map of the process (`/proc/self/pagemap`).
    Pagemap,
    /// Faults of absent pages, resolved by a copy.
    Missing,
    /// Write protection of anonymous memory.
    WriteProtect,
    /// A copy whose first write traps.
    CopyWriteProtected,
    /// Moving pages to a range of another userfaultfd and back, passing over holes.
    Move,
    /// Pages whose access ends in SIGBUS.
    Poison,
    /// SIGBUS in the faulting thread instead of a message.
    Sigbus,
    /// The faulting thread in a message.
    ThreadId,
    /// The address to the byte in a message.
    ExactAddress,
}

impl Feature {
    /// The word of the kernel's documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pagemap => "/proc/self/pagemap",
            Self::Missing => "UFFDIO_COPY",
            Self::WriteProtect => "UFFDIO_WRITEPROTECT",
            Self::CopyWriteProtected => "UFFDIO_COPY_MODE_WP",
            Self::Move => "UFFDIO_MOVE",
            Self::Poison => "UFFDIO_POISON",
            Self::Sigbus => "UFFD_FEATURE_SIGBUS",
            Self::ThreadId => "UFFD_FEATURE_THREAD_ID",
            Self::ExactAddress => "UFFD_FEATURE_EXACT_ADDRESS",
        }
    }
}

/// A machine on which everything that Pinless needs works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Where userfaultfds come from.
    pub source: Source,
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "userfaultfd from {}: ", self.source.name())?;
        f.write_str(if self.serves_kernel_faults() {
            "service threads resolve every fault, those of system calls and KVM too"
        } else {
            "service threads resolve faults of user mode; hand memory to system calls and KVM \
             through guards"
        })?;
        f.write_str("; attached threads resolve their own")
    }
}

impl Capabilities {
    /// Whether service threads also resolve faults of system calls and of KVM.
    pub fn serves_kernel_faults(&self) -> bool {
        self.source.serves_kernel_faults()
    }
}

/// Why this machine cannot run Pinless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeError {
    /// It gives no userfaultfd.
    Unavailable(Unavailable),
    /// Its userfaultfd lacks something.
    Lacks {
        /// What.
        feature: Feature,
        /// What the kernel answered; zero when it answered well and did something else.
        errno: Errno,
        /// Where the userfaultfd came from.
        source: Source,
    },
    /// It has no memory for a few scratch pages.
    NoMemory(Errno),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(unavailable) => unavailable.fmt(f),
            Self::Lacks {
                feature,
                errno,
                source,
            } => {
                let name = feature.name();
                let source = source.name();
                write!(f, "{name} does not work here (tried through {source}): ")?;
                match errno.0 {
                    0 => f.write_str("it has no effect")?,
                    _ => errno.fmt(f)?,
                }
                f.write_str(". Pinless needs Linux 6.8 or newer")
            }
            Self::NoMemory(errno) => write!(f, "no memory for scratch pages: {errno}"),
        }
    }
}

impl std::error::Error for ProbeError {}

/// Tries each feature on scratch pages.
///
/// # Errors
///
/// The first thing found missing, and how to get it.
pub fn probe() -> Result<Capabilities, ProbeError> {
    let (offered, source) = Uffd::offered().map_err(|error| match error {
        OpenError::Unavailable(unavailable) => ProbeError::Unavailable(unavailable),
        OpenError::Handshake(errno) => ProbeError::Lacks {
            feature: Feature::Missing,
            errno,
            source: Source::Device,
        },
    })?;
    let lacks = |feature, errno| ProbeError::Lacks {
        feature,
        errno,
        source,
    };
    // These show only in messages and signals, so the kernel's word is taken for them.
    for (bit, feature) in [
        (feature::WP, Feature::WriteProtect),
        (feature::MOVE, Feature::Move),
        (feature::POISON, Feature::Poison),
        (feature::SIGBUS, Feature::Sigbus),
        (feature::THREAD_ID, Feature::ThreadId),
        (feature::EXACT_ADDRESS, Feature::ExactAddress),
    ] {
        if offered & bit == 0 {
            return Err(lacks(feature, Errno(libc::EINVAL)));
        }
    }
    Scratch::new(source)?
        .try_all()
        .map_err(|(feature, errno)| lacks(feature, errno))?;
    Ok(Capabilities { source })
}

/// Scratch pages on two descriptors, as a mapping has them.
struct Scratch {
    // The memory goes before the descriptors, as in a mapping.
    mapping: Region,
    staging: Region,
    uffd: Uffd,
    staging_uffd: Uffd,
    pagemap: Pagemap,
}

const NR_SCRATCH_PAGES: u32 = 4;

/// What did not work, and the kernel's answer.
type Failed = (Feature, Errno);

impl Scratch {
    fn new(source: Source) -> Result<Self, ProbeError> {
        let lacks = |feature| {
            move |errno| ProbeError::Lacks {
                feature,
                errno,
                source,
            }
        };
        let open = |features, feature| {
            Uffd::open(features).map_err(|error| match error {
                OpenError::Unavailable(unavailable) => ProbeError::Unavailable(unavailable),
                OpenError::Handshake(errno) => lacks(feature)(errno),
            })
        };
        let all = feature::WP | feature::MOVE | feature::POISON | feature::EXACT_ADDRESS;
        let uffd = open(all | feature::THREAD_ID, Feature::ThreadId)?;
        let staging_uffd = open(feature::MOVE | feature::SIGBUS, Feature::Sigbus)?;
        let scratch = Self {
            mapping: Region::reserve(NR_SCRATCH_PAGES).map_err(ProbeError::NoMemory)?,
            staging: Region::reserve(NR_SCRATCH_PAGES).map_err(ProbeError::NoMemory)?,
            pagemap: Pagemap::open().map_err(lacks(Feature::Pagemap))?,
            uffd,
            staging_uffd,
        };
        let (mapping, staging) = (&scratch.mapping, &scratch.staging);
        scratch
            .uffd
            .register(mapping.base(), mapping.len(), Track::MissingAndWrites)
            .map_err(lacks(Feature::WriteProtect))?;
        scratch
            .staging_uffd
            .register(staging.base(), staging.len(), Track::Missing)
            .map_err(lacks(Feature::Missing))?;
        Ok(scratch)
    }

    fn page(&self, page: usize) -> usize {
        self.mapping.base() + page * PAGE_SIZE
    }

    /// The page tables must say what the kernel's answer promised.
    fn expect(
        &self,
        feature: Feature,
        address: usize,
        holds: impl FnOnce(Entry) -> bool,
    ) -> Result<(), Failed> {
        match self.pagemap.entry(address) {
            Ok(entry) if holds(entry) => Ok(()),
            Ok(_) => Err((feature, Errno(0))),
            Err(errno) => Err((Feature::Pagemap, errno)),
        }
    }

    fn try_all(&self) -> Result<(), Failed> {
        self.try_copies()?;
        self.try_protection()?;
        self.try_moves()?;
        self.try_poison()
    }

    /// Afterwards page 0 is writable and page 1 protected.
    fn try_copies(&self) -> Result<(), Failed> {
        let contents = [0x5A; PAGE_SIZE];
        let failed = |feature| move |stopped: Stopped| (feature, stopped.errno);
        let feature = Feature::Missing;
        self.uffd
            .copy(self.page(0), &contents, false)
            .map_err(failed(feature))?;
        self.expect(feature, self.page(0), |entry| {
            entry.is_present() && !entry.is_write_protected()
        })?;
        let feature = Feature::CopyWriteProtected;
        self.uffd
            .copy(self.page(1), &contents, true)
            .map_err(failed(feature))?;
        self.expect(feature, self.page(1), |entry| {
            entry.is_present() && entry.is_write_protected()
        })
    }

    fn try_protection(&self) -> Result<(), Failed> {
        let feature = Feature::WriteProtect;
        for protect in [true, false] {
            self.uffd
                .write_protect(self.page(0), PAGE_SIZE, protect)
                .map_err(|errno| (feature, errno))?;
            self.expect(feature, self.page(0), |entry| {
                entry.is_write_protected() == protect
            })?;
        }
        Ok(())
    }

    /// Out and back: pages 0 and 1, and the holes after them.
    fn try_moves(&self) -> Result<(), Failed> {
        let feature = Feature::Move;
        let failed = |stopped: Stopped| (feature, stopped.errno);
        let (mapping, staging) = (self.mapping.base(), self.staging.base());
        self.staging_uffd
            .move_pages(staging, mapping, self.mapping.len(), Holes::Allow)
            .map_err(failed)?;
        for page in 0..2 {
            let offset = page * PAGE_SIZE;
            self.expect(feature, mapping + offset, |entry| !entry.is_occupied())?;
            self.expect(feature, staging + offset, |entry| entry.is_present())?;
        }
        self.uffd
            .move_pages(mapping, staging, 2 * PAGE_SIZE, Holes::Refuse)
            .map_err(failed)?;
        self.expect(feature, mapping, |entry| entry.is_present())
    }

    fn try_poison(&self) -> Result<(), Failed> {
        let feature = Feature::Poison;
        self.uffd
            .poison(self.page(2), PAGE_SIZE)
            .map_err(|stopped| (feature, stopped.errno))?;
        self.expect(feature, self.page(2), |entry| entry.is_mark())
    }
}
