//! The engines by themselves, under the simulator's scheduler.

use crate::world::World;
use pinless_devices::DmaError;
use pinless_devices::engine::{Counters, FenceEngine, Job, Operation};
use pinless_mm::bus::BusAddr;
use pinless_mm::primary_mmu::Access;
use pinless_sim::Sim;
use std::sync::Arc;

/// A reset loses what was queued when the hardware hung; whoever learns that from the fence and
/// submits again finds a ring that goes on.
#[test]
fn what_is_submitted_after_a_reset_is_run() {
    Sim::check(0..200, |sim| {
        let (world, counters) = (World::new(), Arc::new(Counters::default()));
        let engine = Arc::new(FenceEngine::new());
        let (served, bus, counted) = (Arc::clone(&engine), Arc::clone(&world), counters.clone());
        sim.spawn_daemon("engine", move || served.serve(&*bus, &counted));
        let write = || {
            let at = BusAddr {
                page: 0,
                generation: 1,
                access: Access::Write,
            };
            let job = Job::new(at, 0, &Operation::Write(&[7]));
            assert_eq!(engine.submit(&job), Ok(true), "the ring has room");
            job.finish(Operation::Write(&[7]), &counters)
        };
        engine.hang(true);
        assert_eq!(write(), Err(DmaError::Hung), "what hung was lost");
        assert_eq!(write(), Ok(()), "what came after the reset was lost, too");
        engine.stop();
    });
}
