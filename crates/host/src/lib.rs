//! pinless-host.
