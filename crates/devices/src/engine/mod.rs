//! What drivers are made of.

mod access;
mod counters;
mod fifo;
mod in_flight;
mod page_set;
mod retry;
mod rounds;
mod tlb;

pub use access::{Operation, fetch};
pub use counters::{Counter, Counters};
pub use fifo::{COMMANDS_MAX, Command, Fifo, MAPS_MAX, spare};
pub use in_flight::{Busy, IN_FLIGHT_MAX, InFlight, Mark};
pub use page_set::PageSet;
pub use retry::Retry;
pub use rounds::Rounds;
pub use tlb::{Tlb, ranges_of, run_of};
