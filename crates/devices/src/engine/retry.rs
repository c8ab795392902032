//! Trying again, slower each time and not for ever.

use crate::DmaError;
use core::time::Duration;
use lockdep::sync::{sleep, spin_wait};

/// The first tries come one after the other.
const QUICK: u32 = 8;

/// How often a device asks for a page that keeps changing: about two seconds, given [`PAUSE_MAX`].
const TRIES_MAX: u32 = 2048;

const PAUSE_MAX: Duration = Duration::from_millis(1);

/// The tries of one access.
#[derive(Debug)]
pub struct Retry {
    nr: u32,
}

impl Retry {
    /// None yet.
    pub fn new() -> Self {
        Self { nr: 0 }
    }

    /// Pauses before the next try, if it is not the second: then what was missing at first has just
    /// been brought. False when there were enough.
    pub fn pause(&mut self) -> bool {
        self.nr += 1;
        if self.nr == 1 {
            return true;
        }
        if self.nr >= TRIES_MAX {
            return false;
        }
        match self.nr.checked_sub(QUICK) {
            None => {
                // One look that fails and one that succeeds: somebody else runs in between.
                let mut has_looked = false;
                spin_wait("devices.retry", 0, || {
                    core::mem::replace(&mut has_looked, true)
                });
            }
            Some(slow) => {
                let pause = Duration::from_micros(1 << slow.min(10));
                sleep("devices.retry", pause.min(PAUSE_MAX));
            }
        }
        true
    }
}

/// Makes attempts, with pauses, until one has a result.
///
/// # Errors
///
/// That of an attempt; [`DmaError::Starved`] when there were enough without a result.
pub fn until_done<T>(
    mut attempt: impl FnMut() -> Result<Option<T>, DmaError>,
) -> Result<T, DmaError> {
    let mut retry = Retry::new();
    loop {
        if let Some(result) = attempt()? {
            return Ok(result);
        }
        if !retry.pause() {
            return Err(DmaError::Starved);
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}
