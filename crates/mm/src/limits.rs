//! Every bound of the memory manager in one place.

use crate::addr::PAGE_SIZE;
use crate::bus::Checks;
use crate::memcg::Knob;
use core::fmt;
use core::time::Duration;

/// Pages that reclaim looks at in one step; also the longest run of one machine operation in
/// reclaim. One bit a page in a `u64`.
pub const WINDOW_PAGES: u32 = 64;

/// Pages that the reaper asks for at once: one page-table page worth, as zapping goes.
pub const REAP_CHUNK_PAGES: u32 = 512;

/// The fewest frames a `max` may have: below it, an access that crosses a page boundary and what
/// reclaim moves meanwhile do not fit together.
pub const FRAMES_MIN: u64 = 4;

/// The most bytes that the slots of a compressed store can be numbered for.
pub const ZSWAP_BYTES_MAX: u64 = 128 << 30;

/// The most pages one mapping may have.
pub const MAPPING_PAGES_MAX: u32 = 1 << 30;

/// How often one page may be pinned at the same time.
pub const PINS_PER_PAGE_MAX: u32 = 1023;

/// Windows that wait for a blockable bracket.
pub const REFUSED_QUEUE_MAX: usize = 256;

/// Ranges that count as pinned because their holder did not answer in time.
pub const STUCK_MAX: usize = 64;

/// Threads of a memory cgroup that can be watched while they run callbacks.
pub const SEATS: usize = 16;

/// How many of them only workers take: the three, and every spare that stands in for one.
pub const WORKER_SEATS: usize = 3 + SPARES;

/// Spare threads that whoever sets a memory cgroup up should start: a callback that hangs can hold
/// each of the three workers, and one more has to watch.
pub const SPARES: usize = 4;

/// Convictions that are kept; older ones are dropped.
pub const CONVICTIONS_MAX: usize = 64;

/// The shortest budget of a callback. Below it, whoever watches would do nothing but look.
pub const BUDGET_MIN: Duration = Duration::from_millis(1);

/// Threads that may compress at the same time.
pub const WORKSPACES: usize = 4;

/// The longest that a thread is held up for one frame that it takes above `high`.
pub const THROTTLE_MAX: Duration = Duration::from_millis(100);

/// The same for a thread that resolves the faults of others, who all wait for it.
pub const THROTTLE_SERVICE_MAX: Duration = Duration::from_millis(1);

/// What is shorter is not worth a sleep.
pub const THROTTLE_MIN: Duration = Duration::from_micros(500);

/// The least that is kept of `total.max`: two pages that no codec makes smaller, with headers.
pub const TOTAL_RESERVE_MIN: u64 = 3 * PAGE_SIZE as u64;

/// What frames leave free of a `total.max`: for the moment in which a page is in a frame and in
/// the store both. Without it, a memory cgroup that is full of frames could not store one.
pub(crate) fn total_reserve(total_max_bytes: u64) -> u64 {
    (total_max_bytes / 16).clamp(TOTAL_RESERVE_MIN, 1 << 20)
}

/// The bounds of one [`Memcg`](crate::Memcg).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Frames (resident and standby) in bytes, the kernel's `memory.max`.
    pub max_bytes: u64,
    /// Frames in bytes above which threads that take more are held up (`memory.high`).
    pub high_bytes: u64,
    /// Frames in bytes that reclaim on behalf of a memory cgroup above this one leaves alone while
    /// it finds others (`memory.low`).
    pub low_bytes: u64,
    /// Frames in bytes that such reclaim leaves alone (`memory.min`).
    pub min_bytes: u64,
    /// Compressed bytes, the kernel's `memory.zswap.max`.
    pub zswap_max_bytes: u64,
    /// Stored pages, in bytes that they have in a frame (`memory.swap.max`).
    pub swap_max_bytes: u64,
    /// Frames and compressed bytes together. The kernel has no such bound.
    pub total_max_bytes: u64,
    /// How long a fault waits for a frame before it ends in an error.
    pub fault_deadline: Duration,
    /// How long a blockable bracket waits for the devices it told.
    pub settle_deadline: Duration,
    /// Whether all address spaces are killed together when memory runs out (the kernel's
    /// `memory.oom.group`); those with the lowest `oom_score_adj` are spared.
    pub oom_group: bool,
    /// How often the reaper goes over its victim (the kernel's `MAX_OOM_REAP_RETRIES`).
    pub reap_passes: u32,
    /// The pause between two passes of the reaper.
    pub reap_interval: Duration,
    /// How long somebody may take who promised to give memory back, before it is killed.
    pub cancel_deadline: Duration,
    /// How long a callback may take that may block, before a spare steps in for its worker; no less
    /// than [`BUDGET_MIN`]. What waits for devices puts a kill off for no longer than twice
    /// [`settle_deadline`](Self::settle_deadline), however long this is.
    pub callback_budget: Duration,
    /// How long one may take that may not block. Far above what it needs: a busy machine takes the
    /// processor away, and whoever is convicted for that is left out until it returns. No less than
    /// [`BUDGET_MIN`].
    pub nonblock_budget: Duration,
    /// How far the accesses of devices are checked.
    pub bus_checks: Checks,
}

impl Limits {
    /// The default bounds for `max_bytes` of frames: twice as much compressed, nothing protected,
    /// and nothing else bounded.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            high_bytes: u64::MAX,
            low_bytes: 0,
            min_bytes: 0,
            zswap_max_bytes: max_bytes.saturating_mul(2),
            swap_max_bytes: u64::MAX,
            total_max_bytes: u64::MAX,
            fault_deadline: Duration::from_secs(10),
            settle_deadline: Duration::from_secs(2),
            oom_group: false,
            reap_passes: 10,
            reap_interval: Duration::from_millis(100),
            cancel_deadline: Duration::from_secs(1),
            callback_budget: Duration::from_secs(2),
            nonblock_budget: Duration::from_millis(500),
            bus_checks: Checks::Generation,
        }
    }

    /// Frames under `max`.
    pub fn frames_max(&self) -> u64 {
        self.max_bytes / PAGE_SIZE as u64
    }

    /// Stored pages under `swap.max`.
    pub fn swap_max_pages(&self) -> u64 {
        self.swap_max_bytes / PAGE_SIZE as u64
    }

    /// Checks the bounds against each other.
    ///
    /// # Errors
    ///
    /// See [`LimitError`].
    pub fn check(&self) -> Result<(), LimitError> {
        let budget = self.callback_budget.min(self.nonblock_budget);
        if budget < BUDGET_MIN {
            return Err(LimitError::BudgetTooShort { budget });
        }
        Self::check_knob(Knob::Max, self.max_bytes)?;
        Self::check_knob(Knob::ZswapMax, self.zswap_max_bytes)?;
        Self::check_knob(Knob::TotalMax, self.total_max_bytes)
    }

    /// Checks a value for one of the bounds.
    pub(crate) fn check_knob(knob: Knob, bytes: u64) -> Result<(), LimitError> {
        let page_bytes = PAGE_SIZE as u64;
        match knob {
            Knob::Max if bytes / page_bytes < FRAMES_MIN => {
                Err(LimitError::TooSmall { max_bytes: bytes })
            }
            Knob::TotalMax
                if bytes.saturating_sub(total_reserve(bytes)) / page_bytes < FRAMES_MIN =>
            {
                Err(LimitError::TotalTooSmall {
                    total_max_bytes: bytes,
                })
            }
            Knob::ZswapMax if bytes > ZSWAP_BYTES_MAX => Err(LimitError::StoreTooLarge {
                zswap_max_bytes: bytes,
            }),
            _ => Ok(()),
        }
    }
}

/// Why bounds cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitError {
    /// `max` leaves no room to work in.
    TooSmall {
        /// The bound that was asked for.
        max_bytes: u64,
    },
    /// `total.max` leaves no room to work in.
    TotalTooSmall {
        /// The bound that was asked for.
        total_max_bytes: u64,
    },
    /// The compressed store is larger than its slots can be numbered, or than what was set aside at
    /// the start.
    StoreTooLarge {
        /// The bound that was asked for.
        zswap_max_bytes: u64,
    },
    /// A callback gets no time.
    BudgetTooShort {
        /// The shorter of the two that were asked for.
        budget: Duration,
    },
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { max_bytes } => write!(
                f,
                "a limit of {max_bytes} bytes is too small: reclaim needs at least {} bytes",
                FRAMES_MIN * PAGE_SIZE as u64
            ),
            Self::TotalTooSmall { total_max_bytes } => write!(
                f,
                "a limit of {total_max_bytes} bytes on everything is too small: reclaim needs at \
                 least {} bytes",
                FRAMES_MIN * PAGE_SIZE as u64 + TOTAL_RESERVE_MIN
            ),
            Self::StoreTooLarge { zswap_max_bytes } => write!(
                f,
                "a compressed store of {zswap_max_bytes} bytes is too large: at most \
                 {ZSWAP_BYTES_MAX} bytes can be numbered, and no more than it had at the start"
            ),
            Self::BudgetTooShort { budget } => write!(
                f,
                "a budget of {budget:?} for a callback is too short: give it {BUDGET_MIN:?} at \
                 least"
            ),
        }
    }
}

impl std::error::Error for LimitError {}

/// The marks between which reclaim works, in frames.
///
/// Linux counterpart: the zone watermarks and `watermark_scale_factor`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marks {
    /// Reclaim starts when fewer frames are free.
    pub low: u64,
    /// Reclaim stops when as many frames are free.
    pub high: u64,
    /// How many frames stand in Standby as their second chance.
    pub standby: u64,
}

impl Marks {
    /// The marks for a `max` of `frames`.
    pub fn new(frames: u64) -> Self {
        let low = (frames / 64).clamp(1, 2048);
        Self {
            low,
            high: (2 * low).min(frames / 2),
            standby: (frames / 8).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_has_time() {
        for (callback_budget, nonblock_budget, is_enough) in [
            (BUDGET_MIN, BUDGET_MIN, true),
            (BUDGET_MIN, Duration::ZERO, false),
            (Duration::ZERO, BUDGET_MIN, false),
        ] {
            let limits = Limits {
                callback_budget,
                nonblock_budget,
                ..Limits::new(1 << 20)
            };
            let budget = Duration::ZERO;
            let refused = Err(LimitError::BudgetTooShort { budget });
            assert_eq!(limits.check(), if is_enough { Ok(()) } else { refused });
        }
    }
}
