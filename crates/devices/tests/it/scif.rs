//! A program that uses a coprocessor: windows, copies, marks, and memory that comes back.

use crate::world::World;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use lockdep::sync::sleep;
use pinless_devices::scif::Scif;
use pinless_devices::{Bug, Bugs, DeviceMemory, DmaDevice, DmaError};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_sim::Sim;
use std::sync::Arc;

/// Within this time memory is back that a start was accepted for.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// Runs a program with an endpoint, its node and its peer.
fn check(seeds: core::ops::Range<u64>, bugs: Bugs, program: fn(&World, &Scif)) -> Option<String> {
    let found = Sim::find(seeds, move |sim| {
        let world = World::new();
        let memory = Arc::clone(&world) as Arc<dyn DeviceMemory>;
        let (endpoint, subscription) = Scif::connect(&memory, "scif", bugs);
        for _ in 0..endpoint.nr_servers() {
            let endpoint = Arc::clone(&endpoint);
            sim.spawn_daemon("node", move || endpoint.serve());
        }
        program(&world, &endpoint);
        endpoint.stop();
        subscription.synchronize();
        assert_eq!(world.nr_pins.load(Relaxed), 0, "R8: pins are left");
    });
    found.map(|run| run.to_string())
}

fn take_back(world: &World, run: PageRun, value: u8) {
    let _bracket = world.blockable(run);
    world.discard(run, value);
}

/// A registered window is sticky: a start does not touch it, and the peer knows it until it goes.
#[test]
fn registered_window_stays_until_it_is_unregistered() {
    let failed = check(0..40, Bugs::NONE, |world, endpoint| {
        let run = PageRun::new(1, 2);
        let offset = endpoint.register_window(run).expect("room");
        endpoint.write(1, 0, &[7]).expect("registered");
        take_back(world, run, 9);
        let mut found = [0];
        endpoint.read(1, 0, &mut found).expect("registered");
        assert_eq!(found, [7], "the old page, which stays pinned");
        assert_eq!(
            (endpoint.stats().pinned, endpoint.peer().nr_mirrors()),
            (2, 1)
        );
        endpoint.unregister_window(offset);
        assert_eq!(
            (endpoint.stats().pinned, endpoint.peer().nr_mirrors()),
            (0, 0)
        );
        endpoint.read(1, 0, &mut found).expect("pinned anew");
        assert_eq!(found, [9], "what is there now");
    });
    assert_eq!(failed, None);
}

/// What is copied is in the memory of the peer at a mark after it; a signal comes after both.
#[test]
fn signal_comes_after_the_copies_before_it() {
    let failed = check(0..40, Bugs::NONE, |_, endpoint| {
        endpoint.write(3, 1, &[5, 6]).expect("a page");
        endpoint.read(3, 1, &mut [0, 0]).expect("a page");
        endpoint.wait(&endpoint.mark());
        endpoint.signal(0, 42);
        let (mut copied, mut signalled) = ([0; 2], [0; 8]);
        endpoint.peer().load(3 * PAGE_SIZE + 1, &mut copied);
        endpoint.peer().load(0, &mut signalled);
        assert_eq!((copied, u64::from_le_bytes(signalled)), ([5, 6], 42));
    });
    assert_eq!(failed, None);
}

/// What a start was accepted for comes back in bounded time, also while the peer answers nobody.
#[test]
fn memory_comes_back_while_the_peer_is_silent() {
    fn program(world: &World, endpoint: &Scif) {
        endpoint.peer().mute();
        endpoint.read(0, 0, &mut [0]).expect("a page");
        assert_eq!(endpoint.stats().cache_hits, 0);
        endpoint.read(0, 0, &mut [0]).expect("a page");
        assert_eq!(endpoint.stats().cache_hits, 1);
        take_back(world, PageRun::new(0, 2), 1);
        sleep("test.pause", BACK_WITHIN);
        assert_eq!(endpoint.stats().doomed, 0, "P7: unmapped, and not freed");
        endpoint.peer().unmute();
    }
    assert_eq!(check(0..40, Bugs::NONE, program), None);
    let report = check(0..40, Bug::WorkerBlocked.into(), program).expect("it waits for the peer");
    assert!(report.contains("P7"), "{report}");
}

/// A peer that does not answer a registration does not hold its caller for ever.
#[test]
fn registration_with_a_silent_peer_ends() {
    let failed = check(0..10, Bugs::NONE, |_, endpoint| {
        endpoint.peer().mute();
        let registered = endpoint.register_window(PageRun::single(2));
        assert_eq!(registered, Err(DmaError::Hung));
    });
    assert_eq!(failed, None);
}
