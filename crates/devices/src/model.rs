//! All models in one table, and how each is made: the form in which checkers use them.
//!
//! ```
//! use pinless_devices::{Bugs, models};
//! # use pinless_devices::DeviceMemory;
//! # use std::sync::Arc;
//!
//! # fn each(memory: &Arc<dyn DeviceMemory>) {
//! for model in models() {
//!     let attached = model.attach(memory, "device", Bugs::NONE);
//!     // As many threads as `nr_servers` says in `attached.device.serve()`; then register ranges,
//!     // read and write, and change the memory under it.
//!     attached.detach();
//! }
//! # }
//! ```
//!
//! How long a start took is not among a device's figures: devices know no clock. Whoever opens
//! the bracket counts.

use crate::amdgpu::Amdgpu;
use crate::amdgpu_2018::Amdgpu2018;
use crate::gntdev::Gntdev;
use crate::gru::Gru;
use crate::hfi1::Hfi1;
use crate::hmm::Hmm;
use crate::i915::I915;
use crate::i915_2018::I915y2018;
use crate::kfd::Kfd;
use crate::kvm::Kvm;
use crate::radeon::Radeon;
use crate::scif::Scif;
use crate::zoo::{Bug, Bugs};
use crate::{DeviceMemory, DmaDevice, Odp, Template};
use core::fmt;
use pinless_mm::mmu_notifier::Subscription;
use std::sync::Arc;

/// Which state of a driver's history a model shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// As it was in Linux 4.19, when starts learned not to block.
    Y2018,
    /// As it is in Linux 6.12.
    Now,
}

impl Variant {
    /// The end of a model's full name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Y2018 => "2018",
            Self::Now => "now",
        }
    }
}

/// What protects a frame after a start, and how its user comes back: the families of drivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// A: waits for the fences of jobs; the next submission looks pages up again.
    FenceWait,
    /// A': the same, and no job is submitted while a bracket is open anywhere.
    HeldAcross,
    /// B: stops the queues; a worker looks pages up and resumes them.
    StopQueues,
    /// C: drops the translation at once, and the device faults.
    FastZap,
    /// D: has the hardware drop the translation by a command, and the device faults.
    CommandZap,
    /// E: forgets pinned pages now and unpins them later.
    UnlinkNow,
    /// F: keeps pinned pages until the user lets go.
    Sticky,
    /// G: is told of foreign pages that are mapped here, and waits for whoever uses them.
    ReverseMap,
    /// I: fans out to devices of its own.
    Adapter,
}

impl Pattern {
    /// Its letter in the table of patterns.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::FenceWait => "A",
            Self::HeldAcross => "A'",
            Self::StopQueues => "B",
            Self::FastZap => "C",
            Self::CommandZap => "D",
            Self::UnlinkNow => "E",
            Self::Sticky => "F",
            Self::ReverseMap => "G",
            Self::Adapter => "I",
        }
    }

    /// Whether pages stay pinned after a start was accepted, so that transfers in flight may go on
    /// in the old frames.
    pub const fn pins(self) -> bool {
        matches!(self, Self::UnlinkNow | Self::Sticky)
    }
}

/// Which ranges a model is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    /// Every change of the address space.
    WholeMm,
    /// Those of the mapping.
    Mapping,
    /// Those of what was registered, each registration by itself.
    Registration,
}

/// When a start that may not block may be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answers {
    /// Never.
    Never,
    /// If something of the range is in use, or a lock is held at this moment.
    IfBusy,
    /// Whenever the range overlaps what is registered.
    Always,
}

/// What is known of a model.
pub struct ModelInfo {
    /// The driver, as Linux calls it.
    pub name: &'static str,
    /// Which state of its history.
    pub variant: Variant,
    /// How it works.
    pub pattern: Pattern,
    /// What it is told of.
    pub granularity: Granularity,
    /// When it may refuse.
    pub answers: Answers,
    /// Whether pages must be registered before they are transferred.
    pub must_register: bool,
    /// The faults that can be switched on.
    pub switches: &'static [Bug],
    /// Those of them that the kernel of this variant has: the model with these on is the driver as
    /// it shipped.
    pub shipped: &'static [Bug],
    make: Make,
}

/// Makes a device and subscribes it.
type Make = fn(&Arc<dyn DeviceMemory>, &str, Bugs) -> Attached;

impl ModelInfo {
    /// The name and the variant.
    pub fn full_name(&self) -> String {
        format!("{}-{}", self.name, self.variant.name())
    }

    /// Makes a device for the mapping behind `memory`, with these faults, and subscribes it.
    ///
    /// # Panics
    ///
    /// If a fault is not among the model's switches.
    pub fn attach(
        &self,
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: impl Into<Bugs>,
    ) -> Attached {
        let bugs = bugs.into();
        assert!(
            bugs.are_among(Bugs::of(self.switches)),
            "{} has no switch for all of {bugs:?}",
            self.full_name()
        );
        (self.make)(memory, name, bugs)
    }
}

impl fmt::Debug for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full_name())
    }
}

/// A device in use by a memory.
#[must_use = "the device stays subscribed until it is detached"]
pub struct Attached {
    /// The device.
    pub device: Arc<dyn DmaDevice>,
    subscription: Option<Subscription>,
}

impl Attached {
    fn listed<D: DmaDevice + 'static>((device, listed): (Arc<D>, Subscription)) -> Self {
        Self {
            device,
            subscription: Some(listed),
        }
    }

    /// A device that subscribes what is registered, and ends that when it is stopped.
    fn by_registration<D: DmaDevice + 'static>(device: Arc<D>) -> Self {
        Self {
            device,
            subscription: None,
        }
    }

    /// Stops the device, ends what it subscribed to, and waits until no callback of it runs.
    ///
    /// Never with a bracket open, in a callback, or under a lock that one takes.
    pub fn detach(self) {
        self.device.stop();
        if let Some(subscription) = self.subscription {
            subscription.synchronize();
        }
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("device", &self.device.name())
            .finish_non_exhaustive()
    }
}

/// All models.
pub fn models() -> &'static [ModelInfo] {
    MODELS
}

/// The model of this [full name](ModelInfo::full_name).
pub fn model(full_name: &str) -> Option<&'static ModelInfo> {
    MODELS.iter().find(|model| model.full_name() == full_name)
}

static MODELS: &[ModelInfo] = &[
    ModelInfo {
        name: "test_hmm",
        variant: Variant::Now,
        pattern: Pattern::FastZap,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: false,
        switches: &[],
        shipped: &[],
        make: |memory, name, _| {
            let bus = Arc::clone(memory) as _;
            Attached::listed(Template::attach(memory.notifiers(), bus, name))
        },
    },
    ModelInfo {
        name: "umem_odp",
        variant: Variant::Now,
        pattern: Pattern::CommandZap,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: false,
        switches: &[
            Bug::AdmittedTooLate,
            Bug::NoSecondCheck,
            Bug::WrongShift,
            Bug::RangeBlind,
        ],
        shipped: &[Bug::RangeBlind],
        make: |memory, name, bugs| {
            let bus = Arc::clone(memory) as _;
            Attached::listed(Odp::attach_with(memory.notifiers(), bus, name, bugs))
        },
    },
    ModelInfo {
        name: "kvm",
        variant: Variant::Y2018,
        pattern: Pattern::FastZap,
        granularity: Granularity::Mapping,
        answers: Answers::Never,
        must_register: false,
        switches: &[
            Bug::CopyOutsideTable,
            Bug::SequenceReadLate,
            Bug::MmWideWait,
            Bug::SleepsInNonBlock,
            Bug::DirtyNotReported,
        ],
        shipped: &[
            Bug::CopyOutsideTable,
            Bug::MmWideWait,
            Bug::SleepsInNonBlock,
        ],
        make: |memory, name, bugs| Attached::listed(Kvm::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "kvm",
        variant: Variant::Now,
        pattern: Pattern::FastZap,
        granularity: Granularity::Mapping,
        answers: Answers::Never,
        must_register: false,
        switches: &[Bug::SequenceReadLate, Bug::DirtyNotReported],
        shipped: &[],
        make: |memory, name, bugs| Attached::listed(Kvm::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "gru",
        variant: Variant::Now,
        pattern: Pattern::FastZap,
        granularity: Granularity::Mapping,
        answers: Answers::Never,
        must_register: false,
        switches: &[Bug::NoHardwareCancel, Bug::AsidReused, Bug::ClippedFlush],
        shipped: &[],
        make: |memory, name, bugs| Attached::listed(Gru::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "hmm",
        variant: Variant::Y2018,
        pattern: Pattern::Adapter,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: false,
        switches: &[Bug::WorkInEnd, Bug::AnswersMerged],
        shipped: &[Bug::WorkInEnd],
        make: |memory, name, bugs| Attached::listed(Hmm::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "amdgpu",
        variant: Variant::Y2018,
        pattern: Pattern::HeldAcross,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[
            Bug::BlockingLock,
            Bug::AllocUnderLock,
            Bug::FairLockHeldAcross,
            Bug::PublishedTooEarly,
        ],
        shipped: &[Bug::BlockingLock, Bug::AllocUnderLock],
        make: |memory, name, bugs| Attached::listed(Amdgpu2018::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "amdgpu",
        variant: Variant::Now,
        pattern: Pattern::FenceWait,
        granularity: Granularity::Registration,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[Bug::RangeBlind],
        shipped: &[Bug::RangeBlind],
        make: |memory, name, bugs| Attached::by_registration(Amdgpu::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "radeon",
        variant: Variant::Y2018,
        pattern: Pattern::FenceWait,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[Bug::AllocUnderLock, Bug::NoRetry, Bug::TimeoutIgnored],
        shipped: &[Bug::AllocUnderLock, Bug::NoRetry, Bug::TimeoutIgnored],
        make: |memory, name, bugs| Attached::listed(Radeon::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "i915",
        variant: Variant::Y2018,
        pattern: Pattern::FenceWait,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[
            Bug::FlushSkipped,
            Bug::DetachedIsHidden,
            Bug::WaitsForItself,
        ],
        shipped: &[Bug::DetachedIsHidden],
        make: |memory, name, bugs| Attached::listed(I915y2018::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "i915",
        variant: Variant::Now,
        pattern: Pattern::UnlinkNow,
        granularity: Granularity::Registration,
        answers: Answers::Never,
        must_register: true,
        switches: &[],
        shipped: &[],
        make: |memory, name, bugs| Attached::by_registration(I915::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "kfd",
        variant: Variant::Y2018,
        pattern: Pattern::StopQueues,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[
            Bug::FirstStops,
            Bug::LastReferenceInWorker,
            Bug::RestoresBlindly,
        ],
        shipped: &[Bug::FirstStops],
        make: |memory, name, bugs| Attached::listed(Kfd::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "kfd",
        variant: Variant::Now,
        pattern: Pattern::StopQueues,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[Bug::FirstStops, Bug::ModeBlind, Bug::RestoresBlindly],
        shipped: &[Bug::FirstStops, Bug::ModeBlind],
        make: |memory, name, bugs| Attached::listed(Kfd::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "hfi1",
        variant: Variant::Y2018,
        pattern: Pattern::UnlinkNow,
        granularity: Granularity::Mapping,
        answers: Answers::Never,
        must_register: false,
        switches: &[
            Bug::BusyStaysInTree,
            Bug::HardwareEntryKept,
            Bug::InsertUnchecked,
        ],
        shipped: &[
            Bug::BusyStaysInTree,
            Bug::HardwareEntryKept,
            Bug::InsertUnchecked,
        ],
        make: |memory, name, bugs| Attached::listed(Hfi1::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "hfi1",
        variant: Variant::Now,
        pattern: Pattern::UnlinkNow,
        granularity: Granularity::Mapping,
        answers: Answers::Never,
        must_register: false,
        switches: &[Bug::InsertUnchecked],
        shipped: &[Bug::InsertUnchecked],
        make: |memory, name, bugs| Attached::listed(Hfi1::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "gntdev",
        variant: Variant::Y2018,
        pattern: Pattern::ReverseMap,
        granularity: Granularity::Mapping,
        answers: Answers::IfBusy,
        must_register: true,
        switches: &[Bug::WaitsUnderLock, Bug::SplitUntracked],
        shipped: &[Bug::WaitsUnderLock, Bug::SplitUntracked],
        make: |memory, name, bugs| Attached::listed(Gntdev::attach(memory, name, bugs)),
    },
    ModelInfo {
        name: "scif",
        variant: Variant::Y2018,
        pattern: Pattern::UnlinkNow,
        granularity: Granularity::Mapping,
        answers: Answers::Never,
        must_register: false,
        switches: &[
            Bug::InsertUnchecked,
            Bug::AdmissionInverted,
            Bug::InTwoLists,
            Bug::UnionWrong,
            Bug::PinUnderRmaLock,
            Bug::LeaksOnHang,
            Bug::BytesForPages,
            Bug::WorkerBlocked,
        ],
        shipped: &[
            Bug::InsertUnchecked,
            Bug::AdmissionInverted,
            Bug::InTwoLists,
            Bug::UnionWrong,
            Bug::PinUnderRmaLock,
            Bug::LeaksOnHang,
            Bug::BytesForPages,
            Bug::WorkerBlocked,
        ],
        make: |memory, name, bugs| Attached::listed(Scif::connect(memory, name, bugs)),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_what_shipped_can_be_switched_on() {
        for (at, info) in MODELS.iter().enumerate() {
            let found = MODELS
                .iter()
                .position(|other| other.full_name() == info.full_name());
            assert_eq!(found, Some(at), "{info:?}");
            assert!(Bugs::of(info.shipped).are_among(Bugs::of(info.switches)));
            assert!(model(&info.full_name()).is_some());
        }
    }
}
