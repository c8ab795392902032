//! What drivers are made of.
//!
//! Five engines are the hardware: [`FenceEngine`] runs jobs and says by fences when they are over,
//! [`QueueEngine`] runs queues until it is stopped, [`Vcpus`] and [`Tlb`] cache translations and
//! fault, [`PinCache`] keeps pages pinned, and [`GrantTable`] is used by others. The rest is what
//! their drivers need: fences and reservations, the count and the sequence of brackets, retries.

mod access;
mod counters;
mod dma_fence;
mod doorbell;
mod fence_engine;
mod fifo;
mod grant_table;
mod in_flight;
mod page_set;
mod pin_cache;
mod queue_engine;
mod registrations;
mod resv;
mod retry;
mod rounds;
mod tlb;
mod userptr;
mod vcpus;

pub use access::{Operation, fetch, fetch_run};
pub use counters::{Counter, Counters};
pub use dma_fence::{CALLBACKS_MAX, Callback, DmaFence, JOB_TIMEOUT, NotHung, Timeline, WorkLost};
pub use doorbell::{Doorbell, Next};
pub use fence_engine::{FarEnd, FenceEngine, JOBS_MAX, Job};
pub use fifo::{COMMANDS_MAX, Command, Fifo, MAPS_MAX, spare};
pub use grant_table::{GRANTS_MAX, GrantTable, Grants, Tracking};
pub use in_flight::{Busy, IN_FLIGHT_MAX, InFlight, Mark};
pub use page_set::PageSet;
pub use pin_cache::{Doom, Insert, Keep, PinCache, Using};
pub use queue_engine::{Check, PREEMPT_TIMEOUT, Process, QUEUE_MAX, QueueEngine};
pub use registrations::Registrations;
pub use resv::{BackOff, Reserved, Resv, SLOTS, Slot, SlotsFull, Ticket, Usage};
pub use retry::{Retry, until_done};
pub use rounds::Rounds;
pub use tlb::{Tlb, interval_of, ranges_of, run_of};
pub use userptr::{BUFFERS_MAX, Pending, Userptrs, reserve};
pub use vcpus::{Running, Vcpus};
