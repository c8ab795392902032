//! Which pages go first: those that were used once, whatever used them and however they came.

use super::{Machine, Mapping, World, offset_of, read_page, write_page};
use crate::addr::{PageIndex, PageRun};
use crate::bus::{Bus, BusAddr, DeviceMemory};
use crate::gfp::Gfp;
use crate::mm_struct::{Advice, MmHandle, Pin};
use crate::page::State;
use crate::primary_mmu::Access;
use crate::reclaim::{Effort, Youth};
use std::sync::Arc;

/// Far more than are used: no worker has anything to do.
const FRAMES: u64 = 512;

/// Pages that are looked at, those beside them that are stored, and those that are touched to have
/// everything settle.
const NR_PAGES: u32 = 8;
const NR_OTHERS: u32 = 64;
const NR_LAST: u32 = 8;

/// A mapping in a world of its own.
struct Stage<'a> {
    // Dropped from the top down.
    mapping: Arc<dyn Mapping>,
    _mm: MmHandle,
    world: World<'a>,
}

/// A name for what is done to a page.
type Step = (&'static str, fn(&Stage<'_>, PageIndex));

impl<'a> Stage<'a> {
    fn new(machine: &'a dyn Machine) -> Self {
        let world = World::new(machine, FRAMES);
        let mm = world.memcg.new_mm("uses");
        let mapping = world.map(&mm, NR_PAGES + NR_OTHERS + NR_LAST);
        Self {
            mapping,
            _mm: mm,
            world,
        }
    }

    fn pin(&self, page: PageIndex, access: Access) -> Pin {
        let run = PageRun::single(page);
        let pin = self.mapping.vma().pin(run, access, Gfp::Kernel);
        pin.expect("a frame")
    }

    fn advise(&self, page: PageIndex, advice: Advice) {
        let advised = self.mapping.vma().advise(PageRun::single(page), advice);
        advised.expect("nobody refuses");
    }

    fn translate(&self, page: PageIndex) {
        let (generation, access) = (0, Access::Write);
        let mut at = [BusAddr {
            page,
            generation,
            access,
        }];
        let run = PageRun::single(page);
        let translated = self.mapping.vma().fault_range(run, access, &mut at);
        translated.expect("a frame");
    }

    /// Puts a page into the store. It is written under a pin, so that no access traps.
    fn store(&self, page: PageIndex) {
        let pin = self.pin(page, Access::Write);
        write_page(&*self.mapping, page, &[2]);
        drop(pin);
        self.advise(page, Advice::PageOut);
        assert_eq!(self.mapping.vma().page_state(page), State::Swapped);
    }

    /// The same, and so many others after it that it is not wanted back soon.
    fn store_long_ago(&self, page: PageIndex) {
        self.store(page);
        (NR_PAGES..NR_PAGES + NR_OTHERS).for_each(|other| self.store(other));
    }

    /// An access that traps. A machine may have a page trap twice, and let the program go on before
    /// the second trap is resolved. Those of a mapping are resolved one after the other: when one
    /// on another page is, it is done.
    fn trap(&self, page: PageIndex) {
        let vma = self.mapping.vma();
        if vma.load_settled(page).is_mapped() {
            self.advise(page, Advice::Cold);
        }
        assert!(!vma.load_settled(page).is_mapped(), "page {page}");
        read_page(&*self.mapping, page);
        let is_new = |page: &PageIndex| vma.page_state(*page) == State::Empty;
        let last = (vma.nr_pages() - NR_LAST..vma.nr_pages()).find(is_new);
        read_page(&*self.mapping, last.expect("a page for each trap"));
        vma.load_settled(page);
    }

    /// The front hand comes by once.
    fn pass(&self, pages: PageRun) {
        let vma = self.mapping.vma();
        vma.detach_window(pages, Effort::Worker, Youth::Counts);
    }

    fn nr_active(&self) -> u64 {
        self.world.memcg.domain.nr_active()
    }
}

/// Each way to use a page, so that it is seen. What is done under a pin is one use with it.
const USES: [Step; 6] = [
    ("a guard", |stage, page| {
        drop(stage.pin(page, Access::Write));
    }),
    ("an operation on a guard", |stage, page| {
        let guard = stage.pin(page, Access::Write);
        let operation = stage.pin(page, Access::Write);
        drop(guard);
        drop(operation);
    }),
    ("a translation", |stage, page| stage.translate(page)),
    ("a pin of a device", |stage, page| {
        let memory = Arc::clone(stage.mapping.vma()) as Arc<dyn DeviceMemory>;
        let pinned = memory.pin("device", PageRun::single(page), Access::Write);
        stage.translate(page);
        drop(pinned.expect("a frame"));
    }),
    ("a lock", |stage, page| {
        let lock = stage.mapping.vma().mlock(PageRun::single(page));
        drop(lock.expect("a frame"));
    }),
    // Nobody sees an access to a page that is there: it stands by before.
    ("a trap", |stage, page| stage.trap(page)),
];

/// Each way in which a page comes that nobody has used since.
const STARTS: [Step; 3] = [
    ("from nothing", |_, _| ()),
    ("from the store", |stage, page| stage.store_long_ago(page)),
    ("ahead", |stage, page| {
        stage.store_long_ago(page);
        stage.advise(page, Advice::WillNeed);
        assert_eq!(stage.mapping.vma().page_state(page), State::Resident);
    }),
];

/// What was used once goes when the hand comes by, and what was used twice the next time.
#[track_caller]
fn check(machine: &dyn Machine, (start, begin): Step, (way, use_it): Step) {
    let stage = Stage::new(machine);
    let pages = PageRun::new(0, 2);
    pages.pages().for_each(|page| begin(&stage, page));
    for page in [0, 1, 1] {
        use_it(&stage, page);
    }
    for expected in [
        [State::Standby, State::Resident],
        [State::Standby, State::Standby],
    ] {
        stage.pass(pages);
        let found = [0, 1].map(|page| stage.mapping.vma().pages.load(page));
        let states = found.map(|word| word.state());
        assert_eq!(states, expected, "{start}, by {way}: {found:?}");
    }
}

pub(super) fn what_is_used_once_goes_first(machine: &dyn Machine) {
    for start in STARTS {
        for way in USES {
            check(machine, start, way);
        }
    }
}

/// Brings a page back so soon that it is active.
fn activate(stage: &Stage<'_>, page: PageIndex) {
    stage.store(page);
    drop(stage.pin(page, Access::Read));
    let word = stage.mapping.vma().pages.load(page);
    assert!(word.is_active() && !word.is_dirty(), "{word:?}");
}

/// Of active pages the one that is used stays: the other is inactive after a round, and goes in the
/// next.
pub(super) fn active_pages_stay_while_they_are_used(machine: &dyn Machine) {
    let stage = Stage::new(machine);
    let (vma, pages) = (stage.mapping.vma(), PageRun::new(0, 2));
    // Most pages are not active.
    (NR_PAGES..NR_PAGES + NR_OTHERS).for_each(|other| write_page(&*stage.mapping, other, &[1]));
    pages.pages().for_each(|page| activate(&stage, page));
    let used = || drop(stage.pin(0, Access::Read));
    for other in [State::Resident, State::Standby] {
        used();
        stage.pass(pages);
        let states = [0, 1].map(|page| vma.page_state(page));
        assert_eq!((states, stage.nr_active()), ([State::Resident, other], 1));
    }
    for expected in [State::Resident, State::Standby] {
        stage.pass(pages);
        assert_eq!((vma.page_state(0), stage.nr_active()), (expected, 0));
    }
}

/// That a page is active ends: when too many are, when it is locked, and when it is stored.
pub(super) fn no_page_is_active_for_ever(machine: &dyn Machine) {
    let stage = Stage::new(machine);
    let (vma, pages) = (stage.mapping.vma(), PageRun::new(0, NR_PAGES));
    pages.pages().for_each(|page| activate(&stage, page));
    assert_eq!(stage.nr_active(), u64::from(NR_PAGES));
    (0..3).for_each(|_| stage.pass(pages));
    let is_left = |page: &PageIndex| vma.pages.load(*page).is_mapped();
    let nr_left = pages.pages().filter(is_left).count();
    assert_eq!((nr_left, stage.nr_active()), (0, 0));

    activate(&stage, 0);
    let lock = vma.mlock(PageRun::single(0)).expect("a frame");
    assert_eq!(stage.nr_active(), 0, "no hand looks at it");
    drop(lock);
    assert_eq!(stage.nr_active(), 0);

    activate(&stage, 1);
    // Something else takes it away: the copy in the store is good.
    vma.primary().zap(PageRun::single(1)).expect("it is there");
    let mut byte = [0];
    let read = stage.mapping.read(offset_of(1), &mut byte);
    read.expect("the copy");
    assert!(!vma.load_settled(1).is_active());
    assert_eq!((byte[0], stage.nr_active()), (2, 0));
}
