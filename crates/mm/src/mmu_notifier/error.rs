//! How a bracket can fail: it was refused, a device is stuck, or a callback panicked.

use core::fmt;
use core::time::Duration;
use lockdep::sync::Fence;
use std::sync::Arc;

/// A subscription could not let go of the range without waiting. Nothing has changed.
///
/// Not an error: the caller tries another range, or this one later, or in a blockable bracket.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The name of the subscription.
    pub holder: Arc<str>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` would have to wait", self.holder)
    }
}

/// Why a blockable bracket could not be opened. Nothing has changed.
#[derive(Clone, Debug)]
pub enum BracketError {
    /// A device still uses the range after the deadline.
    Stuck {
        /// The name of the subscription that the fence belongs to.
        holder: Arc<str>,
        /// Signals when the device has let go after all.
        fence: Fence,
        /// How long the bracket waited.
        waited: Duration,
    },
    /// A callback panicked.
    Panicked {
        /// The name of the subscription.
        holder: Arc<str>,
    },
}

impl BracketError {
    /// The name of the subscription at fault.
    pub fn holder(&self) -> &Arc<str> {
        match self {
            Self::Stuck { holder, .. } | Self::Panicked { holder } => holder,
        }
    }
}

impl fmt::Display for BracketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck { holder, waited, .. } => {
                write!(
                    f,
                    "`{holder}` still uses the range after {} ms",
                    waited.as_millis()
                )
            }
            Self::Panicked { holder } => write!(
                f,
                "a callback of `{holder}` panicked, and nothing was changed; mend it, or drop its \
                 subscription"
            ),
        }
    }
}

impl core::error::Error for BracketError {}
