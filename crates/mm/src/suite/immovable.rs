//! A device that can let go of nothing, and so is given pinned pages only.

use super::{Machine, World, read_page, write_page};
use crate::addr::PageRun;
use crate::bus::{Bus, BusAddr};
use crate::gfp::Gfp;
use crate::mm_struct::{Advice, AdviseError, Pin};
use crate::mmu_notifier::{Attached, Immovable};
use crate::page::State;
use crate::primary_mmu::Access;
use lockdep::sync::Mutex;
use std::sync::Arc;

/// Reads out pages all the time, through the translations of when it was given them.
struct Scanout {
    lines: Mutex<Vec<BusAddr>>,
}

impl Scanout {
    /// The first byte of each page that it was given.
    fn shown(&self, pages: &Pin) -> Vec<u8> {
        let show = |&at: &BusAddr| {
            let mut byte = [0];
            let read = pages.vma().read(at, 0, &mut byte);
            read.expect("a pinned page does not move");
            byte[0]
        };
        self.lines.lock().iter().map(show).collect()
    }
}

impl Immovable for Scanout {
    fn name(&self) -> &str {
        "scanout"
    }

    fn attach(&self, pages: &Pin) {
        let nowhere = BusAddr {
            page: 0,
            generation: 0,
            access: Access::Read,
        };
        let mut lines = vec![nowhere; pages.run().nr as usize];
        let found = pages
            .vma()
            .fault_range(pages.run(), Access::Read, &mut lines);
        found.expect("pinned pages are resident");
        *self.lines.lock() = lines;
    }

    fn detach(&self, pages: &Pin) {
        // They are still pinned: who takes its time here loses nothing.
        let refused = pages.vma().advise(pages.run(), Advice::DontNeed);
        assert!(
            matches!(refused, Err(AdviseError::Pinned { .. })),
            "{refused:?}"
        );
        self.lines.lock().clear();
    }
}

/// The device is never told, never stale, and let go of before its pages are.
pub(super) fn who_can_let_go_of_nothing_has_pinned_pages(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("scanout");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    for page in 0..16 {
        write_page(&*mapping, page, &[page as u8 + 1]);
    }
    let run = PageRun::new(4, 4);
    let scanout = Arc::new(Scanout {
        lines: Mutex::new("scanout.lines", Vec::new()),
    });
    let pin = vma.pin(run, Access::Read, Gfp::Kernel).expect("resident");
    let attached = Attached::new(Arc::clone(&scanout), pin);
    let told = world.memcg.pin_holders();
    let told: Vec<_> = told.iter().map(|by| (&*by.holder, by.pages)).collect();
    assert_eq!(told, [("scanout", 4)], "they are the device's now");
    assert!(mm.notifiers().is_empty(), "there is nothing to tell it");
    vma.advise(vma.all(), Advice::PageOut)
        .expect("pinned pages are passed over");
    for page in 0..16 {
        let is_held = run.pages().any(|held| held == page);
        let state = if is_held {
            State::Resident
        } else {
            State::Swapped
        };
        assert_eq!(vma.page_state(page), state, "page {page}");
    }
    write_page(&*mapping, 5, &[99]);
    assert_eq!(scanout.shown(attached.pages()), [5, 99, 7, 8]);
    let text = format!("{attached:?}");
    assert!(text.starts_with("Attached") && text.contains("pages"));
    drop(attached);
    assert!(scanout.lines.lock().is_empty(), "it was told to stop");
    assert_eq!(mm.nr_pins(), 0);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nothing is pinned");
    assert_eq!(vma.page_state(5), State::Swapped);
    assert_eq!(read_page(&*mapping, 5)[0], 99);
}
