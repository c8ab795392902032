//! Who pins what: counts by name.

use super::{Machine, Mapping, World, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::gfp::Gfp;
use crate::limits::{Limits, PINS_PER_PAGE_MAX};
use crate::memcg::{Knob, Memcg, SetLimitError};
use crate::mm_struct::{Building, MmHandle, Pin, PinError, PinHolder, PinnedBy};
use crate::primary_mmu::Access;
use std::sync::Arc;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

fn pin(mapping: &dyn Mapping, holder: Option<&PinHolder>, run: PageRun) -> Result<Pin, PinError> {
    let vma = mapping.vma();
    match holder {
        Some(holder) => vma.pin_for(holder, run, Access::Write, Gfp::Kernel),
        None => vma.pin(run, Access::Write, Gfp::Kernel),
    }
}

#[track_caller]
fn assert_told(memcg: &Memcg, nr_pins: u64, told: &[(&str, u64)]) {
    let holders = memcg.pin_holders();
    let holders = holders.iter().map(|by| (&*by.holder, by.pages));
    let found = (memcg.nr_pins(), holders.collect::<Vec<_>>());
    assert_eq!(found, (nr_pins, told.to_vec()));
}

/// G11: what is told is what is left, in whatever order pins go.
pub(super) fn pins_are_counted_by_name(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("pinned");
    let mapping = world.map(&mm, 16);
    let (nic, gpu) = (mm.pin_holder("nic0"), mm.pin_holder("gpu0"));
    // Four of `nic0`, six of `gpu0` that overlap them, one of nobody, and again two of `nic0`.
    let pin_all = || {
        let pins = [
            pin(&*mapping, Some(&nic), PageRun::new(0, 4)),
            pin(&*mapping, Some(&gpu), PageRun::new(2, 6)),
            pin(&*mapping, None, PageRun::new(8, 1)),
            pin(&*mapping, Some(&nic), PageRun::new(0, 2)),
        ];
        pins.map(|pin| Some(pin.expect("frames")))
    };
    type Told<'a> = &'a [(&'a str, u64)];
    let check = |order: [usize; 3], told: [(u64, Told<'_>); 3]| {
        let mut pins = pin_all();
        // As many pages of each: by name.
        assert_told(&world.memcg, 13, &[("gpu0", 6), ("nic0", 6)]);
        for (which, (nr_pins, told)) in order.into_iter().zip(told) {
            pins[which] = None;
            assert_told(&world.memcg, nr_pins, told);
        }
        drop(pins);
        assert_told(&world.memcg, 0, &[]);
        assert_eq!((nic.nr_pins(), gpu.nr_pins(), mm.nr_pins()), (0, 0, 0));
    };
    let (gpu6, nic6) = (("gpu0", 6), ("nic0", 6));
    check(
        [0, 1, 2],
        [
            (9, &[gpu6, ("nic0", 2)]),
            (3, &[("nic0", 2)]),
            (2, &[("nic0", 2)]),
        ],
    );
    check([1, 2, 0], [(7, &[nic6]), (6, &[nic6]), (2, &[("nic0", 2)])]);
    check(
        [3, 0, 1],
        [(11, &[gpu6, ("nic0", 4)]), (7, &[gpu6]), (1, &[])],
    );
    check(
        [2, 3, 0],
        [
            (12, &[gpu6, nic6]),
            (10, &[gpu6, ("nic0", 4)]),
            (6, &[gpu6]),
        ],
    );
}

/// A run that fails leaves no count, whatever page of it fails.
pub(super) fn a_pin_that_fails_half_way_leaves_no_count(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("pinned");
    let mapping = world.map(&mm, 16);
    let holder = mm.pin_holder("nic0");
    let single = PageRun::single(5);
    let full = (0..PINS_PER_PAGE_MAX).map(|_| pin(&*mapping, None, single));
    let full: Vec<_> = full.map(|pin| pin.expect("room for a pin")).collect();
    for run in [(5, 1), (4, 4), (0, 6), (0, 16)].map(|(first, nr)| PageRun::new(first, nr)) {
        let refused = pin(&*mapping, Some(&holder), run).map(drop);
        assert_eq!(refused, Err(PinError::TooManyPins { page: 5 }), "{run}");
        assert_told(&world.memcg, u64::from(PINS_PER_PAGE_MAX), &[]);
    }
    drop(full);
    assert_eq!((mm.nr_pins(), holder.nr_pins()), (0, 0));
}

/// A name is there while there is a handle or a pin of it, in the whole tree, and also when the
/// address space is gone.
pub(super) fn what_stays_pinned_is_told_after_its_address_space_is_gone(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let limits = Limits {
        zswap_max_bytes: 64 * PAGE_BYTES,
        ..Limits::new(32 * PAGE_BYTES)
    };
    let below = world.memcg.new_child("below", limits).expect("limits");
    let new_mm = |memcg: &Arc<Memcg>, name| {
        let mm = memcg.new_mm(name);
        let mapping = world.map(&mm, 8);
        let pinned = pin(&*mapping, Some(&mm.pin_holder("nic0")), PageRun::new(0, 3));
        (mm, mapping, pinned.expect("frames"))
    };
    let check = |mm: MmHandle, mapping: Arc<dyn Mapping>, pinned: Pin| {
        drop(mapping);
        drop(mm);
        assert_told(&world.memcg, 6, &[("nic0", 6)]);
        assert_eq!(pinned.holder().map(PinHolder::nr_pins), Some(3));
        pinned
    };
    let (mm, mapping, pinned) = new_mm(&below, "child");
    let (other_mm, other_mapping, other) = new_mm(&world.memcg, "parent");
    assert_told(&below, 3, &[("nic0", 3)]);
    let pinned = check(mm, mapping, pinned);
    let other = check(other_mm, other_mapping, other);
    drop(pinned);
    assert_told(&below, 0, &[]);
    assert_told(&world.memcg, 3, &[("nic0", 3)]);
    drop(other);
    assert_told(&world.memcg, 0, &[]);
    world.wait_until_empty();
}

/// Pins are handed on with their count, and an object is gathered in a name.
pub(super) fn a_pin_is_handed_on_with_its_count(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("pinned");
    let mapping = world.map(&mm, 16);
    let nic = mm.pin_holder("nic0");
    let mut pinned = pin(&*mapping, None, PageRun::new(0, 3)).expect("frames");
    assert_told(&world.memcg, 3, &[]);
    pinned.hand_to(&nic);
    assert_told(&world.memcg, 3, &[("nic0", 3)]);
    pinned.hand_to(&nic);
    assert_told(&world.memcg, 3, &[("nic0", 3)]);
    pinned.hand_to(&mm.pin_holder("gpu0"));
    assert_told(&world.memcg, 3, &[("gpu0", 3)]);
    let building = Building::new(Arc::clone(mapping.vma()), Access::Write, Gfp::Kernel);
    let mut building = building.pinned_for(&nic);
    for page in [9, 4] {
        building.add(page).expect("a frame");
    }
    assert_told(&world.memcg, 5, &[("gpu0", 3), ("nic0", 2)]);
    drop((building.finish(), pinned));
    assert_told(&world.memcg, 0, &[]);
    // Whoever asks for a name gets who has it already.
    let again = mm.pin_holder("nic0");
    let pinned = pin(&*mapping, Some(&again), PageRun::new(0, 2)).expect("frames");
    assert_eq!(nic.nr_pins(), 2);
    drop(pinned);
}

/// G6: a bound that cannot be lowered says who is in the way.
pub(super) fn a_bound_that_stays_names_who_pins(machine: &dyn Machine) {
    let world = World::new(machine, 32);
    let mm = world.memcg.new_mm("pinned");
    let mapping = world.map(&mm, 16);
    for page in 0..16 {
        write_page(&*mapping, page, &[1]);
    }
    let (nic, gpu) = (mm.pin_holder("nic0"), mm.pin_holder("gpu0"));
    let check = |pins: &[(Option<&PinHolder>, u32)], told: Option<(&str, u64)>, text: &str| {
        let mut first = 0;
        let take = |&(holder, nr): &(Option<&PinHolder>, u32)| {
            first += nr;
            pin(&*mapping, holder, PageRun::new(first - nr, nr)).expect("frames")
        };
        let _held: Vec<_> = pins.iter().map(take).collect();
        let refused = world.memcg.set_limit(Knob::Max, 8 * PAGE_BYTES);
        let Err(SetLimitError::InUse {
            nr_pins, pinned_by, ..
        }) = &refused
        else {
            panic!("twelve pages are pinned: {refused:?}");
        };
        let most = told.map(|(name, pages)| PinnedBy {
            holder: name.into(),
            pages,
        });
        assert_eq!((*nr_pins, pinned_by), (12, &most));
        let refused = refused.expect_err("seen above").to_string();
        assert!(refused.contains(text), "{refused}");
    };
    let named = "drop pins (12 pages, most by nic0 (7 pages)), or";
    check(
        &[(Some(&gpu), 2), (Some(&nic), 7), (None, 3)],
        Some(("nic0", 7)),
        named,
    );
    check(&[(None, 12)], None, "drop pins (12 pages), or");
}
