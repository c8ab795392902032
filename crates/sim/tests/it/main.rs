//! The conformance kit, tried on a device that is right and on its wrong twins.

mod kit;
mod mirror;
