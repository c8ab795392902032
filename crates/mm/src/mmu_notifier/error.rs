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
    /// How it came to be.
    pub cause: Cause,
}

/// How a bracket came to be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The subscription would have had to wait.
    WouldBlock,
    /// Its callback panicked.
    Panicked,
    /// An earlier callback of it has not returned in its time; it was not called again.
    Overdue,
}

impl Cause {
    /// The cause as the end of a sentence that begins with the name of the subscription.
    pub const fn text(self) -> &'static str {
        match self {
            Self::WouldBlock => "would have to wait",
            Self::Panicked => "panicked",
            Self::Overdue => "does not return",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.holder, self.cause.text())
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
    /// An earlier callback of it has not returned in its time; it was not called again.
    Overdue {
        /// The name of the subscription.
        holder: Arc<str>,
    },
}

impl BracketError {
    /// The name of the subscription at fault.
    pub fn holder(&self) -> &Arc<str> {
        match self {
            Self::Stuck { holder, .. } | Self::Panicked { holder } | Self::Overdue { holder } => {
                holder
            }
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
            Self::Overdue { holder } => write!(
                f,
                "a callback of `{holder}` has not returned, so it was not called; wait for it, or \
                 mend it"
            ),
        }
    }
}

impl core::error::Error for BracketError {}
