//! What the user sees.

pub(crate) mod conform;
pub(crate) mod json;
pub(crate) mod live;
pub(crate) mod side_by_side;
pub(crate) mod teardown;
pub(crate) mod term;
