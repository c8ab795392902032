//! The drivers against real notifiers and a machine made of a few frames.

mod drivers;
mod engines;
mod machine;
mod models;
mod scif;
mod world;
