//! Many random operations against a model, with reclaim at a small limit.

use crate::field::{Field, fd, file, ring};
use fastrand::Rng;
use pinless_host::io_uring::{Area, Kind, OpError, Ring};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::mm_struct::{Advice, AdviseError};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages of each player, of which it uses the same bytes of the file.
const PAGES: u32 = 96;

/// The longest transfer.
const BYTES_MAX: u64 = 5 * PAGE;

/// One thread's share of the mapping and of the file, and what should be in them.
struct Player<'a> {
    field: &'a Field,
    ring: &'a Ring,
    area: &'a Area,
    file: &'a File,
    base: u64,
    rng: Rng,
    memory: Vec<u8>,
    stored: Vec<u8>,
    checked: u64,
}

impl Player<'_> {
    fn some_bytes(&mut self) -> Range<usize> {
        let len = 1 + self.rng.u64(..BYTES_MAX);
        let start = self.rng.u64(..u64::from(PAGES) * PAGE - len);
        start as usize..(start + len) as usize
    }

    /// What the owner of a ring does before it touches memory itself.
    fn before_touching(&self) {
        if self.ring.kind() == Kind::SingleIssuer {
            self.ring.give_back_idle();
        }
    }

    fn step(&mut self) {
        let bytes = self.some_bytes();
        let (at, end) = (self.base + bytes.start as u64, self.base + bytes.end as u64);
        match self.rng.u64(..16) {
            0..5 => {
                self.ring
                    .read_fixed(self.area, fd(self.file), at, at..end)
                    .expect("a whole read");
                self.memory[bytes.clone()].copy_from_slice(&self.stored[bytes]);
            }
            5..9 => {
                self.ring
                    .write_fixed(self.area, fd(self.file), at, at..end)
                    .expect("a whole write");
                self.stored[bytes.clone()].copy_from_slice(&self.memory[bytes]);
            }
            9..12 => {
                let salt = self.rng.u64(..);
                let new: Vec<u8> = (0..bytes.len() as u64)
                    .map(|i| (salt ^ (salt >> 32) ^ (i / 16)) as u8)
                    .collect();
                self.before_touching();
                self.field.write(at, &new);
                self.memory[bytes].copy_from_slice(&new);
            }
            12..14 => self.check(bytes),
            14 => {
                let run = self.whole_pages(&bytes);
                self.field.page_out(run);
            }
            _ => self.discard(bytes),
        }
    }

    fn discard(&mut self, bytes: Range<usize>) {
        let run = self.whole_pages(&bytes);
        match self.field.vma.advise(run, Advice::DontNeed) {
            Ok(()) => {
                let start = (u64::from(run.first) * PAGE - self.base) as usize;
                self.memory[start..start + run.len_bytes()].fill(0);
            }
            // The pin of an operation that is over goes with its slot, which another thread may
            // still be about to see.
            Err(AdviseError::Pinned { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn whole_pages(&self, bytes: &Range<usize>) -> PageRun {
        let first = (self.base + bytes.start as u64) / PAGE;
        let end = (self.base + bytes.end as u64).div_ceil(PAGE);
        PageRun::new(first as u32, (end - first) as u32)
    }

    fn check(&mut self, bytes: Range<usize>) {
        let at = self.base + bytes.start as u64;
        self.before_touching();
        let found = self.field.read(at..at + bytes.len() as u64);
        let wrong = found
            .iter()
            .zip(&self.memory[bytes.clone()])
            .position(|(a, b)| a != b);
        assert_eq!(
            wrong, None,
            "bytes {bytes:?} of the share at {:#x}",
            self.base
        );
        self.checked += bytes.len() as u64;
    }

    fn check_all(&mut self) {
        self.check(0..PAGES as usize * PAGE_SIZE);
        let mut found = vec![0; self.stored.len()];
        self.file
            .read_exact_at(&mut found, self.base)
            .expect("there");
        assert!(found == self.stored, "the file's share at {:#x}", self.base);
    }
}

fn play(kind: Kind, players: u64, frames: u64, steps: u32) {
    let nr_pages = PAGES * players as u32;
    let (Some(field), Some(ring)) = (Field::new(nr_pages, frames), ring(8, 24, kind)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    let share = u64::from(PAGES) * PAGE;
    let file = file();
    file.set_len(share * players).expect("room");
    let run = |number: u64| {
        let mut player = Player {
            field: &field,
            ring: &ring,
            area: &area,
            file: &file,
            base: number * share,
            rng: Rng::with_seed(number + 1),
            memory: vec![0; share as usize],
            stored: vec![0; share as usize],
            checked: 0,
        };
        for _ in 0..steps {
            player.step();
        }
        player.check_all();
        player.checked
    };
    let checked: u64 = if kind == Kind::SingleIssuer {
        run(0)
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..players).map(|n| scope.spawn(move || run(n))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .sum()
        })
    };
    let (stats, stat) = (ring.stats(), field.memcg.stat());
    assert!(checked >= players * share, "{checked} bytes were checked");
    assert_eq!(
        (stats.op_errors, stats.strays, stats.registration_errors),
        (0, 0, 0)
    );
    assert_eq!(stats.ops, stats.hits + stats.registrations + stats.bypasses);
    assert_eq!(
        (stat.pages_lost, stat.foreign_changes, stat.reclaim_stuck),
        (0, 0, 0)
    );
    assert!(stat.pgsteal > 0 && stats.revocations > 0);
    assert!(!field.memcg.frames().is_exceeded());
    ring.poll();
    lockdep::sync::spin_wait("test.unpinned", 0, || field.mm.nr_pins() == 0);
}

fn steps() -> u32 {
    let asked = std::env::var("PINLESS_IO_URING_STEPS").ok();
    asked.and_then(|steps| steps.parse().ok()).unwrap_or(4000)
}

#[test]
fn random_transfers_agree_with_a_model() {
    play(Kind::Shared, 3, 64, steps());
}

#[test]
fn random_transfers_on_an_owned_ring_agree_with_a_model() {
    play(Kind::SingleIssuer, 1, 40, steps());
}

/// Everything at once on one run of pages: four threads, each in its own words of every page.
#[test]
fn threads_that_share_slots_do_not_disturb_each_other() {
    let (Some(field), Some(ring)) = (Field::new(64, 24), ring(8, 4, Kind::Shared)) else {
        return;
    };
    let area = ring.attach(&field.mapping, &field.vma).expect("the same");
    std::thread::scope(|scope| {
        for part in 0..4_u64 {
            let (field, ring, area) = (&field, &ring, &area);
            scope.spawn(move || {
                let file = file();
                let (mut rng, len) = (Rng::with_seed(part), PAGE / 4);
                let mut wrote = [0; 64];
                for round in 1..=steps() / 8 {
                    let page = rng.u64(..64);
                    let at = page * PAGE + part * len;
                    let found = field.read(at..at + len);
                    assert_eq!(found, vec![wrote[page as usize]; len as usize]);
                    let byte = round as u8;
                    file.write_all_at(&vec![byte; len as usize], 0)
                        .expect("room");
                    match ring.read_fixed(area, fd(&file), 0, at..at + len) {
                        Ok(()) => wrote[page as usize] = byte,
                        Err(OpError::Full { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(ring.stats().strays, 0);
    assert_eq!(field.memcg.stat().pages_lost, 0);
}
