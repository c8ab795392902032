//! Above `high`: whoever takes a frame is held up, and whoever takes it for another hardly is.

use crate::machine::OnTasks;
use pinless_mm::Memcg;
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::env::Clock;
use pinless_mm::fault::FaultHandler;
use pinless_mm::limits::{Limits, THROTTLE_MAX, THROTTLE_SERVICE_MAX};
use pinless_mm::primary_mmu::Access;
use pinless_mm::suite::Machine;
use pinless_sim::Sim;
use std::time::Duration;

const NR_PAGES: u32 = 8;

/// How long `NR_PAGES` faults take, far above `high`, when nobody reclaims.
fn took(sim: &Sim, resolve: fn(&dyn FaultHandler, u32)) -> Duration {
    let mut limits = Limits::new(64 * PAGE_SIZE as u64);
    limits.high_bytes = 0;
    let clock = sim.clock();
    let memcg = Memcg::new(limits, sim.clock()).expect("bounds with room");
    let mm = memcg.new_mm("high");
    let mapping = OnTasks::new(sim).map(&mm, NR_PAGES);
    let began_ns = clock.now_ns();
    for page in 0..NR_PAGES {
        resolve(&**mapping.vma(), page);
    }
    Duration::from_nanos(clock.now_ns() - began_ns)
}

#[test]
fn who_serves_others_is_hardly_held_up() {
    let ran = Sim::run(1, |sim| {
        let own = took(sim, |handler, page| {
            handler.fault(page, Access::Write).expect("a frame");
        });
        let served = took(sim, |handler, page| {
            handler.serve(page, Access::Write).expect("a frame");
        });
        assert!(own >= THROTTLE_MAX * NR_PAGES, "{own:?}");
        assert!(served >= THROTTLE_SERVICE_MAX * NR_PAGES, "{served:?}");
        assert!(served < THROTTLE_SERVICE_MAX * NR_PAGES * 2, "{served:?}");
    });
    assert!(ran.has_passed(), "{ran}");
}
