//! Tests of the compressed store.

use super::size_class::{BLOCK_BYTES, COMPRESSED_BYTES_MAX, SizeClass};
use super::{Inject, Owner, Scratch, Stored, Zswap, header::HEADER_BYTES};
use crate::addr::{PAGE_SIZE, PageBuf};
use crate::fault::StoreError;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// How many of something a test tries: few in Miri, where a page takes as long as thousands do.
const fn tries(nr: u64, in_miri: u64) -> u64 {
    if cfg!(miri) { in_miri } else { nr }
}

/// The contents that the tests store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Zero,
    Pattern,
    /// One pattern but for the last word.
    AlmostPattern,
    Text,
    /// Eight-byte words that point into one heap.
    Pointers,
    Random,
    HalfRandom,
}

const KINDS: [Kind; 7] = [
    Kind::Zero,
    Kind::Pattern,
    Kind::AlmostPattern,
    Kind::Text,
    Kind::Pointers,
    Kind::Random,
    Kind::HalfRandom,
];

/// Random numbers that a seed repeats: splitmix64 (Steele, Lea, Flood 2014).
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A page of the kind; other seeds make other pages, but for zero pages.
fn page(kind: Kind, seed: u64) -> PageBuf {
    const WORDS: [&str; 8] = [
        "page ",
        "frame ",
        "the ",
        "notifier ",
        "returns ",
        "swap ",
        "is ",
        "unmapped. ",
    ];
    let mut state = seed;
    let mut page = [0; PAGE_SIZE];
    match kind {
        Kind::Zero => {}
        Kind::Pattern => page.as_chunks_mut().0.fill((seed as u32).to_le_bytes()),
        Kind::AlmostPattern => {
            page.as_chunks_mut().0.fill((seed as u32).to_le_bytes());
            page[PAGE_SIZE - 5] ^= 1;
        }
        Kind::Text => {
            let words =
                core::iter::repeat_with(|| WORDS[next(&mut state) as usize % WORDS.len()].bytes());
            for (byte, letter) in page.iter_mut().zip(words.flatten()) {
                *byte = letter;
            }
        }
        Kind::Pointers => {
            for word in page.as_chunks_mut().0 {
                let bits = next(&mut state) % (1 << 20) * 16 + 0x7f12_3400_0000;
                *word = if bits.is_multiple_of(3) {
                    [0; 8]
                } else {
                    bits.to_le_bytes()
                };
            }
        }
        Kind::Random | Kind::HalfRandom => {
            let nr = if kind == Kind::Random {
                PAGE_SIZE
            } else {
                PAGE_SIZE / 2
            };
            for word in page[..nr].as_chunks_mut().0 {
                *word = next(&mut state).to_le_bytes();
            }
        }
    }
    page
}

fn owner(n: u64) -> Owner {
    Owner::new(7, n as u32)
}

#[track_caller]
fn assert_loads(store: &Zswap, owner: Owner, stored: Stored, expected: &PageBuf) {
    let mut loaded = [0x55; PAGE_SIZE];
    assert_eq!(store.load(owner, stored, &mut loaded), Ok(()));
    assert!(
        loaded == *expected,
        "{stored:?} came back with other contents"
    );
}

#[track_caller]
fn assert_fails(store: &Zswap, owner: Owner, stored: Stored, expected: StoreError) {
    let mut loaded = [0x55; PAGE_SIZE];
    assert_eq!(store.load(owner, stored, &mut loaded), Err(expected));
    assert!(loaded == [0; PAGE_SIZE], "a failed load left bytes behind");
}

#[track_caller]
fn assert_empty(store: &Zswap) {
    let stats = store.stats();
    assert_eq!(store.bytes(), 0);
    assert_eq!(
        (
            stats.stored_pages,
            stats.same_filled,
            stats.compressed_bytes
        ),
        (0, 0, 0)
    );
    assert_eq!(
        stats.block_bytes, 0,
        "a block without a slot in use went to no pool"
    );
}

fn slot_of(stored: Stored) -> super::SlotHandle {
    match stored {
        Stored::Slot { handle, .. } => handle,
        Stored::SameFilled(_) | Stored::File { .. } => panic!("{stored:?} has no slot"),
    }
}

#[test]
fn every_kind_of_page_comes_back() {
    #[track_caller]
    fn check(kind: Kind, slot_bytes: core::ops::RangeInclusive<u64>) {
        let store = Zswap::new(MIB);
        let mut scratch = Scratch::new();
        let nr = tries(49, 1);
        for seed in 1..=nr {
            let contents = page(kind, seed);
            let stored = store.store(owner(seed), &contents, &mut scratch).unwrap();
            assert!(
                slot_bytes.contains(&store.charge_of(stored)),
                "{}",
                store.charge_of(stored)
            );
            assert_loads(&store, owner(seed), stored, &contents);
            assert_loads(&store, owner(seed), stored, &contents);
            assert_eq!(store.bytes(), store.charge_of(stored));
            store.free(stored);
        }
        assert_empty(&store);
        let stats = store.stats();
        assert_eq!((stats.stores, stats.loads, stats.errors), (nr, 2 * nr, 0));
    }
    check(Kind::Zero, 0..=0);
    check(Kind::Pattern, 0..=0);
    check(Kind::AlmostPattern, 64..=64);
    check(Kind::Text, 1000..=2600);
    check(Kind::Pointers, 1000..=3096);
    check(Kind::Random, 4120..=4120);
    check(Kind::HalfRandom, 2072..=2400);
}

#[test]
fn a_state_word_can_keep_what_was_stored() {
    let store = Zswap::new(MIB);
    let mut scratch = Scratch::new();
    for seed in 1..tries(3000, 10) {
        let stored = store.store(owner(seed), &page(Kind::AlmostPattern, seed), &mut scratch);
        let stored = stored.unwrap();
        assert!(stored.tag() < 1 << 10);
        assert_eq!(
            Stored::from_slot_parts(stored.payload(), stored.tag()),
            stored
        );
    }
}

#[test]
fn no_slot_wastes_more_than_an_eighth() {
    for len in 40..=COMPRESSED_BYTES_MAX {
        let used = len + HEADER_BYTES;
        let slot = SizeClass::for_payload(len).slot_bytes();
        assert!(slot >= used);
        assert!(
            (slot - used) * 1000 <= slot * 125,
            "{used} bytes in a slot of {slot}"
        );
    }
    for class in SizeClass::all() {
        let unused = BLOCK_BYTES - class.slots_per_block() * class.slot_bytes();
        assert!(
            unused * 100 <= BLOCK_BYTES * 3,
            "{class:?} leaves {unused} bytes of a block"
        );
    }
}

#[test]
fn a_full_store_refuses_and_keeps_what_it_has() {
    let max = 10 * 4120 + 100;
    let store = Zswap::new(max);
    let mut scratch = Scratch::new();
    let mut stored = Vec::new();
    for n in 0..10 {
        stored.push(
            store
                .store(owner(n), &page(Kind::Random, n), &mut scratch)
                .unwrap(),
        );
    }
    let refused = store.store(owner(10), &page(Kind::Random, 10), &mut scratch);
    let refused = refused.expect_err("no slot is left");
    assert!(!store.has_room_for(refused));
    assert_eq!((store.bytes(), store.peak_bytes()), (41_200, 41_200));
    // What needs no slot, or a small one, still goes in.
    let pattern = store
        .store(owner(11), &page(Kind::Pattern, 3), &mut scratch)
        .unwrap();
    let small = store
        .store(owner(12), &page(Kind::AlmostPattern, 3), &mut scratch)
        .unwrap();
    assert_eq!((store.bytes(), store.peak_bytes()), (41_264, 41_264));
    for (n, &stored) in stored.iter().enumerate() {
        assert_loads(
            &store,
            owner(n as u64),
            stored,
            &page(Kind::Random, n as u64),
        );
        store.free(stored);
    }
    store.free(pattern);
    store.free(small);
    assert_empty(&store);
    assert_eq!((store.peak_bytes(), store.stats().full), (41_264, 1));
    assert!(store.has_room_for(refused));
    let never = Zswap::new(0).store(owner(0), &page(Kind::Text, 0), &mut scratch);
    assert!(never.is_err());
}

#[test]
fn a_store_whose_blocks_have_the_wrong_size_says_full() {
    let store = Zswap::new(4 * MIB);
    let mut scratch = Scratch::new();
    let mut state = 1;
    let mut kept: Vec<Stored> = Vec::new();
    let mut refused_below_the_bound = false;
    // One size after the other fills the store; of each, one slot in each block stays.
    for nr_random in [400, 800, 1200, 1600, 2000, 2400, 2800] {
        let mut contents = [0; PAGE_SIZE];
        contents[..nr_random]
            .as_chunks_mut()
            .0
            .fill_with(|| next(&mut state).to_le_bytes());
        let mut of_this_size = Vec::new();
        while let Ok(stored) = store.store(owner(1), &contents, &mut scratch) {
            of_this_size.push(stored);
        }
        refused_below_the_bound |= store.bytes() + 4120 <= store.max_bytes();
        let mut last_block = 0;
        for stored in of_this_size {
            let block = stored.payload() >> 11;
            match block == last_block {
                true => _ = store.free(stored),
                false => kept.push(stored),
            }
            last_block = block;
        }
    }
    assert!(refused_below_the_bound);
    assert!(store.stats().fragmented > 0);
    kept.into_iter().for_each(|stored| _ = store.free(stored));
    assert_empty(&store);
    // Blocks change their class: with all of them empty, raw pages fit up to the bound.
    let raw = |_| store.store(owner(1), &page(Kind::Random, 1), &mut scratch);
    let raw: Vec<_> = (0..4 * MIB / 4120).map(raw).collect();
    assert!(raw.iter().all(Result::is_ok));
}

#[test]
fn any_flipped_bit_is_an_error_and_never_data() {
    for kind in [Kind::AlmostPattern, Kind::HalfRandom, Kind::Random] {
        let store = Zswap::new(MIB);
        let contents = page(kind, 9);
        let stored = store
            .store(owner(9), &contents, &mut Scratch::new())
            .unwrap();
        let nr_bits = match kind {
            Kind::AlmostPattern => 24 * 8 + 100,
            Kind::HalfRandom => 2078 * 8,
            _ => 4120 * 8,
        };
        let step = if nr_bits > 1000 { 7 } else { 1 };
        for bit in (0..nr_bits).step_by(step * tries(1, 97) as usize) {
            store.flip(slot_of(stored), bit);
            let mut loaded = [0x55; PAGE_SIZE];
            let result = store.load(owner(9), stored, &mut loaded);
            assert_eq!(
                result,
                Err(StoreError::Corrupt),
                "bit {bit} of a {kind:?} page was flipped"
            );
            assert!(loaded == [0; PAGE_SIZE]);
            store.flip(slot_of(stored), bit);
        }
        assert_loads(&store, owner(9), stored, &contents);
    }
}

#[test]
fn a_slot_gives_nothing_to_who_does_not_own_it() {
    let store = Zswap::new(MIB);
    let mut scratch = Scratch::new();
    let contents = page(Kind::Text, 1);
    let first = store.store(owner(1), &contents, &mut scratch).unwrap();
    assert_fails(&store, owner(2), first, StoreError::Misplaced);
    assert_fails(&store, Owner::new(8, 1), first, StoreError::Misplaced);
    // The same owner again, in the same slot: the old state word is out of date.
    store.free(first);
    let second = store.store(owner(1), &contents, &mut scratch).unwrap();
    assert_eq!(slot_of(second), slot_of(first));
    assert_fails(&store, owner(1), first, StoreError::Misplaced);
    assert_loads(&store, owner(1), second, &contents);
}

/// Canary for G13: the checks must see what the injected faults do.
#[test]
fn injected_faults_are_seen_as_often_as_they_happen() {
    #[track_caller]
    fn check(inject: Inject, expected: Option<StoreError>) {
        let store = Zswap::new(MIB);
        let mut scratch = Scratch::new();
        store.inject(inject);
        let (nr, mut nr_errors) = (tries(300, 5), 0);
        for n in 0..nr {
            let contents = page(Kind::Text, n);
            let stored = store.store(owner(n), &contents, &mut scratch).unwrap();
            let mut loaded = [0; PAGE_SIZE];
            match store.load(owner(n), stored, &mut loaded) {
                Ok(()) => assert!(loaded == contents),
                Err(error) => {
                    nr_errors += 1;
                    assert!(
                        expected.is_none_or(|expected| expected == error),
                        "{error:?}"
                    );
                }
            }
            // Every other page stays, so that lost stores hit new slots and used ones.
            if n % 2 == 0 {
                store.free(stored);
            }
        }
        assert_eq!(nr_errors, if inject == Inject::None { 0 } else { nr / 5 });
        assert_eq!(store.stats().errors, nr_errors);
    }
    check(Inject::None, None);
    check(Inject::LoseStore { one_in: 5 }, Some(StoreError::Misplaced));
    check(Inject::CorruptSlot { one_in: 5 }, Some(StoreError::Corrupt));
}

#[test]
fn many_threads_stay_under_the_bound_and_read_what_they_wrote() {
    const MAX: u64 = 300_000;
    let store = Zswap::new(MAX);
    let over = AtomicBool::new(false);
    let worker = |thread: u64| {
        let mut scratch = Scratch::new();
        let mut state = thread;
        let mut held: Vec<(u64, Kind, Stored)> = Vec::new();
        let mut nr_full = 0;
        for n in 0..4000 {
            let id = thread << 20 | n;
            let kind = KINDS[next(&mut state) as usize % KINDS.len()];
            match store.store(owner(id), &page(kind, id), &mut scratch) {
                Ok(stored) => held.push((id, kind, stored)),
                Err(_no_room) => nr_full += 1,
            }
            over.fetch_or(store.bytes() > MAX, Relaxed);
            if held.is_empty() {
                continue;
            }
            let (id, kind, stored) = held[next(&mut state) as usize % held.len()];
            assert_loads(&store, owner(id), stored, &page(kind, id));
            if held.len() > 40 {
                let nth = next(&mut state) as usize % held.len();
                store.free(held.swap_remove(nth).2);
            }
        }
        held.into_iter()
            .for_each(|(.., stored)| _ = store.free(stored));
        nr_full
    };
    let nr_full: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|n| scope.spawn(move || worker(n))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert!(
        !over.load(Relaxed),
        "more than the bound was in use at some moment"
    );
    assert!(store.peak_bytes() <= MAX);
    assert!(
        store.peak_bytes() > MAX - 4120,
        "the bound was never reached: {nr_full}"
    );
    assert!(nr_full > 0);
    assert_empty(&store);
    assert_eq!(store.stats().fragmented, 0);
}

#[test]
fn of_a_mixed_set_twelve_percent_are_lost_at_most() {
    let store = Zswap::new(64 * MIB);
    let mut scratch = Scratch::new();
    let mut state = 1;
    let mut held = Vec::new();
    // Three generations: each fills, then frees two thirds at random.
    for generation in 0..3 {
        for n in 0..9000 {
            let id = generation * 10_000 + n;
            // One page in twenty of the almost empty kind.
            let kind = match next(&mut state) % 20 {
                0 => Kind::AlmostPattern,
                1..=8 => Kind::Text,
                9..=14 => Kind::Pointers,
                15..=17 => Kind::HalfRandom,
                _ => Kind::Random,
            };
            held.push(
                store
                    .store(owner(id), &page(kind, id), &mut scratch)
                    .unwrap(),
            );
        }
        let full = store.stats().fragmentation_permille();
        for _ in 0..held.len() * 2 / 3 {
            let nth = next(&mut state) as usize % held.len();
            store.free(held.swap_remove(nth));
        }
        // Two of three free slots are as good as lost until pages of their size come again.
        let thinned = store.stats().fragmentation_permille();
        assert!(
            full <= 120,
            "generation {generation}, filled: {full} permille"
        );
        assert!(
            thinned <= 750,
            "generation {generation}, thinned out: {thinned} permille"
        );
    }
}

/// Blocks are emptied until nothing can be won, with `held` for the books of who owns what.
fn compact(store: &Zswap, held: &mut [(Owner, Stored)]) {
    let mut nr_rounds = 0;
    while store.empty_blocks(|owner, slot| {
        let of_owner = held.iter_mut().find(|(known, _)| *known == owner);
        let (_, stored) = of_owner.expect("a slot in use belongs to somebody");
        assert_eq!((slot_of(*stored), stored.tag()), slot);
        if let Some(new) = store.copy_slot(owner, slot) {
            store.free(core::mem::replace(stored, new));
        }
    }) {
        nr_rounds += 1;
        assert!(nr_rounds < 10_000, "it does not come to an end");
    }
}

#[test]
fn what_is_moved_is_what_it_was_and_frees_blocks() {
    let store = Zswap::new(16 * MIB);
    let mut scratch = Scratch::new();
    let mut held = Vec::new();
    for n in 0..2000 {
        let contents = page(Kind::HalfRandom, n);
        let stored = store.store(owner(n), &contents, &mut scratch).unwrap();
        match n % 5 {
            0 => held.push((owner(n), stored)),
            _ => _ = store.free(stored),
        }
    }
    let mut rest = Vec::new();
    for n in 0..2000 {
        let stored = store.store(owner(9000 + n), &page(Kind::Text, n), &mut scratch);
        rest.push((owner(9000 + n), stored.unwrap()));
    }
    let mut nth = 0;
    rest.retain(|&(_, stored)| {
        nth += 1;
        let stays = nth % 7 == 0;
        if !stays {
            store.free(stored);
        }
        stays
    });
    held.extend(rest);
    let before = store.stats();
    compact(&store, &mut held);
    let after = store.stats();
    assert_eq!(before.compressed_bytes, after.compressed_bytes);
    assert_eq!(before.stores, after.stores);
    assert!(after.block_bytes * 2 < before.block_bytes, "{after:?}");
    for &(owner, stored) in &held {
        let n = owner.page();
        let (kind, n) = match n {
            9000.. => (Kind::Text, n - 9000),
            _ => (Kind::HalfRandom, n),
        };
        assert_loads(&store, owner, stored, &page(kind, n.into()));
        store.free(stored);
    }
    assert_empty(&store);
}

/// As many slots that cannot be moved, each alone in its block: the blocks of the other pages are
/// emptied into each other all the same.
#[track_caller]
fn check_immovable(nr_wrong: usize) {
    let store = Zswap::new(16 * MIB);
    let mut scratch = Scratch::new();
    let mut stored = |n| {
        let contents = page(Kind::HalfRandom, n);
        (
            owner(n),
            store.store(owner(n), &contents, &mut scratch).unwrap(),
        )
    };
    let all: Vec<_> = (0..1000).map(&mut stored).collect();
    let block_of = |stored| slot_of(stored).block();
    let wrong: Vec<_> = all.iter().step_by(101).take(nr_wrong).copied().collect();
    for &(_, stored) in &wrong {
        store.flip(slot_of(stored), HEADER_BYTES * 8 + 11);
    }
    let is_beside_wrong = |stored| wrong.iter().any(|&(_, w)| block_of(w) == block_of(stored));
    let (mut held, freed): (Vec<_>, Vec<_>) = all.into_iter().partition(|&(owner, stored)| {
        let is_wrong = wrong.contains(&(owner, stored));
        is_wrong || owner.page() % 5 == 0 && !is_beside_wrong(stored)
    });
    for (_, stored) in freed {
        store.free(stored);
    }
    compact(&store, &mut held);
    let (slot_bytes, stats) = (store.charge_of(held[0].1), store.stats());
    let nr_needed = held.len().div_ceil(BLOCK_BYTES / slot_bytes as usize);
    let nr_blocks = stats.block_bytes as usize / BLOCK_BYTES;
    assert!(nr_blocks <= nr_needed + nr_wrong, "{nr_wrong}: {stats:?}");
    for (owner, stored) in held {
        match wrong.contains(&(owner, stored)) {
            true => assert_fails(&store, owner, stored, StoreError::Corrupt),
            false => assert_loads(
                &store,
                owner,
                stored,
                &page(Kind::HalfRandom, owner.page().into()),
            ),
        }
    }
}

#[test]
fn a_slot_that_cannot_be_moved_keeps_its_own_block_alone() {
    for nr_wrong in [0, 1, 2, 5] {
        check_immovable(nr_wrong);
    }
}

#[test]
fn what_is_wrong_with_a_slot_is_not_moved() {
    let store = Zswap::new(MIB);
    let contents = page(Kind::Text, 3);
    let stored = store
        .store(owner(3), &contents, &mut Scratch::new())
        .unwrap();
    store.flip(slot_of(stored), HEADER_BYTES * 8 + 11);
    let slot = (slot_of(stored), stored.tag());
    assert_eq!(store.copy_slot(owner(3), slot), None);
    store.flip(slot_of(stored), HEADER_BYTES * 8 + 11);
    assert_eq!(store.copy_slot(owner(4), slot), None, "it is not his");
    let moved = store.copy_slot(owner(3), slot).expect("it is right again");
    assert_loads(&store, owner(3), moved, &contents);
}

/// A page comes back from the dense codec, and no flipped bit of it as data.
#[cfg(feature = "zstd")]
#[test]
fn what_is_packed_comes_back_and_errors_are_seen() {
    let store = Zswap::new(MIB);
    let (mut scratch, mut encoder) = (Scratch::new(), super::Encoder::new());
    let mut pack = |kind| {
        let contents = page(kind, 5);
        let stored = store.store(owner(5), &contents, &mut scratch).unwrap();
        let slot = (slot_of(stored), stored.tag());
        let copy = store.with_slot(owner(5), slot, <[u8]>::to_vec).unwrap();
        let tagged = (&copy[..], stored.tag());
        match store.pack(&super::zswap::Nobody, owner(5), tagged, &mut encoder) {
            super::Packed::Into(packed) => {
                assert!(store.charge_of(packed) < store.charge_of(stored));
                assert_loads(&store, owner(5), packed, &contents);
                Some(packed)
            }
            packed => {
                assert_eq!(packed, super::Packed::No);
                None
            }
        }
    };
    assert_eq!(pack(Kind::Random), None);
    assert_eq!(pack(Kind::AlmostPattern), None);
    assert!(pack(Kind::Pointers).is_some());
    let packed = pack(Kind::Text).expect("text can be packed");
    for bit in (0..8 * 300).step_by(3) {
        store.flip(slot_of(packed), bit);
        let mut loaded = [0x55; PAGE_SIZE];
        let result = store.load(owner(5), packed, &mut loaded);
        assert!(result.is_err() && loaded == [0; PAGE_SIZE], "bit {bit}");
        store.flip(slot_of(packed), bit);
    }
    assert_loads(&store, owner(5), packed, &page(Kind::Text, 5));
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Store { page: usize, kind: usize, seed: u64 },
    Load { page: usize },
    Free { page: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..24_usize, 0..KINDS.len(), 0..9_u64)
            .prop_map(|(page, kind, seed)| Op::Store { page, kind, seed }),
        3 => (0..24_usize).prop_map(|page| Op::Load { page }),
        2 => (0..24_usize).prop_map(|page| Op::Free { page }),
    ];
    prop::collection::vec(op, 1..tries(200, 30) as usize)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: tries(200, 1) as u32,
        rng_seed: prop::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The model keeps each page as it is, and adds the slots up.
    #[test]
    fn the_store_does_what_a_naive_one_does(ops in ops(), max in 0..40_000_u64) {
        let store = Zswap::new(max);
        let mut scratch = Scratch::new();
        let mut model: [Option<(PageBuf, Stored)>; 24] = [None; 24];
        for op in ops {
            let bytes: u64 = model.iter().flatten().map(|(_, s)| store.charge_of(*s)).sum();
            prop_assert_eq!(store.bytes(), bytes);
            match op {
                Op::Store { page: at, kind, seed } => {
                    if let Some((_, stored)) = model[at].take() {
                        store.free(stored);
                    }
                    let contents = page(KINDS[kind], seed);
                    match store.store(owner(at as u64), &contents, &mut scratch) {
                        Ok(stored) => model[at] = Some((contents, stored)),
                        Err(refused) => {
                            prop_assert!(!store.has_room_for(refused));
                            prop_assert!(store.bytes() + 4120 > max);
                        }
                    }
                }
                Op::Load { page } => {
                    if let Some((contents, stored)) = &model[page] {
                        assert_loads(&store, owner(page as u64), *stored, contents);
                    }
                }
                Op::Free { page } => {
                    if let Some((_, stored)) = model[page].take() {
                        store.free(stored);
                    }
                }
            }
            prop_assert!(store.peak_bytes() <= max);
        }
        let held = model.iter().flatten().count() as u64;
        prop_assert_eq!(store.stats().stored_pages, held);
    }
}
