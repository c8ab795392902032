//! The engines by themselves, under the simulator's scheduler.

use crate::world::World;
use core::time::Duration;
use lockdep::sync::sleep;
use pinless_devices::DmaError;
use pinless_devices::engine::{
    Counters, FenceEngine, JOB_TIMEOUT, Job, Operation, PREEMPT_TIMEOUT, QueueEngine,
};
use pinless_mm::bus::BusAddr;
use pinless_mm::env::Clock;
use pinless_mm::primary_mmu::Access;
use pinless_sim::Sim;
use std::sync::Arc;

/// The first page, as the bus knows it at first.
const WRITABLE: BusAddr = BusAddr {
    page: 0,
    generation: 1,
    access: Access::Write,
};

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
            let job = Job::new(WRITABLE, 0, &Operation::Write(&[7]));
            assert_eq!(engine.submit(&job), Ok(true), "the ring has room");
            job.finish(Operation::Write(&[7]), &counters)
        };
        engine.hang(true);
        assert_eq!(write(), Err(DmaError::Hung), "what hung was lost");
        assert_eq!(write(), Ok(()), "what came after the reset was lost, too");
        engine.stop();
    });
}

/// However often the bell rings, hardware that hangs is reset after its time and not before.
#[test]
fn a_hang_lasts_its_time_however_often_the_bell_rings() {
    Sim::check(0..100, |sim| {
        let (world, counters) = (World::new(), Arc::new(Counters::default()));
        let ring = Arc::new(FenceEngine::new());
        ring.hang(true);
        let (served, bus, counted) = (Arc::clone(&ring), Arc::clone(&world), counters.clone());
        sim.spawn_daemon("ring", move || served.serve(&*bus, &counted));
        let (submitted, counted) = (Arc::clone(&ring), counters.clone());
        check_hang(sim, JOB_TIMEOUT, move || {
            let job = Job::new(WRITABLE, 0, &Operation::Write(&[7]));
            assert_eq!(submitted.submit(&job), Ok(true), "the ring has room");
            job.finish(Operation::Write(&[7]), &counted)
        });
        ring.stop();
        let queues = Arc::new(QueueEngine::new(1));
        queues.hang(true);
        let (served, bus, counted) = (Arc::clone(&queues), Arc::clone(&world), counters.clone());
        sim.spawn_daemon("queues", move || served.serve(&*bus, &counted));
        let (used, counted) = (Arc::clone(&queues), counters.clone());
        check_hang(sim, PREEMPT_TIMEOUT, move || {
            used.transfer(0, 0, Operation::Write(&[7]), &counted)
        });
        queues.stop();
        assert_eq!(counters.snapshot().timeouts, 2, "each was reset once");
    });
}

/// Has several use hardware that hangs, one after the other, and looks how long the first waits.
fn check_hang(
    sim: &Sim,
    timeout: Duration,
    submit: impl Fn() -> Result<(), DmaError> + Clone + Send + 'static,
) {
    let (clock, began_ns) = (sim.clock(), sim.clock().now_ns());
    for nr in 1..=5 {
        let submit = submit.clone();
        sim.spawn("later", move || {
            sleep("test.later", timeout / 10 * nr);
            assert_eq!(submit(), Err(DmaError::Hung), "it waits for the same reset");
        });
    }
    assert_eq!(submit(), Err(DmaError::Hung), "it was lost");
    let took_ns = u128::from(clock.now_ns() - began_ns);
    let allowed = timeout.as_nanos()..timeout.as_nanos() * 11 / 10;
    assert!(allowed.contains(&took_ns), "{took_ns} ns");
    sim.join_all();
}

/// Hardware that goes on at the moment at which it would be reset loses nothing that came after.
#[test]
fn what_is_submitted_after_a_hang_is_run() {
    Sim::check(0..300, |sim| {
        let (world, counters) = (World::new(), Arc::new(Counters::default()));
        let ring = Arc::new(FenceEngine::new());
        let (served, bus, counted) = (Arc::clone(&ring), Arc::clone(&world), counters.clone());
        sim.spawn_daemon("ring", move || served.serve(&*bus, &counted));
        let queues = Arc::new(QueueEngine::new(1));
        queues.process.lock().tlb.install(WRITABLE);
        let (served, bus, counted) = (Arc::clone(&queues), Arc::clone(&world), counters.clone());
        sim.spawn_daemon("queues", move || served.serve(&*bus, &counted));
        let write = || {
            let job = Job::new(WRITABLE, 0, &Operation::Write(&[7]));
            assert_eq!(ring.submit(&job), Ok(true), "the ring has room");
            job.finish(Operation::Write(&[7]), &counters)
        };
        let (first, counted) = (Arc::clone(&queues), counters.clone());
        let transfer = move || first.transfer(0, 0, Operation::Write(&[7]), &counted);
        ring.hang(true);
        let lost = Job::new(WRITABLE, 0, &Operation::Write(&[6]));
        assert_eq!(ring.submit(&lost), Ok(true), "the ring has room");
        sleep("test.hung", JOB_TIMEOUT);
        ring.hang(false);
        assert_eq!(write(), Ok(()), "the ring goes on");
        queues.hang(true);
        let queued = transfer.clone();
        sim.spawn("lost", move || {
            let _may_be_lost = queued();
        });
        sleep("test.hung", PREEMPT_TIMEOUT);
        queues.hang(false);
        assert_eq!(transfer(), Ok(()), "the queues go on");
        sim.join_all();
        ring.stop();
        queues.stop();
    });
}
