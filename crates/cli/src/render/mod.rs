//! What the user sees.

pub(crate) mod json;
pub(crate) mod live;
pub(crate) mod term;
