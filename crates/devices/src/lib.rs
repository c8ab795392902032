//! Devices that use managed memory without pinning it.
//!
//! A device keeps translations of pages and reads and writes through them, as hardware does,
//! without asking the memory manager again. What it owes is in the contract of
//! [`mmu_notifier`](pinless_mm::mmu_notifier): told that a range changes, it drops the
//! translations and stops using the old frames. Every access is checked by the bus, so a device
//! that breaks the rule is seen.
//!
//! Each driver is one short file over the parts in [`engine`]:
//!
//! * [`template`]: the simplest that is right; copy it to write one of your own.
//! * [`odp`]: a network card whose translations change only by commands to its engine.
//! * [`kvm`], [`gru`]: a hypervisor and an accelerator, which drop translations at once.
//! * [`amdgpu`], [`amdgpu_2018`], [`radeon`], [`i915`], [`i915_2018`]: graphics cards, whose jobs
//!   cannot fault; [`kfd`]: compute queues, which are stopped.
//! * [`hfi1`]: a network card that keeps pages pinned; [`scif`]: a coprocessor that does so by
//!   registration and by itself.
//! * [`gntdev`]: foreign pages that are mapped here.
//! * [`hmm`]: a hub with devices behind it.
//!
//! [`models()`] is the table of all of them, for checkers that try one after the other, and
//! [`zoo()`] the list of faults that can be switched on in them.
//!
//! No driver starts a thread: somebody else calls [`DmaDevice::serve`] in one.
#![forbid(unsafe_code)]

pub mod template;

pub mod amdgpu;
pub mod amdgpu_2018;
pub mod gntdev;
pub mod gru;
pub mod hfi1;
pub mod hmm;
pub mod i915;
pub mod i915_2018;
pub mod kfd;
pub mod kvm;
pub mod odp;
pub mod radeon;
pub mod scif;

pub mod engine;
pub mod lock_order;
pub mod model;
pub mod zoo;

pub use model::{Attached, ModelInfo, model, models};
pub use odp::Odp;
pub use pinless_mm::bus::{DeviceMemory, DeviceStats, DmaDevice, DmaError, Pinned};
pub use template::Template;
pub use zoo::{Bug, BugInfo, Bugs, zoo};
