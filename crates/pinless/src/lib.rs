//! pinless.
