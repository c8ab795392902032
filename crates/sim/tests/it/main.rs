//! The conformance kit, tried on a device that is right and on its wrong twins.

#![cfg(feature = "conformance")]

mod kit;
mod mirror;
