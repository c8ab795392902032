//! Bounds that change while the memory cgroup is in use.
//!
//! Linux counterpart: `memory_max_write` and the other files of a memory cgroup.

use super::Memcg;
use super::counter::Counter;
use crate::addr::PAGE_SIZE;
use crate::limits::{LimitError, Limits, total_reserve};
use crate::mm_struct::PinnedBy;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A bound that can be changed, by the kernel's name of its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Knob {
    /// `memory.max`: frames, never exceeded.
    Max,
    /// `memory.high`: frames above which threads that take more are held up.
    High,
    /// `memory.low`: frames that reclaim from above leaves alone while it finds others.
    Low,
    /// `memory.min`: frames that reclaim from above leaves alone.
    Min,
    /// `memory.swap.max`: stored pages, as they are in a frame; never exceeded.
    SwapMax,
    /// `memory.zswap.max`: compressed bytes, never exceeded.
    ZswapMax,
    /// Frames and compressed bytes together, never exceeded. The kernel has none.
    TotalMax,
}

/// Why a bound was not changed. It is what it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SetLimitError {
    /// The value makes no sense.
    Limit(LimitError),
    /// Another thread is changing a bound of the memory cgroup.
    Changing,
    /// More is in use, and could not be taken back: it is pinned, locked or in use by devices, or
    /// there is no room to store it.
    InUse {
        /// Which bound.
        knob: Knob,
        /// What it was to be, in bytes.
        wanted_bytes: u64,
        /// What is in use, in bytes.
        usage_bytes: u64,
        /// Pins, in pages; see [`Memcg::nr_pins`].
        nr_pins: u64,
        /// Who has most of them by name; see [`Memcg::pin_holders`] for the others.
        pinned_by: Option<PinnedBy>,
    },
}

impl fmt::Display for SetLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(error) => error.fmt(f),
            Self::Changing => write!(f, "another thread is changing a bound now; try again"),
            Self::InUse {
                knob,
                wanted_bytes,
                usage_bytes,
                nr_pins,
                pinned_by,
            } => {
                write!(
                    f,
                    "{knob:?} cannot be lowered to {wanted_bytes} bytes: {usage_bytes} bytes are \
                     in use and cannot be taken back now; drop pins"
                )?;
                match pinned_by {
                    Some(most) => write!(f, " ({nr_pins} pages, most by {most})")?,
                    None => write!(f, " ({nr_pins} pages)")?,
                }
                write!(f, ", or raise what bounds the store")
            }
        }
    }
}

impl std::error::Error for SetLimitError {}

/// What is set and bounds no counter; bounds in frames.
#[derive(Debug)]
pub(super) struct Knobs {
    high: AtomicU64,
    low: AtomicU64,
    min: AtomicU64,
    oom_group: AtomicBool,
}

impl Knobs {
    pub(super) fn new(limits: &Limits) -> Self {
        let frames = |bytes: u64| AtomicU64::new(bytes / PAGE_SIZE as u64);
        Self {
            high: frames(limits.high_bytes),
            low: frames(limits.low_bytes),
            min: frames(limits.min_bytes),
            oom_group: AtomicBool::new(limits.oom_group),
        }
    }
}

/// The time in which a thread changes a bound. Not a lock: notifiers are called meanwhile.
struct Changing<'a>(&'a AtomicBool);

impl<'a> Changing<'a> {
    fn begin(is_changing: &'a AtomicBool) -> Result<Self, SetLimitError> {
        // Acquire: pairs with the Release in `drop`, so that one change is seen by the next.
        match is_changing.swap(true, Ordering::Acquire) {
            true => Err(SetLimitError::Changing),
            false => Ok(Self(is_changing)),
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `begin`.
        self.0.store(false, Ordering::Release);
    }
}

/// Rounds that must free nothing before a bound is given up (the kernel's
/// `MAX_RECLAIM_RETRIES`).
const ROUNDS_MAX: u32 = 16;

impl Memcg {
    pub(crate) fn high_frames(&self) -> u64 {
        self.knobs.high.load(Ordering::Relaxed)
    }

    pub(crate) fn low_frames(&self) -> u64 {
        self.knobs.low.load(Ordering::Relaxed)
    }

    pub(crate) fn min_frames(&self) -> u64 {
        self.knobs.min.load(Ordering::Relaxed)
    }

    pub(crate) fn is_oom_group(&self) -> bool {
        self.knobs.oom_group.load(Ordering::Relaxed)
    }

    /// Whether all address spaces here and below are killed together from now on when memory runs
    /// out, but those with the lowest `oom_score_adj` (the kernel's `memory.oom.group`). A kill
    /// that is under way stays what it is. At the start it is as in [`Limits::oom_group`].
    pub fn set_oom_group(&self, together: bool) {
        self.knobs.oom_group.store(together, Ordering::Relaxed);
    }

    /// Changes a bound. To lower one that is never exceeded, it takes back what is in use above it,
    /// in the calling thread, which may call notifiers and wait; meanwhile nobody gets more. It
    /// waits neither for a device that refuses nor for a pin: what they hold is in use, and the
    /// caller may ask again.
    ///
    /// Not callable under a lock that a notifier takes, nor from a notifier.
    ///
    /// # Errors
    ///
    /// See [`SetLimitError`].
    pub fn set_limit(&self, knob: Knob, bytes: u64) -> Result<(), SetLimitError> {
        Limits::check_knob(knob, bytes).map_err(SetLimitError::Limit)?;
        if knob == Knob::ZswapMax && bytes > self.zswap.max_bytes() {
            let zswap_max_bytes = bytes;
            return Err(SetLimitError::Limit(LimitError::StoreTooLarge {
                zswap_max_bytes,
            }));
        }
        crate::gfp::might_alloc(crate::gfp::Gfp::Kernel);
        let page_bytes = PAGE_SIZE as u64;
        let stored = &self.store_charges;
        let set = match knob {
            Knob::High => self.set_frames(&self.knobs.high, bytes),
            Knob::Low => self.set_frames(&self.knobs.low, bytes),
            Knob::Min => self.set_frames(&self.knobs.min, bytes),
            Knob::Max => self.set_bound(knob, self.frames.counter(), (bytes, page_bytes)),
            Knob::SwapMax => self.set_bound(knob, &stored.swap_pages, (bytes, page_bytes)),
            Knob::ZswapMax => self.set_bound(knob, &stored.zswap_bytes, (bytes, 1)),
            Knob::TotalMax => self.set_bound(knob, &stored.total_bytes, (bytes, 1)),
        };
        // There may be room for those who wait, or work: also where the change was given up, for
        // what was held back meanwhile may be had again.
        self.reclaim.kick();
        self.wake_waiters();
        set
    }

    fn set_frames(&self, knob: &AtomicU64, bytes: u64) -> Result<(), SetLimitError> {
        knob.store(bytes / PAGE_SIZE as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Changes the bound of `counter` to `bytes`, which it counts in units of `unit_bytes`.
    fn set_bound(
        &self,
        knob: Knob,
        counter: &Counter,
        (bytes, unit_bytes): (u64, u64),
    ) -> Result<(), SetLimitError> {
        let _changing = Changing::begin(&self.is_changing)?;
        let (max, old_max) = (bytes / unit_bytes, counter.max());
        let reserve = match knob {
            Knob::TotalMax if max < old_max => total_reserve(max),
            _ => 0,
        };
        let excess = || counter.usage().saturating_sub(max - reserve);
        let missing = || excess().div_ceil(PAGE_SIZE as u64 / unit_bytes);
        let (mut least, mut idle_rounds) = (counter.usage(), 0);
        loop {
            // Room to store is left until the end: what stores a page needs it before the frame
            // goes.
            let cap = match reserve {
                0 => max,
                _ => max.max(old_max.min(counter.usage() + reserve)),
            };
            counter.hold_below(cap);
            if cap == max && counter.commit() {
                return Ok(());
            }
            self.take_back(knob, counter, &missing);
            let usage = counter.usage();
            idle_rounds = if usage < least { 0 } else { idle_rounds + 1 };
            least = least.min(usage);
            if idle_rounds > ROUNDS_MAX || self.is_stopped() {
                counter.let_be();
                return Err(SetLimitError::InUse {
                    knob,
                    wanted_bytes: bytes,
                    usage_bytes: usage * unit_bytes,
                    nr_pins: self.nr_pins(),
                    pinned_by: self.pin_holders().into_iter().next(),
                });
            }
        }
    }

    /// Takes something back of what `knob` bounds, until no page is `missing`.
    fn take_back(&self, knob: Knob, counter: &Counter, missing: &dyn Fn() -> u64) {
        match knob {
            Knob::SwapMax | Knob::ZswapMax => self.shed_for_limit(counter),
            _ => self.reclaim_for_limit(missing),
        }
    }
}
