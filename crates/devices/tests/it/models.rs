//! Every model under the simulator's scheduler, and every fault that can be switched on in one.
//!
//! Pages are reclaimed while devices count in them, discarded while devices use them, asked for
//! while devices are idle, and while they hang. The right models pass all of it, under chance and
//! under priorities; each fault fails in one of them.

use crate::world::{EVER, NR_PAGES, Stage};
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use core::time::Duration;
use lockdep::sync::sleep;
use pinless_devices::{Bug, Bugs, DmaError, ModelInfo, model, models};
use pinless_mm::addr::PageRun;
use pinless_sim::{Explore, Rng, Sim, Strategy};
use std::sync::Arc;

const STRATEGIES: [Strategy; 2] = [Strategy::Drawn, Strategy::Pct { depth: 4, steps: 0 }];

/// Schedules that a right model passes in each workload, with each strategy; `PINLESS_SCHEDULES`
/// asks for more.
fn nr_to_pass() -> u64 {
    let asked = std::env::var("PINLESS_SCHEDULES").ok();
    asked.and_then(|nr| nr.parse().ok()).unwrap_or(60)
}

/// Does an access again as long as it only has to wait, or to register anew.
fn until_done(stage: &Stage, page: u32, mut access: impl FnMut() -> Result<(), DmaError>) {
    for _ in 0..10_000 {
        match access() {
            Ok(()) => return,
            Err(DmaError::Starved) => {}
            Err(DmaError::Unregistered { .. }) => {
                assert!(stage.info.must_register, "R2: a window without its page");
                let registered = stage.device.register(PageRun::single(page));
                registered.expect("room for what was unmapped");
            }
            Err(error) => panic!("R4: {error}"),
        }
    }
    panic!("P5: an access does not end");
}

/// Two users count, each in a byte of its own, while pages are reclaimed in brackets of both
/// modes, some of them nested or crossed.
fn count_under_reclaim(stage: &Stage) {
    for own in 0..2 {
        stage.spawn("user", move |stage| {
            let mut expected = [0u8; NR_PAGES as usize];
            let mut rng = stage.sim.rng(10 + own as u64);
            for _ in 0..4 {
                pause(stage, &mut rng);
                let page = rng.below(3) as u32 * (NR_PAGES - 1) / 2;
                let count = &mut expected[page as usize];
                let mut found = [0];
                until_done(stage, page, || stage.device.read(page, own, &mut found));
                assert_eq!(found[0], *count, "R7: a write was lost");
                *count += 1;
                let next = [*count];
                until_done(stage, page, || stage.device.write(page, own, &next));
            }
        });
    }
    for nr in 0..2 {
        stage.spawn("reclaimer", move |stage| reclaim(stage, nr));
    }
}

fn reclaim(stage: &Stage, nr: u64) {
    let mut rng = stage.sim.rng(20 + nr);
    for _ in 0..3 {
        pause(stage, &mut rng);
        let first = rng.below(u64::from(NR_PAGES)) as u32;
        let run = PageRun::new(first, 1 + rng.below(u64::from(NR_PAGES - first)) as u32);
        if rng.below(2) == 0 {
            if let Some(_bracket) = stage.world.nonblock(run) {
                stage.world.reclaim(run);
            }
            continue;
        }
        let outer = stage.world.blockable(run);
        let inner = (rng.below(2) == 0).then(|| stage.world.blockable(PageRun::new(0, NR_PAGES)));
        stage.world.reclaim(run);
        drop(outer);
        drop(inner);
    }
}

/// Two users read and write while pages are discarded for others: once the bracket is over, nobody
/// reads what was there before, and nobody writes there.
fn use_under_discard(stage: &Stage) {
    let floors: Arc<[AtomicU8; NR_PAGES as usize]> = Arc::default();
    for own in 1..3 {
        let floors = Arc::clone(&floors);
        stage.spawn("user", move |stage| {
            let mut rng = stage.sim.rng(30 + own as u64);
            for nr in 0..4 {
                pause(stage, &mut rng);
                let page = rng.below(2) as u32 * (NR_PAGES - 1);
                let floor = floors[page as usize].load(Relaxed);
                let mut found = [0];
                until_done(stage, page, || stage.device.read(page, 0, &mut found));
                assert!(
                    found[0] >= floor,
                    "R6: what was read is older than the bracket"
                );
                let (before, _) = stage.world.peek(page);
                let next = [100 + nr];
                until_done(stage, page, || stage.device.write(page, own, &next));
                let (after, bytes) = stage.world.peek(page);
                assert!(
                    before != after || bytes[own] == next[0],
                    "R6: what was written went where the page no longer is"
                );
            }
        });
    }
    stage.spawn("discarder", move |stage| {
        let mut rng = stage.sim.rng(40);
        for value in 1..4 {
            pause(stage, &mut rng);
            let first = rng.below(2) as u32;
            let run = PageRun::new(first, NR_PAGES - first);
            let bracket = stage.world.blockable(run);
            stage.world.discard(run, value);
            drop(bracket);
            for page in run.pages() {
                floors[page as usize].store(value, Relaxed);
            }
        }
    });
}

/// In half of the runs everybody takes his time, as long as a worker's delay.
fn pause(stage: &Stage, rng: &mut Rng) {
    if stage.sim.seed().is_multiple_of(2) {
        sleep("test.pause", Duration::from_micros(rng.below(1500)));
    }
}

/// Brackets come as often as a worker does, so that they meet it in the middle of its work.
fn reclaim_in_step(stage: &Stage) {
    let all = PageRun::new(0, NR_PAGES);
    for first in 0..3 {
        stage.spawn("user", move |stage| {
            if !stage.info.must_register {
                sleep("test.pause", Duration::from_millis(1));
                let run = PageRun::single(first as u32);
                stage.device.register(run).expect("there is room");
            }
            for page in (0..NR_PAGES).cycle().skip(first).take(10) {
                until_done(stage, page, || stage.device.read(page, 0, &mut [0]));
            }
        });
    }
    for nr in 0..2 {
        stage.spawn("reclaimer", move |stage| {
            let mut rng = stage.sim.rng(50 + nr);
            for round in 0..5 {
                sleep("test.pause", Duration::from_micros(1000 + rng.below(8)));
                if round == 2 && stage.world.nonblock(all).is_none() {
                    continue;
                }
                let _bracket = stage.world.blockable(all);
                stage.world.reclaim(all);
            }
        });
    }
}

/// A few registrations, and the same transfer again and again, which a cache makes cheap.
fn use_again(stage: &Stage) {
    for _ in 0..3 {
        until_done(stage, 0, || stage.device.read(0, 0, &mut [0]));
    }
    if stage.info.pattern.pins() && !stage.info.must_register {
        let stats = stage.device.stats();
        assert!(stats.cache_hits > 0, "P7: nothing is found again");
    }
    if !stage.info.must_register {
        for page in 0..4 {
            let registered = stage.device.register(PageRun::single(page));
            registered.expect("P7: there is room for four");
        }
        stage.device.unregister(PageRun::new(0, NR_PAGES));
    }
}

/// The memory goes away: afterwards nobody uses it.
fn use_until_exit(stage: &Stage) {
    stage.spawn("user", |stage| {
        for page in (0..NR_PAGES).cycle().take(8) {
            match stage.device.read(page, 0, &mut [0]) {
                Ok(()) | Err(DmaError::Starved) => {}
                Err(DmaError::Stopped | DmaError::Unregistered { .. }) => return,
                Err(error) => panic!("R4: {error}"),
            }
        }
    });
    stage.spawn("exit", |stage| {
        stage
            .world
            .notifiers
            .release(EVER)
            .expect("P10: it is released");
        stage.world.discard(PageRun::new(0, NR_PAGES), 1);
        let late = stage.device.read(0, 0, &mut [0]);
        assert_eq!(late, Err(DmaError::Stopped), "P10: it goes on");
    });
}

/// Nothing is in use: nobody refuses.
fn ask_the_idle(stage: &Stage) {
    let all = PageRun::new(0, NR_PAGES);
    assert!(stage.world.nonblock(all).is_some(), "P1: it is idle");
}

/// The device hangs with transfers in its hands: a start waits for the reset, or fails with a name,
/// and never goes on as if they were over.
fn reclaim_while_it_hangs(stage: &Stage) {
    let all = PageRun::new(0, NR_PAGES);
    stage.spawn("user", |stage| {
        for page in [0, NR_PAGES - 1] {
            let mut found = [0];
            match stage.device.read(page, 0, &mut found) {
                Ok(()) | Err(DmaError::Hung | DmaError::Unregistered { .. }) => {}
                Err(error) => panic!("R4: {error}"),
            }
        }
    });
    stage.spawn("reclaimer", move |stage| {
        stage.device.hang(true);
        sleep("test.pause", Duration::from_millis(5));
        if let Ok(_bracket) = stage.world.try_blockable(all, Duration::from_secs(60)) {
            stage.world.reclaim(all);
        }
        sleep("test.pause", Duration::from_secs(5));
        stage.device.hang(false);
    });
}

/// The device is stopped in the middle of its work: whoever takes pages back beside that is not
/// held up, and nobody uses them afterwards.
fn stop_in_use(stage: &Stage) {
    stage.spawn("user", |stage| {
        for page in (0..NR_PAGES).cycle().take(8) {
            match stage.device.read(page, 0, &mut [0]) {
                Ok(()) | Err(DmaError::Starved) => {}
                // What was queued is lost, as by a reset.
                Err(DmaError::Stopped | DmaError::Hung | DmaError::Unregistered { .. }) => return,
                Err(error) => panic!("R4: {error}"),
            }
        }
    });
    stage.spawn("reclaimer", |stage| {
        for _ in 0..3 {
            let all = PageRun::new(0, NR_PAGES);
            let _bracket = stage.world.blockable(all);
            stage.world.reclaim(all);
        }
    });
    stage.spawn("stopper", |stage| stage.device.stop());
}

type Story = fn(&Stage);

const WORKLOADS: [(&str, Story); 8] = [
    ("idle", ask_the_idle),
    ("reclaim", count_under_reclaim),
    ("discard", use_under_discard),
    ("again", use_again),
    ("exit", use_until_exit),
    ("in step", reclaim_in_step),
    ("hang", reclaim_while_it_hangs),
    ("stop", stop_in_use),
];

fn find(info: &'static ModelInfo, bugs: Bugs, nr: u64, story: Story) -> Option<String> {
    STRATEGIES.into_iter().find_map(|strategy| {
        let explored = Explore::new(0..nr)
            .strategy(strategy)
            .steps_max(100_000)
            .find(move |sim: &Sim| Stage::play(sim, info, bugs, story));
        explored.failure.map(|run| run.to_string())
    })
}

#[test]
fn right_models_pass_under_all_schedules() {
    let mut failures = Vec::new();
    for info in models() {
        for (workload, story) in WORKLOADS {
            let found = find(info, Bugs::NONE, nr_to_pass(), story);
            failures.extend(found.map(|report| format!("{info:?}, {workload}: {report}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Schedules in which a fault must be found, in the first round and in the second.
const NR_TO_FIND: [u64; 2] = [40, 600];

/// Faults that these workloads do not show: they need a story of their own.
const OWN_STORY: &[Bug] = &[Bug::AdmittedTooLate, Bug::MmWideWait, Bug::WorkerBlocked];

/// A region that is registered while brackets come and go can be used after the last of them.
#[test]
fn registration_during_a_bracket_is_not_forgotten() {
    fn story(stage: &Stage) {
        let run = PageRun::single(3);
        stage.spawn("user", move |stage| {
            for _ in 0..4 {
                stage.device.register(run).expect("there is room");
            }
        });
        stage.spawn("reclaimer", move |stage| {
            for _ in 0..4 {
                drop(stage.world.blockable(run));
            }
        });
        stage.sim.join_all();
        let read = stage.device.read(3, 0, &mut [0]);
        assert_eq!(read, Ok(()), "P6: it waits for an end that has been");
    }
    let info = model("umem_odp-now").expect("a model");
    assert_eq!(find(info, Bugs::NONE, nr_to_pass(), story), None);
    let report = find(info, Bug::AdmittedTooLate.into(), 600, story).expect("it is forgotten");
    assert!(report.contains("P6"), "{report}");
}

/// A bracket over one page is open for long: transfers to others go on.
#[test]
fn only_faults_over_its_range_wait_for_a_bracket() {
    fn story(stage: &Stage) {
        let bracket = stage.world.blockable(PageRun::single(0));
        let read = stage.device.read(3, 0, &mut [0]);
        assert_eq!(read, Ok(()), "P8: an unrelated bracket stands in the way");
        drop(bracket);
    }
    for name in [
        "kvm-2018",
        "kvm-now",
        "test_hmm-now",
        "umem_odp-now",
        "hmm-2018",
    ] {
        let info = model(name).expect("a model");
        assert_eq!(find(info, Bugs::NONE, 20, story), None, "{info:?}");
        if info.switches.contains(&Bug::MmWideWait) {
            let report = find(info, Bug::MmWideWait.into(), 1, story).expect("it waits");
            assert!(report.contains("P8"), "{report}");
        }
    }
}

#[test]
fn each_fault_is_found_in_each_model_that_has_it() {
    let mut missed = Vec::new();
    for info in models() {
        for &bug in info.switches.iter().filter(|bug| !OWN_STORY.contains(bug)) {
            // A few schedules of each workload first: most faults are found at once.
            let tries = NR_TO_FIND
                .into_iter()
                .flat_map(|nr| WORKLOADS.map(|(_, story)| (nr, story)));
            let found = { tries }.find_map(|(nr, story)| find(info, bug.into(), nr, story));
            match found {
                Some(report) => {
                    println!("{info:?} {bug:?}: {}", report.lines().next().unwrap_or(""))
                }
                None => missed.push(format!("{info:?} {bug:?}")),
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
