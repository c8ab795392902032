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

/// Two engines, and what they work with.
struct Stage<'a> {
    sim: &'a Sim,
    ring: Arc<FenceEngine>,
    queues: Arc<QueueEngine>,
    counters: Arc<Counters>,
}

impl<'a> Stage<'a> {
    fn new(sim: &'a Sim) -> Self {
        let (world, counters) = (World::new(), Arc::new(Counters::default()));
        let ring = Arc::new(FenceEngine::new());
        let (served, bus, counted) = (Arc::clone(&ring), Arc::clone(&world), counters.clone());
        sim.spawn_daemon("ring", move || served.serve(&*bus, &counted));
        let queues = Arc::new(QueueEngine::new(1));
        queues.process.lock().tlb.install(WRITABLE);
        let (served, counted) = (Arc::clone(&queues), counters.clone());
        sim.spawn_daemon("queues", move || served.serve(&*world, &counted));
        Self {
            sim,
            ring,
            queues,
            counters,
        }
    }

    /// Writes a byte through the ring.
    fn by_ring(&self) -> impl Fn() -> Result<(), DmaError> + Clone + Send + 'static {
        let (ring, counters) = (Arc::clone(&self.ring), Arc::clone(&self.counters));
        move || {
            let job = Job::new(WRITABLE, 0, &Operation::Write(&[7]));
            assert_eq!(ring.submit(&job), Ok(true), "the ring has room");
            job.finish(Operation::Write(&[7]), &counters)
        }
    }

    /// Writes a byte through the queues.
    fn by_queues(&self) -> impl Fn() -> Result<(), DmaError> + Clone + Send + 'static {
        let (queues, counters) = (Arc::clone(&self.queues), Arc::clone(&self.counters));
        move || queues.transfer(0, 0, Operation::Write(&[7]), &counters)
    }

    /// Has several use hardware that hangs, one after the other, and looks how long the first
    /// waits.
    fn check_hang(
        &self,
        timeout: Duration,
        write: impl Fn() -> Result<(), DmaError> + Clone + Send + 'static,
    ) {
        let clock = self.sim.clock();
        let began_ns = clock.now_ns();
        for nr in 1..=5 {
            let write = write.clone();
            self.sim.spawn("later", move || {
                sleep("test.later", timeout / 10 * nr);
                assert_eq!(write(), Err(DmaError::Hung), "it waits for the same reset");
            });
        }
        assert_eq!(write(), Err(DmaError::Hung), "it was lost");
        let took_ns = u128::from(clock.now_ns() - began_ns);
        let allowed = timeout.as_nanos()..timeout.as_nanos() * 11 / 10;
        assert!(allowed.contains(&took_ns), "{took_ns} ns");
        self.sim.join_all();
    }

    fn stop(&self) {
        self.ring.stop();
        self.queues.stop();
    }
}

/// A reset loses what was queued when the hardware hung; whoever learns that from the fence and
/// submits again finds a ring that goes on.
#[test]
fn what_is_submitted_after_a_reset_is_run() {
    Sim::check(0..200, |sim| {
        let stage = Stage::new(sim);
        let write = stage.by_ring();
        stage.ring.hang(true);
        assert_eq!(write(), Err(DmaError::Hung), "what hung was lost");
        assert_eq!(write(), Ok(()), "what came after the reset was lost, too");
        stage.stop();
    });
}

/// However often the bell rings, hardware that hangs is reset after its time and not before.
#[test]
fn a_hang_lasts_its_time_however_often_the_bell_rings() {
    Sim::check(0..100, |sim| {
        let stage = Stage::new(sim);
        stage.ring.hang(true);
        stage.check_hang(JOB_TIMEOUT, stage.by_ring());
        stage.queues.hang(true);
        stage.check_hang(PREEMPT_TIMEOUT, stage.by_queues());
        let nr_resets = stage.counters.snapshot().timeouts;
        assert_eq!(nr_resets, 2, "each was reset once");
        stage.stop();
    });
}

/// Hardware that goes on at the moment at which it would be reset loses nothing that came after.
#[test]
fn what_is_submitted_after_a_hang_is_run() {
    Sim::check(0..300, |sim| {
        let stage = Stage::new(sim);
        stage.ring.hang(true);
        let lost = Job::new(WRITABLE, 0, &Operation::Write(&[6]));
        assert_eq!(stage.ring.submit(&lost), Ok(true), "the ring has room");
        sleep("test.hung", JOB_TIMEOUT);
        stage.ring.hang(false);
        assert_eq!(stage.by_ring()(), Ok(()), "the ring goes on");
        stage.queues.hang(true);
        let queued = stage.by_queues();
        sim.spawn("lost", move || {
            let _may_be_lost = queued();
        });
        sleep("test.hung", PREEMPT_TIMEOUT);
        stage.queues.hang(false);
        assert_eq!(stage.by_queues()(), Ok(()), "the queues go on");
        sim.join_all();
        stage.stop();
    });
}
