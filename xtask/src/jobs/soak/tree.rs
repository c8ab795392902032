//! The tree of memory cgroups, and what their bounds may be.
//!
//! ```text
//!                               root
//!           a                    b                      c
//!      tenants 0, 1         tenants 2, 3          d           e
//!                           killed together  tenants 4, 5  tenants 6, 7
//!                                                          killed together
//! ```
//!
//! Under any bounds of [`BOUNDS`], whatever the others are, there is room for what tenants use: in
//! frames and stored, at each level, also beside a glutton. So nobody is killed for these bounds.

use super::super::JobError;
use pinless::{Counter, Knob, Limits, Memcg};
use std::sync::Arc;

/// How much is in a memory cgroup: all tenants, four or two. A tenant uses 32 MiB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    All,
    Four,
    Two,
}

/// What a bound is set to.
pub(super) struct Bound {
    pub(super) knob: Knob,
    pub(super) name: &'static str,
    /// The least and the most, in MiB, for each [`Size`].
    ranges: [(u64, u64); 3],
}

const fn bound(knob: Knob, name: &'static str, ranges: [(u64, u64); 3]) -> Bound {
    Bound { knob, name, ranges }
}

/// What a glutton gets less of.
pub(super) const MAX: Bound = bound(Knob::Max, "max", [(32, 64), (24, 48), (12, 24)]);

/// Every bound that there is.
pub(super) const BOUNDS: [Bound; 7] = [
    MAX,
    bound(Knob::High, "high", [(32, 64), (20, 48), (8, 24)]),
    // Often more than there is: then it is taken from.
    bound(Knob::Low, "low", [(0, 64), (0, 48), (0, 24)]),
    bound(Knob::Min, "min", [(0, 16), (0, 8), (0, 4)]),
    bound(
        Knob::SwapMax,
        "swap.max",
        [(256, 384), (132, 160), (60, 72)],
    ),
    bound(Knob::ZswapMax, "zswap.max", [(12, 24), (6, 24), (3, 12)]),
    bound(Knob::TotalMax, "total.max", [(56, 88), (56, 72), (26, 36)]),
];

/// `max` while a glutton is there: less than it ever is otherwise.
pub(super) const NARROW_MAX_BYTES: u64 = 8 << 20;

/// Bytes that a glutton takes: more than the bounds of two tenants leave to anybody.
pub(super) const GLUTTON_BYTES: u64 = 128 << 20;

impl Bound {
    /// The least and the most of it, in bytes.
    pub(super) const fn range(&self, size: Size) -> (u64, u64) {
        let (least, most) = self.ranges[size as usize];
        (least << 20, most << 20)
    }
}

/// A memory cgroup of the tree.
pub(super) struct Level {
    pub(super) memcg: Arc<Memcg>,
    pub(super) size: Size,
    /// Whether all in it are killed together.
    pub(super) is_group: bool,
}

impl Level {
    fn below(parent: &Arc<Memcg>, name: &str, size: Size) -> Result<Self, JobError> {
        let made = parent.new_child(name, limits(size));
        made.map(|memcg| Self {
            memcg,
            size,
            is_group: false,
        })
        .map_err(|error| JobError::of("a memory cgroup", error))
    }

    fn killed_together(mut self) -> Self {
        self.memcg.set_oom_group(true);
        self.is_group = true;
        self
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self.size {
            Size::All => "root",
            Size::Four | Size::Two => self.memcg.name(),
        }
    }

    /// What is charged here, and never above its bound.
    pub(super) fn counters(&self) -> [(&'static str, &Counter); 4] {
        [
            ("frames", self.memcg.frames()),
            ("stored pages", self.memcg.swap()),
            ("compressed bytes", self.memcg.zswap_bytes()),
            ("frames and compressed bytes", self.memcg.total()),
        ]
    }
}

/// Bounds to begin with: as much as they ever are.
pub(super) fn limits(size: Size) -> Limits {
    let mut limits = Limits::new(u64::MAX);
    for bound in &BOUNDS {
        let (_, most) = bound.range(size);
        match bound.knob {
            Knob::Max => limits.max_bytes = most,
            Knob::High => limits.high_bytes = most,
            // Nothing is protected at first.
            Knob::Low | Knob::Min => {}
            Knob::SwapMax => limits.swap_max_bytes = most,
            Knob::ZswapMax => limits.zswap_max_bytes = most,
            Knob::TotalMax => limits.total_max_bytes = most,
        }
    }
    limits
}

/// The tree on `root`, which comes first.
pub(super) fn grow(root: &Arc<Memcg>) -> Result<Vec<Level>, JobError> {
    let all = Level {
        memcg: Arc::clone(root),
        size: Size::All,
        is_group: false,
    };
    let a = Level::below(root, "a", Size::Two)?;
    let b = Level::below(root, "b", Size::Two)?.killed_together();
    let c = Level::below(root, "c", Size::Four)?;
    let d = Level::below(&c.memcg, "d", Size::Two)?;
    let e = Level::below(&c.memcg, "e", Size::Two)?.killed_together();
    Ok(vec![all, a, b, c, d, e])
}
