//! pinless-devices.
