//! Pressure stall information: how long tasks stood still for want of memory.
//!
//! Linux counterpart: `kernel/sched/psi.c`.

use core::ops::Sub;
use std::fs;
use std::path::Path;

/// Where the kernel tells the pressure of the whole machine.
pub const SYSTEM: &str = "/proc/pressure/memory";

/// Time that was lost to memory pressure, in all, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// While at least one task stood still.
    pub some_us: u64,
    /// While all tasks that had something to do stood still.
    pub full_us: u64,
}

impl Pressure {
    /// Reads a pressure file; `None` where the kernel does not keep these figures.
    pub fn read(path: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let total = |kind: &str| {
            let line = text.lines().find(|line| line.starts_with(kind))?;
            line.rsplit_once("total=")?.1.trim().parse().ok()
        };
        Some(Self {
            some_us: total("some ")?,
            full_us: total("full ")?,
        })
    }
}

impl Sub for Pressure {
    type Output = Self;

    /// What has come since an earlier reading.
    fn sub(self, earlier: Self) -> Self {
        Self {
            some_us: self.some_us.saturating_sub(earlier.some_us),
            full_us: self.full_us.saturating_sub(earlier.full_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_and_nonsense_is_not() {
        let text = "some avg10=0.12 avg60=0.00 avg300=0.00 total=92709972\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=66547719\n";
        let read = Pressure::parse(text);
        let (some_us, full_us) = (92_709_972, 66_547_719);
        assert_eq!(read, Some(Pressure { some_us, full_us }));
        assert_eq!(Pressure::parse(""), None);
        assert_eq!(Pressure::parse("some total=x\nfull total=1\n"), None);
    }
}
