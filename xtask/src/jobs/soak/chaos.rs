//! What comes over the tenants: other bounds, and kills.

use super::super::contents::Rng;
use super::{LIMIT_BYTES, NR_TENANTS, STORE_BYTES, Stage};
use core::sync::atomic::Ordering;
use core::time::Duration;
use pinless_mm::memcg::Knob;

/// The longest pause between two strokes, in microseconds.
const PAUSE_US: u64 = 60_000;

/// Of so many strokes one kills; the others change bounds.
const KILLS_ONE_IN: u64 = 128;

/// Strikes until it is over.
pub(super) fn run(stage: &Stage) {
    let mut rng = Rng(stage.seed ^ 0xc4a0_5000);
    while !stage.is_over() {
        std::thread::sleep(Duration::from_micros(rng.below(PAUSE_US)));
        if rng.below(KILLS_ONE_IN) == 0 {
            kill(stage, &mut rng);
        } else {
            change_bound(stage, &mut rng);
        }
    }
}

fn kill(stage: &Stage, rng: &mut Rng) {
    let index = rng.below(u64::from(NR_TENANTS)) as usize;
    let living = stage.living[index].lock().clone();
    if living.is_some_and(|mm| stage.pinless.memcg().kill(&mm)) {
        stage.nr_kills.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sets a bound anywhere between half of what it was at first and that. What cannot be had now is
/// refused.
fn change_bound(stage: &Stage, rng: &mut Rng) {
    let (knob, most) = match rng.below(4) {
        0 => (Knob::ZswapMax, STORE_BYTES),
        1 => (Knob::High, LIMIT_BYTES),
        2 => (Knob::Low, LIMIT_BYTES / 2),
        _ => (Knob::Max, LIMIT_BYTES),
    };
    let bytes = most / 2 + rng.below(most / 2);
    if stage.pinless.memcg().set_limit(knob, bytes).is_ok() {
        stage.nr_bounds.fetch_add(1, Ordering::Relaxed);
    }
}
