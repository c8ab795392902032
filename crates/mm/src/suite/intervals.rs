//! Devices that mirror a mapping through interval subscriptions, one case for each thing that a
//! mirror must get right. Data is checked, and so are lookups and brackets: one too many is a
//! failure as well.
//!
//! Linux counterpart: tools/testing/selftests/mm/hmm-tests.c

use super::mirror::{Counts, Mirrored};
use super::{Machine, Mapping, Rng, World, read_page, write_page};
use crate::addr::PageRun;
use crate::bus::{Bus, BusAddr, Caught};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::mm_struct::{Advice, Mm};
use crate::mmu_notifier::{
    Ability, Context, EndContext, Event, IntervalError, Invalidation, Mode, Notifier, Owner, Range,
    Ranges, running_callback,
};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::ShortLock;
use std::sync::Arc;

/// Longer than any test.
const EVER: Duration = Duration::from_secs(60);

const NR_PAGES: u32 = 16;

fn word_of(mirrored: &Mirrored, page: u32) -> u64 {
    let mut word = [0; 8];
    mirrored.read(page, &mut word).expect("a frame");
    u64::from_le_bytes(word)
}

fn set_word(mirrored: &Mirrored, page: u32, word: u64) {
    mirrored.write(page, &word.to_le_bytes()).expect("a frame");
}

fn word_in(mapping: &dyn Mapping, page: u32) -> u64 {
    let (word, _) = read_page(mapping, page)
        .split_first_chunk()
        .map(|(word, rest)| (*word, rest.len()))
        .expect("a page is longer than a word");
    u64::from_le_bytes(word)
}

fn set_word_in(mapping: &dyn Mapping, page: u32, word: u64) {
    write_page(mapping, page, &word.to_le_bytes());
}

fn page_out(mirrored: &Mirrored, run: PageRun) {
    let vma = &mirrored.vma;
    vma.advise(run, Advice::PageOut).expect("nobody hangs");
}

fn bracket(mirrored: &Mirrored, run: PageRun, event: Event, owner: Option<Owner>) -> Invalidation {
    let vma = &mirrored.vma;
    let (start, end) = (vma.address(run.first), vma.address(run.end()));
    let notifiers = vma.mm().notifiers();
    let opened = notifiers.start_blockable_for(start, end, event, owner, EVER);
    opened.expect("nobody hangs")
}

#[track_caller]
fn check_counts(mirrored: &Mirrored, lookups: u64, retries: u64, starts: u64) {
    let expected = Counts {
        lookups,
        retries,
        starts,
    };
    assert_eq!(mirrored.counts(), expected);
}

/// No callback failed, and none was misused.
#[track_caller]
fn check_clean(mm: &Mm) {
    let stats = mm.notifiers().stats();
    assert_eq!((stats.panics, stats.misuses, stats.stuck), (0, 0, 0));
}

/// Peer: open_close. Who comes and goes costs no page and no bracket.
pub(super) fn a_mirror_that_does_nothing_leaves_nothing(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    for _ in 0..3 {
        let mirrored = Mirrored::attach(mapping.vma(), mapping.vma().all(), "gpu", None);
        assert!(!mm.notifiers().is_empty());
        check_counts(&mirrored, 0, 0, 0);
        let mirror = mirrored.detach();
        assert!(Arc::into_inner(mirror).is_some(), "nobody keeps it");
    }
    assert!(mm.notifiers().is_empty());
    assert_eq!(
        (mm.nr_frames(), mm.notifiers().stats().starts_total()),
        (0, 0)
    );
}

/// Peers: anon_read, anon_read_multiple, snapshot. One lookup for each page, whatever it is, and
/// none for the second read; what was absent appears without a bracket.
pub(super) fn n31_a_mirror_reads_pages_of_every_kind(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let mirrored = Mirrored::attach(mapping.vma(), mapping.vma().all(), "gpu", None);
    for page in 0..8 {
        set_word_in(&*mapping, page, u64::from(page) + 100);
    }
    let before = mm.notifiers().stats().starts_total();
    page_out(&mirrored, PageRun::new(0, 4));
    let after = mm.notifiers().stats().starts_total();
    assert!(after > before, "the mirror is told of what leaves");
    for _ in 0..2 {
        for page in 0..NR_PAGES {
            let expected = if page < 8 { u64::from(page) + 100 } else { 0 };
            assert_eq!(word_of(&mirrored, page), expected, "page {page}");
        }
    }
    let Counts {
        lookups, retries, ..
    } = mirrored.counts();
    assert_eq!((lookups, retries), (u64::from(NR_PAGES), 0));
    assert_eq!(mm.notifiers().stats().starts_total(), after);
    mirrored.detach();
    check_clean(&mm);
}

/// Peers: anon_write, anon_read_prot, anon_write_prot. A translation for reading writes nothing,
/// and another lookup makes it one for writing; the program sees what is written.
pub(super) fn a_mirror_writes_through_what_allows_it(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let mirrored = Mirrored::attach(mapping.vma(), mapping.vma().all(), "gpu", None);
    for page in 0..NR_PAGES {
        assert_eq!(word_of(&mirrored, page), 0);
    }
    let mut refused = None;
    let read_only = |at| refused = mirrored.vma.write(at, 0, &[1]).err();
    mirrored
        .access(3, Access::Read, || (), read_only)
        .expect("it is translated");
    assert_eq!(refused.map(|stale| stale.caught), Some(Caught::ReadOnly));
    for page in 0..NR_PAGES {
        set_word(&mirrored, page, u64::from(page) + 1);
        assert_eq!(word_in(&*mapping, page), u64::from(page) + 1);
    }
    assert_eq!(mirrored.counts().lookups, 2 * u64::from(NR_PAGES));
    mirrored.detach();
    check_clean(&mm);
}

/// The page leaves between the lookup and the lock: exactly one retry, and the data is right.
pub(super) fn n52_a_lookup_during_an_invalidation_is_retried(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let mirrored = Mirrored::attach(mapping.vma(), mapping.vma().all(), "gpu", None);
    set_word_in(&*mapping, 5, 77);
    let mut evicts = true;
    let meanwhile = || {
        if core::mem::take(&mut evicts) {
            page_out(&mirrored, PageRun::single(5));
        }
    };
    let mut found = [0; 8];
    let read = |at: BusAddr| mirrored.vma.read(at, 0, &mut found).expect("fresh");
    mirrored
        .access(5, Access::Read, meanwhile, read)
        .expect("a frame");
    assert_eq!(u64::from_le_bytes(found), 77);
    check_counts(&mirrored, 2, 1, 1);
    mirrored.detach();
    check_clean(&mm);
}

/// A device that counts the brackets over it, and looks at a page in start and in end.
struct Witness {
    vma: Arc<crate::mm_struct::Vma>,
    at: BusAddr,
    seen: ShortLock<Vec<Sight>>,
}

/// What a callback saw of the page.
#[derive(Clone, Copy, Debug)]
struct Sight {
    when: &'static str,
    state: State,
    /// Whether the translation from before is still good.
    is_there: bool,
    mode: Option<Mode>,
}

impl Witness {
    fn look(&self, when: &'static str) {
        let is_there = self.vma.read(self.at, 0, &mut [0]).is_ok();
        let state = self.vma.page_state(self.at.page);
        self.seen.lock().push(Sight {
            when,
            state,
            is_there,
            mode: running_callback(),
        });
    }
}

impl Notifier for Witness {
    fn start<C: Context>(&self, _range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        self.look("start");
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        self.look("end");
    }
}

/// While start runs the page is as it was; when end runs, it is gone from its address.
pub(super) fn n16_n104_the_change_comes_between_start_and_end(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("witness");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = mapping.vma();
    for (advice, state_after) in [
        (Advice::PageOut, State::Swapped),
        (Advice::Cold, State::Standby),
        (Advice::DontNeed, State::Empty),
    ] {
        set_word_in(&*mapping, 2, 9);
        let mut at = [BusAddr {
            page: 2,
            generation: 0,
            access: Access::Write,
        }];
        vma.fault_range(PageRun::single(2), Access::Write, &mut at)
            .expect("a frame");
        let witness = Arc::new(Witness {
            vma: Arc::clone(vma),
            at: at[0],
            seen: ShortLock::new("suite.witness", Vec::new()),
        });
        let subscription =
            mm.notifiers()
                .subscribe("witness", Ranges::WholeMm, Arc::clone(&witness));
        vma.advise(PageRun::single(2), advice)
            .expect("nobody hangs");
        subscription.synchronize();
        let seen = witness.seen.lock();
        let [start, end] = seen[..] else {
            panic!("one bracket: {seen:?}");
        };
        let blocks = Some(Mode::Blockable);
        assert_eq!(
            (start.when, start.is_there, start.mode),
            ("start", true, blocks)
        );
        assert_eq!((end.when, end.is_there, end.mode), ("end", false, blocks));
        assert_ne!(end.state, State::Resident, "{advice:?}");
        assert_eq!(vma.page_state(2), state_after, "{advice:?}");
    }
    check_clean(&mm);
}

/// Peer: migrate, migrate_fault, hmm2.migrate_mixed. One device collects pages and moves them
/// away: it is not told of its own collecting, everybody is told of what leaves, and whoever uses
/// a page brings it back.
pub(super) fn n35_a_migration_is_told_to_all_but_its_owner(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let all = mapping.vma().all();
    let owner = Mirrored::attach(mapping.vma(), all, "owner", Some(Owner(1)));
    let other = Mirrored::attach(mapping.vma(), all, "other", Some(Owner(2)));
    for page in 0..NR_PAGES {
        set_word(&owner, page, u64::from(page) + 1);
        assert_eq!(word_of(&other, page), u64::from(page) + 1);
    }
    let some = PageRun::new(4, 8);
    let collecting = bracket(&owner, some, Event::Migrate, Some(Owner(1)));
    assert_eq!(
        (owner.mirror().nr_held(), other.mirror().nr_held()),
        (16, 8)
    );
    assert!(other.subscription.try_read_begin().is_none());
    assert!(owner.subscription.try_read_begin().is_some());
    page_out(&owner, some); // a bracket inside of the other
    assert_eq!(owner.mirror().nr_held(), 8);
    drop(collecting);
    check_counts(&owner, 16, 0, 1);
    check_counts(&other, 16, 0, 2);
    for page in 0..NR_PAGES {
        assert_eq!(word_of(&other, page), u64::from(page) + 1);
        assert_eq!(word_in(&*mapping, page), u64::from(page) + 1);
    }
    check_counts(&other, 24, 0, 2);
    owner.detach();
    other.detach();
    check_clean(&mm);
}

/// Peers: exclusive, exclusive_mprotect. Nobody else translates the page while one device has it;
/// when it is given back there is no owner, and everybody is told.
pub(super) fn n35_exclusive_access_ends_for_everybody(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let all = mapping.vma().all();
    let owner = Mirrored::attach(mapping.vma(), all, "owner", Some(Owner(1)));
    let other = Mirrored::attach(mapping.vma(), all, "other", None);
    set_word(&owner, 7, 1);
    assert_eq!(word_of(&other, 7), 1);
    let page = PageRun::single(7);
    let taken = bracket(&owner, page, Event::Exclusive, Some(Owner(1)));
    let waits = Arc::clone(&other);
    let reader = world.spawn("reader", move || assert_eq!(word_of(&waits, 7), 101));
    for step in 1..=100 {
        let word = word_of(&owner, 7);
        assert_eq!(word, step, "nobody else writes");
        set_word(&owner, 7, word + 1);
    }
    drop(taken);
    reader();
    drop(bracket(&owner, page, Event::Exclusive, None));
    assert_eq!((owner.mirror().nr_held(), other.mirror().nr_held()), (0, 0));
    assert_eq!((owner.counts().starts, other.counts().starts), (1, 2));
    owner.detach();
    other.detach();
    check_clean(&mm);
}

/// Peers: mprotect, soft-dirty and what else keeps the pages: a mirror drops its translations and
/// finds the same pages again.
pub(super) fn n32_n33_a_bracket_may_be_wide_and_change_nothing(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let middle = PageRun::new(6, 4);
    let mirrored = Mirrored::attach(mapping.vma(), middle, "gpu", None);
    let mut lookups = 0;
    for event in Event::ALL {
        for run in [PageRun::single(7), middle, mapping.vma().all()] {
            for page in middle.pages() {
                set_word(&mirrored, page, u64::from(page));
            }
            lookups = mirrored.counts().lookups;
            drop(bracket(&mirrored, run, event, None));
            let nr_hit = usize::try_from(run.nr.min(middle.nr)).expect("a few");
            assert_eq!(mirrored.mirror().nr_held(), 4 - nr_hit, "{event:?}, {run}");
            for page in middle.pages() {
                assert_eq!(word_of(&mirrored, page), u64::from(page));
            }
            lookups = mirrored.counts().lookups - lookups;
            assert_eq!(lookups, nr_hit as u64);
        }
    }
    assert!(lookups > 0);
    assert_eq!(mirrored.mirror().nr_open(), 0);
    mirrored.detach();
    check_clean(&mm);
}

/// Peer: hmm2.double_map. One page under two mirrors and under two intervals of each, some of them
/// equal: all are told, neighbours are not.
pub(super) fn n57_a_page_under_many_intervals_is_told_to_all(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let runs = [(0, 16), (4, 4), (4, 4), (7, 1), (0, 7), (8, 8)];
    let mirrors = runs.map(|(first, nr)| {
        let mirrored = Mirrored::attach(mapping.vma(), PageRun::new(first, nr), "gpu", None);
        let last = first + nr - 1;
        set_word(&mirrored, last, u64::from(last));
        mirrored
    });
    page_out(&mirrors[0], PageRun::single(7));
    let starts = mirrors.each_ref().map(|mirrored| mirrored.counts().starts);
    assert_eq!(starts, [1, 1, 1, 1, 0, 0]);
    for (mirrored, (first, nr)) in mirrors.into_iter().zip(runs) {
        let last = first + nr - 1;
        assert_eq!(word_of(&mirrored, last), u64::from(last));
        mirrored.detach();
    }
    check_clean(&mm);
}

/// Peer: anon_teardown. A mapping goes away while devices of every ability and the program use it:
/// the devices end in an error, and never in other data.
pub(super) fn n17_an_unmap_ends_the_use_of_devices(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    for round in 0..4 {
        let mapping = world.map(&mm, NR_PAGES);
        for page in 0..NR_PAGES {
            set_word_in(&*mapping, page, round + u64::from(page));
        }
        let used = Arc::new(AtomicU64::new(0));
        let abilities = [Ability::DropRange, Ability::DropAll, Ability::DropLater];
        let users: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .zip(abilities)
            .map(|(name, ability)| {
                let (vma, all) = (mapping.vma(), mapping.vma().all());
                let mirrored = Mirrored::attach_able(vma, all, name, None, ability);
                let used = Arc::clone(&used);
                world.spawn(name, move || use_until_gone(mirrored, round, &used))
            })
            .collect();
        world.wait_until("all are at work", || used.load(Ordering::Relaxed) > 40);
        mm.unmap(mapping.vma()).expect("nobody hangs");
        for join in users {
            join();
        }
        assert_eq!(mm.nr_frames() + mm.nr_swapped(), 0);
    }
    check_clean(&mm);
}

fn use_until_gone(mirrored: Arc<Mirrored>, base: u64, used: &AtomicU64) {
    let mut rng = Rng(base);
    loop {
        let page = rng.below(u64::from(NR_PAGES)) as u32;
        let mut word = [0; 8];
        match mirrored.read(page, &mut word) {
            Ok(()) => assert_eq!(u64::from_le_bytes(word), base + u64::from(page)),
            Err(FaultError::Unmapped) => break,
            Err(error) => panic!("{error}"),
        }
        used.fetch_add(1, Ordering::Relaxed);
        lockdep::sync::sleep("suite.device", Duration::from_micros(10));
    }
    let mirror = mirrored.detach();
    assert_eq!((mirror.nr_open(), mirror.nr_held()), (0, 0));
}

/// Peer: migrate_release. A subscription keeps no memory alive: the pages go with the address
/// space, after `release`, and who is still subscribed gets errors.
pub(super) fn n11_n13_a_subscription_keeps_no_memory(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let mirrored = Mirrored::attach(mapping.vma(), mapping.vma().all(), "gpu", None);
    for page in 0..NR_PAGES {
        set_word(&mirrored, page, 1);
    }
    let space = mm.share();
    drop(mm);
    assert_eq!(
        (world.memcg.frames().usage(), world.memcg.zswap().bytes()),
        (0, 0)
    );
    assert_eq!(
        (mirrored.mirror().nr_released(), mirrored.mirror().nr_held()),
        (1, 0)
    );
    assert_eq!(mirrored.read(0, &mut [0]), Err(FaultError::Unmapped));
    let again = space.notifiers().subscribe_interval(
        "late",
        mirrored.vma.address(0),
        mirrored.vma.address(1),
        Arc::clone(mirrored.subscription.notifier()),
    );
    assert_eq!(again.map(drop), Err(IntervalError::Released));
    mirrored.detach();
    check_clean(&space);
}

/// Refuses whenever it may.
struct Refuser;

impl Notifier for Refuser {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.would_block()
    }
}

/// A member of the list refuses what a mirror had agreed to: no page changes, and the mirror goes
/// on as if nothing had been asked; a lookup from before is still good.
pub(super) fn n20_n23_n27_a_refused_reclaim_changes_nothing(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = mapping.vma();
    let mirrored = Mirrored::attach(vma, vma.all(), "gpu", None);
    let refuser = mm
        .notifiers()
        .subscribe("refuser", Ranges::WholeMm, Arc::new(Refuser));
    for page in 0..NR_PAGES {
        set_word(&mirrored, page, u64::from(page));
    }
    let before = mirrored.subscription.snapshot();
    let seen = mirrored.subscription.read_begin();
    for event in Event::ALL {
        let (start, end) = (vma.address(2), vma.address(9));
        let refused = mm.notifiers().start_nonblock(start, end, event);
        assert_eq!(&*refused.expect_err("it refuses").holder, "refuser");
    }
    assert_eq!(mirrored.subscription.snapshot(), before);
    assert_eq!(mirrored.mirror().nr_open(), 0);
    assert!(
        !mirrored
            .subscription
            .read_retry(seen, &mirrored.subscription.lock())
    );
    assert!(
        vma.all()
            .pages()
            .all(|page| vma.page_state(page) == State::Resident)
    );
    for page in 0..NR_PAGES {
        assert_eq!(word_of(&mirrored, page), u64::from(page));
    }
    refuser.synchronize();
    mirrored.detach();
    check_clean(&mm);
}

/// Peers: the stress of hmm-tests and of userfaultfd. Two devices and the program count in words
/// of the same pages while reclaim takes them and the program has them paged out: no count is
/// lost, nothing stale is used, and nothing is reported.
pub(super) fn n54_n103_mirrors_lose_nothing_under_reclaim(machine: &dyn Machine) {
    lose_nothing_under_reclaim(machine, [Ability::DropRange; 2]);
}

/// The same with devices that can do less when they are told: one drops all that it has, the other
/// when its accesses are over that are under way.
pub(super) fn n54_n118_who_drops_all_or_later_loses_nothing(machine: &dyn Machine) {
    lose_nothing_under_reclaim(machine, [Ability::DropAll, Ability::DropLater]);
}

fn lose_nothing_under_reclaim(machine: &dyn Machine, abilities: [Ability; 2]) {
    const STEPS: u32 = 300;
    const NR: u32 = 24;
    let world = World::new(machine, 12);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR);
    let all = mapping.vma().all();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (lane, ability) in (0..).zip(abilities) {
        let mirrored = Mirrored::attach_able(mapping.vma(), all, "gpu", None, ability);
        tasks.push(world.spawn("device", move || {
            count_by_device(mirrored, lane, STEPS, NR);
        }));
    }
    let (evicted, stops) = (Arc::clone(mapping.vma()), Arc::clone(&is_over));
    let evictor = world.spawn("evictor", move || {
        let mut first = 0;
        while !stops.load(Ordering::Relaxed) {
            first = (first + 5) % (NR - 4);
            evicted
                .advise(PageRun::new(first, 4), Advice::PageOut)
                .expect("nobody hangs");
            lockdep::sync::sleep("suite.evictor", Duration::from_micros(50));
        }
    });
    for join in tasks {
        join();
    }
    is_over.store(true, Ordering::Relaxed);
    evictor();
    assert!(mm.notifiers().stats().starts_total() > 0);
    assert_eq!(world.memcg.stat().stale_dma, 0);
    check_clean(&mm);
    world.check_bounds();
}

/// What each ability lets go of, and when: of a device with an access under way, the page stays
/// until that is over.
pub(super) fn n118_each_ability_lets_go_of_what_it_can(machine: &dyn Machine) {
    const ALL: usize = NR_PAGES as usize;
    for (ability, left) in [
        (Ability::DropRange, ALL - 2),
        (Ability::DropAll, 0),
        (Ability::DropLater, ALL - 2),
    ] {
        let world = World::new(machine, 64);
        let mm = world.memcg.new_mm("mirror");
        let mapping = world.map(&mm, NR_PAGES);
        let all = mapping.vma().all();
        let mirrored = Mirrored::attach_able(mapping.vma(), all, "gpu", None, ability);
        assert_eq!(mirrored.mirror().ability(), ability);
        for page in 0..NR_PAGES {
            set_word(&mirrored, page, u64::from(page) + 1);
        }
        let evicted = Arc::clone(&mirrored);
        let (mut evictor, mut old) = (None, None);
        let operation = |at: BusAddr| {
            // Of who drops at once the table is held, so the other waits until this is over.
            let evicts = move || page_out(&evicted, PageRun::new(3, 2));
            evictor = Some(world.spawn("evictor", evicts));
            if ability == Ability::DropLater {
                world.wait_until("it is told", || mirrored.counts().starts > 0);
            }
            for _ in 0..20 {
                lockdep::sync::sleep("suite.device", Duration::from_micros(50));
                let mut word = [0; 8];
                let read = mirrored.vma.read(at, 0, &mut word);
                read.expect("the page waits for the device");
                assert_eq!(u64::from_le_bytes(word), 4);
            }
            old = Some(at);
        };
        // Called once: what it takes is taken.
        let mut operation = Some(operation);
        let once = |at| operation.take().expect("one access")(at);
        mirrored
            .access(3, Access::Read, || (), once)
            .expect("it is translated");
        evictor.expect("it was begun")();
        assert_eq!(mirrored.mirror().nr_held(), left, "{ability:?}");
        let stale = mirrored.vma.read(old.expect("it was used"), 0, &mut [0]);
        assert!(stale.is_err(), "{ability:?}: the page has moved");
        for page in 0..NR_PAGES {
            assert_eq!(word_of(&mirrored, page), u64::from(page) + 1, "{ability:?}");
        }
        mirrored.detach();
        check_clean(&mm);
    }
}

/// Each device owns every other page, and counts up in its pages.
fn count_by_device(mirrored: Arc<Mirrored>, lane: u64, steps: u32, nr_pages: u32) {
    let mut rng = Rng(lane);
    let mut model = vec![0_u64; nr_pages as usize];
    for _ in 0..steps {
        let page = (rng.below(u64::from(nr_pages) / 2) * 2 + lane) as u32;
        let expected = &mut model[page as usize];
        assert_eq!(word_of(&mirrored, page), *expected, "page {page}");
        *expected += 1;
        set_word(&mirrored, page, *expected);
    }
    let mirror = mirrored.detach();
    assert_eq!((mirror.nr_open(), mirror.nr_held()), (0, 0));
}

/// Peer: the tiny hard limit of the kernel's first user of non-blockable brackets. The reaper asks
/// without blocking, takes what mirrors hold, and leaves none with a translation or an open
/// bracket.
pub(super) fn n74_the_reaper_takes_what_mirrors_hold(machine: &dyn Machine) {
    let world = World::with_limits(machine, super::oom::limits(32));
    let mm = world.memcg.new_mm("leaker");
    let mapping = world.map(&mm, 512);
    let vma = mapping.vma();
    let mirrored = Mirrored::attach(vma, vma.all(), "gpu", None);
    for page in 0..8 {
        set_word(&mirrored, page, 1);
    }
    super::oom::leak(&*mapping, 512, 41);
    world.wait_until_reaped();
    assert!(mm.is_killed());
    let stats = mm.notifiers().stats();
    assert!(stats.starts(Event::Unmap, Mode::NonBlock) > 0);
    assert_eq!(stats.starts(Event::Unmap, Mode::Blockable), 0);
    assert_eq!(
        (mirrored.mirror().nr_held(), mirrored.mirror().nr_open()),
        (0, 0)
    );
    assert!(
        mirrored.subscription.try_read_begin().is_some(),
        "nothing is left open"
    );
    assert!(mirrored.read(0, &mut [0]).is_err());
    mirrored.detach();
    check_clean(&mm);
}

/// Pages that are pinned leave for nobody, so nobody is told of them.
pub(super) fn n83_of_pinned_pages_nobody_is_told(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = mapping.vma();
    let mirrored = Mirrored::attach(vma, vma.all(), "gpu", None);
    for page in 0..NR_PAGES {
        set_word(&mirrored, page, u64::from(page));
    }
    let pin = vma
        .pin(PageRun::new(0, 8), Access::Write, Gfp::Kernel)
        .expect("resident");
    page_out(&mirrored, PageRun::new(0, 8));
    assert_eq!(mirrored.counts().starts, 0);
    drop(pin);
    page_out(&mirrored, PageRun::new(0, 8));
    assert_eq!(mirrored.counts().starts, 1);
    mirrored.detach();
    check_clean(&mm);
}

/// Remembers whether it was called by a thread that faults.
#[derive(Default)]
struct CalledBy {
    /// The thread that must run no callbacks, 0 for none.
    faults: AtomicU32,
    by_it: AtomicU64,
    by_others: AtomicU64,
}

impl Notifier for CalledBy {
    fn start<C: Context>(&self, _range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        let is_it = self.faults.load(Ordering::Relaxed) == lockdep::thread::number();
        let count = if is_it { &self.by_it } else { &self.by_others };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A fault needs frames and reclaims some, and runs nobody's callbacks for that: a worker does.
pub(super) fn n88_a_fault_runs_no_callbacks(machine: &dyn Machine) {
    let world = World::new(machine, 8);
    let mm = world.memcg.new_mm("mirror");
    let mapping = world.map(&mm, 64);
    let called = Arc::new(CalledBy::default());
    let subscription = mm
        .notifiers()
        .subscribe("gpu", Ranges::WholeMm, Arc::clone(&called));
    let me = lockdep::thread::number();
    called.faults.store(me, Ordering::Relaxed);
    for _ in 0..2 {
        for page in 0..64 {
            set_word_in(&*mapping, page, u64::from(page));
        }
    }
    called.faults.store(0, Ordering::Relaxed);
    subscription.synchronize();
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!(get(&called.by_it), 0);
    assert!(get(&called.by_others) > 0, "the worker was not needed");
    check_clean(&mm);
}
