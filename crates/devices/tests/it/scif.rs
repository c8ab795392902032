//! A program that uses a coprocessor: windows, copies, marks, and memory that comes back.

use crate::world::World;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use lockdep::sync::sleep;
use pinless_devices::scif::{
    Connecting, EndpointError, LINE, Node, Offset, Port, Rma, Scif, Tail, Unregistered,
};
use pinless_devices::{Bug, Bugs, DeviceMemory, DmaDevice, DmaError};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::bus::Bus;
use pinless_sim::Sim;
use std::sync::Arc;

/// Within this time memory is back that a start was accepted for.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// A program with an endpoint; the run, for those who act beside it.
type Program = fn(&Sim, &Arc<World>, &Arc<Scif>);

/// Runs a program with an endpoint, its node and its peer.
fn check(seeds: core::ops::Range<u64>, bugs: Bugs, program: Program) -> Option<String> {
    let found = Sim::find(seeds, move |sim| {
        let world = World::new();
        let memory = Arc::clone(&world) as Arc<dyn DeviceMemory>;
        let (endpoint, subscription) = Scif::connect(&memory, "scif", bugs);
        for _ in 0..endpoint.nr_servers() {
            let endpoint = Arc::clone(&endpoint);
            sim.spawn_daemon("node", move || endpoint.serve());
        }
        program(sim, &world, &endpoint);
        sim.join_all();
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
    let failed = check(0..40, Bugs::NONE, |_, world, endpoint| {
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
        let gone = endpoint.unregister_window(offset);
        assert_eq!(gone, Unregistered::Unpinned);
        assert_eq!(
            (endpoint.stats().pinned, endpoint.peer().nr_mirrors()),
            (0, 0)
        );
        endpoint.read(1, 0, &mut found).expect("pinned anew");
        assert_eq!(found, [9], "what is there now");
    });
    assert_eq!(failed, None);
}

/// What is copied is in the memory of the peer at a mark after it.
#[test]
fn a_mark_comes_after_the_copies_before_it() {
    let failed = check(0..40, Bugs::NONE, |_, _, endpoint| {
        endpoint.write(3, 1, &[5, 6]).expect("a page");
        endpoint.read(3, 1, &mut [0, 0]).expect("a page");
        endpoint.wait(&endpoint.mark()).expect("nothing hangs");
        let mut copied = [0; 2];
        endpoint.peer().load(3 * PAGE_SIZE + 1, &mut copied);
        assert_eq!(copied, [5, 6]);
    });
    assert_eq!(failed, None);
}

/// A window of two pages with a byte in the first, and one of the peer's.
fn windows(endpoint: &Scif, value: u8) -> (Offset, Offset) {
    let here = endpoint.register_window(PageRun::new(1, 2)).expect("room");
    endpoint.write(1, 0, &[value]).expect("registered");
    let there = endpoint.peer().offer(64, PAGE_SIZE).expect("room");
    (here, there)
}

fn rma(here: (Offset, usize), there: Offset) -> Rma {
    Rma {
        here,
        there: (there, 8),
        nr_bytes: 2,
        tail: Tail::AnyTime,
    }
}

/// The card sees by the last byte that all have come, if that is what was asked for.
#[test]
fn an_ordered_copy_ends_with_its_last_byte() {
    const NR: usize = 2 * LINE + 2;
    fn program(sim: &Sim, endpoint: &Arc<Scif>, tail: Tail) {
        let card = Arc::clone(endpoint);
        sim.spawn("card", move || {
            let mut copied = [0; NR];
            while copied[NR - 1] != 5 {
                sleep("test.pause", Duration::from_nanos(100));
                card.peer().load(64 + 8, &mut copied);
            }
            let is_whole = copied.iter().all(|&byte| byte == 5);
            assert!(is_whole, "the last byte came first");
        });
        let (here, there) = windows(endpoint, 5);
        endpoint.write(1, 9, &[5; NR]).expect("registered");
        let copied = endpoint.write_to(&Rma {
            here: (here, 9),
            there: (there, 8),
            nr_bytes: NR,
            tail,
        });
        copied.expect("both windows are there");
    }
    let ordered = check(0..60, Bugs::NONE, |sim, _, endpoint| {
        program(sim, endpoint, Tail::Last);
    });
    assert_eq!(ordered, None);
    let unordered = check(0..60, Bugs::NONE, |sim, _, endpoint| {
        program(sim, endpoint, Tail::AnyTime);
    });
    let report = unordered.expect("nobody asked for an order");
    assert!(report.contains("the last byte came first"), "{report}");
}

/// What coprocessors are for: a program sends work, the card does it, and the result comes back.
/// The card's own hardware reads the work where it is, and the answer is a byte that it waits for.
#[test]
fn a_program_has_its_coprocessor_work() {
    const ANSWER: usize = 2 * LINE;
    let failed = check(0..60, Bugs::NONE, |sim, world, endpoint| {
        let (here, there) = windows(endpoint, 21);
        let work = endpoint.pages_for_peer(here, 0, 1).expect("a window");
        let (card, memory) = (Arc::clone(endpoint), Arc::clone(world));
        sim.spawn("card", move || {
            let peer = card.peer();
            while let Ok(place) = peer.endpoint().recv() {
                let (at, mut value) = (usize::from(place[0]), [0]);
                let read = memory.read(work.addresses()[0], 0, &mut value);
                read.expect("the page is pinned");
                peer.store(at, &[2 * value[0]; ANSWER]);
                peer.endpoint().send(b"done").expect("the program waits");
            }
        });
        endpoint.endpoint().send(&[64 + 8]).expect("connected");
        let answer = endpoint.endpoint().recv().expect("an answer");
        assert_eq!(*answer, *b"done");
        let copied = endpoint.read_from(&Rma {
            nr_bytes: ANSWER,
            tail: Tail::Last,
            ..rma((here, PAGE_SIZE), there)
        });
        copied.expect("both windows are there");
        let mut found = [0];
        while found != [42] {
            sleep("test.pause", Duration::from_micros(1));
            let read = endpoint.read(2, ANSWER - 1, &mut found);
            read.expect("registered");
        }
        endpoint.read(2, 0, &mut found).expect("registered");
        assert_eq!(found, [42], "all before the last byte");
        endpoint.endpoint().close();
        sim.join_all();
        sleep("test.pause", BACK_WITHIN);
        let gone = endpoint.unregister_window(here);
        assert_eq!(gone, Unregistered::Unpinned, "the card has let go");
        assert_eq!(world.nr_pins.load(Relaxed), 0);
    });
    assert_eq!(failed, None);
}

/// Nobody waits for a copy; whoever sees the signal sees what was copied before it, and the window
/// may go meanwhile.
#[test]
fn a_signal_comes_after_the_copies_before_it() {
    let failed = check(0..60, Bugs::NONE, |sim, _, endpoint| {
        let card = Arc::clone(endpoint);
        sim.spawn("card", move || {
            let (mut signalled, mut copied) = ([0; 8], [0]);
            while u64::from_le_bytes(signalled) != 7 {
                sleep("test.pause", Duration::from_micros(1));
                card.peer().load(0, &mut signalled);
            }
            card.peer().load(64 + 8, &mut copied);
            assert_eq!(copied, [5], "the signal overtook the copy");
        });
        let (here, there) = windows(endpoint, 5);
        let copied = endpoint.write_to(&rma((here, 0), there));
        copied.expect("both windows are there");
        endpoint.signal(0, 7).expect("it runs");
        let gone = endpoint.unregister_window(here);
        assert_eq!(gone, Unregistered::Unpinned);
    });
    assert_eq!(failed, None);
}

/// What the peer has mapped of a window stays, and stays pinned, until the peer lets go.
#[test]
fn a_window_lingers_while_the_peer_has_it_mapped() {
    let failed = check(0..40, Bugs::NONE, |_, world, endpoint| {
        let (here, _) = windows(endpoint, 5);
        let mapped = endpoint.map_for_peer(here).expect("a window");
        assert_eq!(endpoint.unregister_window(here), Unregistered::Lingers);
        assert_eq!(endpoint.unregister_window(here), Unregistered::Unknown);
        take_back(world, PageRun::new(1, 2), 9);
        let mut found = [0];
        mapped.load(0, &mut found).expect("it is pinned");
        assert_eq!(found, [5], "the old page, which stays pinned");
        mapped.store(PAGE_SIZE, &[1]).expect("it is pinned");
        assert_eq!(world.nr_pins.load(Relaxed), 2);
        drop(mapped);
        sleep("test.pause", BACK_WITHIN);
        assert_eq!(world.nr_pins.load(Relaxed), 0);
    });
    assert_eq!(failed, None);
}

/// An endpoint that is stopped while the peer has pages of it copies nothing any more; what the
/// peer has stays, and comes back when the peer lets go.
#[test]
fn an_endpoint_with_pages_at_the_peer_is_a_zombie_until_they_are_back() {
    let failed = check(0..40, Bugs::NONE, |_, world, endpoint| {
        let (here, there) = windows(endpoint, 5);
        let mapped = endpoint.map_for_peer(here).expect("a window");
        let second = endpoint.pages_for_peer(here, 1, 1).expect("a window");
        let beyond = endpoint.pages_for_peer(here, 1, 2).err();
        assert_eq!(beyond, Some(DmaError::Unregistered { page: 3 }));
        assert!(!endpoint.is_zombie());
        endpoint.stop();
        let stopped = Some(DmaError::Stopped);
        assert_eq!(endpoint.pages_for_peer(here, 0, 1).err(), stopped);
        assert_eq!(endpoint.write_to(&rma((here, 0), there)).err(), stopped);
        take_back(world, PageRun::new(1, 2), 9);
        let mut found = [0];
        mapped.load(0, &mut found).expect("it is pinned");
        assert_eq!(found, [5], "the old page, which stays pinned");
        mapped.store(PAGE_SIZE, &[1]).expect("it is pinned");
        drop(second);
        sleep("test.pause", BACK_WITHIN);
        let nr_pins = || world.nr_pins.load(Relaxed);
        assert_eq!((endpoint.is_zombie(), nr_pins()), (true, 2), "still mapped");
        drop(mapped);
        sleep("test.pause", BACK_WITHIN);
        assert_eq!((endpoint.is_zombie(), nr_pins()), (false, 0), "all is back");
    });
    assert_eq!(failed, None);
}

/// A copy that is lost to a reset is told at the next mark, and its window comes back.
#[test]
fn a_copy_that_is_lost_is_told() {
    let failed = check(0..20, Bugs::NONE, |_, world, endpoint| {
        let (here, there) = windows(endpoint, 5);
        endpoint.hang(true);
        let queued = endpoint.write_to(&rma((here, 0), there));
        assert_eq!(queued, Ok(()), "nobody waits");
        assert_eq!(endpoint.wait(&endpoint.mark()), Err(DmaError::Hung));
        assert_eq!(endpoint.unregister_window(here), Unregistered::Unpinned);
        assert_eq!(world.nr_pins.load(Relaxed), 0);
    });
    assert_eq!(failed, None);
}

/// A reset comes between an ordered copy's body, which is lost, and its tail, which is queued after
/// it: the tail does not land either.
#[test]
fn a_tail_whose_body_is_lost_does_not_land() {
    const NR: usize = 2 * LINE;
    let failed = check(0..100, Bugs::NONE, |_, _, endpoint| {
        let (here, there) = windows(endpoint, 5);
        endpoint.write(1, 0, &[5; NR]).expect("registered");
        endpoint.hang(true);
        let queued = endpoint.write_to(&rma((here, 0), there));
        assert_eq!(queued, Ok(()), "nobody waits");
        let queued = endpoint.write_to(&Rma {
            here: (here, 0),
            there: (there, PAGE_SIZE / 2),
            nr_bytes: NR,
            tail: Tail::Last,
        });
        assert_eq!(queued, Ok(()), "nobody waits");
        let met = endpoint.wait(&endpoint.mark());
        let mut copied = [0; NR];
        endpoint.peer().load(64 + PAGE_SIZE / 2, &mut copied);
        match met {
            Ok(()) => assert_eq!(copied, [5; NR], "all of it landed"),
            Err(error) => {
                assert_eq!(error, DmaError::Hung);
                assert_eq!(copied[NR - 1], 0, "the tail landed");
            }
        }
    });
    assert_eq!(failed, None);
}

/// The peer goes away: nobody waits for it, and windows are given up without it.
#[test]
fn a_peer_that_is_gone_holds_nobody_up() {
    let failed = check(0..40, Bugs::NONE, |sim, _, endpoint| {
        let (here, there) = windows(endpoint, 5);
        let peer = Arc::clone(endpoint);
        sim.spawn("card", move || {
            peer.peer().endpoint().send(b"bye").expect("connected");
            peer.peer().stop();
        });
        let last = endpoint.endpoint().recv().expect("sent before");
        assert_eq!(*last, *b"bye");
        let over = Err(EndpointError::Disconnected);
        assert_eq!(endpoint.endpoint().recv().map(|_| ()), over);
        assert_eq!(endpoint.endpoint().send(b"?"), over);
        let copied = endpoint.write_to(&rma((here, 0), there));
        assert_eq!(copied, Err(DmaError::Stopped));
        sim.join_all();
        let registered = endpoint.register_window(PageRun::single(4));
        assert_eq!(registered, Err(DmaError::Stopped));
        assert_eq!(endpoint.unregister_window(here), Unregistered::Unpinned);
    });
    assert_eq!(failed, None);
}

/// Ports and connections, in one order.
#[test]
fn ports_are_taken_and_connections_refused() {
    let (host, card) = (Node::new(), Node::new());
    let (port, other) = (Port(7), Port(8));
    let bind = |nr| host.bind(Port(nr)).expect("a port that is free");
    let refused = |asked: Result<Connecting, EndpointError>| {
        assert_eq!(asked.err(), Some(EndpointError::Refused(port)));
    };
    let bound = card.bind(port).expect("a port that is free");
    assert_eq!(
        card.bind(port).err(),
        Some(EndpointError::PortTaken(port)),
        "twice"
    );
    refused(bind(1).ask(&card, port)); // bound, and nobody listens
    let listener = bound.listen(1);
    let asked = bind(1).ask(&card, port).expect("room for one");
    refused(bind(2).ask(&card, port)); // too many wait
    let theirs = listener.accept();
    let ours = asked.wait().expect("accepted");
    ours.send(b"first").expect("connected");
    let waits = bind(3).ask(&card, port).expect("room again");
    drop(listener);
    assert_eq!(waits.wait().err(), Some(EndpointError::Refused(port)));
    refused(bind(3).ask(&card, port)); // nobody listens any more
    assert!(card.bind(port).is_ok() && card.bind(other).is_ok(), "free");
    drop(ours);
    assert_eq!(theirs.recv().as_deref(), Ok(&b"first"[..]));
    assert_eq!(theirs.recv(), Err(EndpointError::Disconnected));
    assert!(host.bind(Port(1)).is_ok(), "the port of who asked is free");
}

/// One accepts, several connect, and each talks to whom it was connected to.
#[test]
fn connections_are_not_mixed_up() {
    Sim::check(0..60, |sim| {
        let (host, card) = (Node::new(), Node::new());
        let listener = card.bind(Port(1)).expect("free").listen(2);
        for nr in 0..2 {
            let (host, card) = (Arc::clone(&host), Arc::clone(&card));
            sim.spawn("program", move || {
                let bound = host.bind(Port(nr)).expect("free");
                let endpoint = bound.connect(&card, Port(1)).expect("somebody listens");
                for round in 0..2 {
                    endpoint.send(&[nr as u8, round]).expect("connected");
                    let answer = endpoint.recv();
                    assert_eq!(answer.as_deref(), Ok(&[nr as u8, round][..]));
                }
            });
        }
        for _ in 0..2 {
            let endpoint = listener.accept();
            sim.spawn("card", move || {
                while let Ok(message) = endpoint.recv() {
                    endpoint.send(&message).expect("it waits for the answer");
                }
            });
        }
        sim.join_all();
    });
}

/// What a start was accepted for comes back in bounded time, also while the peer answers nobody.
#[test]
fn memory_comes_back_while_the_peer_is_silent() {
    fn program(_: &Sim, world: &Arc<World>, endpoint: &Arc<Scif>) {
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
    let failed = check(0..10, Bugs::NONE, |_, _, endpoint| {
        endpoint.peer().mute();
        let registered = endpoint.register_window(PageRun::single(2));
        assert_eq!(registered, Err(DmaError::Hung));
    });
    assert_eq!(failed, None);
}
