//! A tenant: an address space with one mapping, a thread that uses it, and what it knows of each
//! page.

use super::super::JobError;
use super::super::contents::{self, Contents, PAGE_BYTES, Rng};
use super::super::figures::times;
use super::{NR_TENANTS, Stage, TENANT_BYTES};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use pinless::{
    Access, AccessError, Advice, FaultError, FaultMode, Guard, GuardError, MapOptions, Mapping,
    MmHandle, PageRun, attach_thread,
};
use pinless_mm::histogram::Histogram;
use std::time::Instant;

const NR_PAGES: u32 = (TENANT_BYTES / PAGE_BYTES as u64) as u32;

/// The share of the pages that three of four operations go to.
const HOT_SHARE: u32 = 8;

/// How a tenant's memory is made and reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    mode: FaultMode,
    is_shared: bool,
    by_guard: bool,
}

impl Kind {
    /// That of the tenant with this number: each there is, in turn.
    pub(super) fn of(index: u32) -> Self {
        let by_guard = index % 4 == 2;
        Self {
            mode: match index % 2 {
                0 => FaultMode::Service,
                _ => FaultMode::InThread,
            },
            is_shared: index >= NR_TENANTS / 2,
            by_guard,
        }
    }

    fn options(self) -> MapOptions {
        let options = MapOptions::of_pages(NR_PAGES).fault_mode(self.mode);
        match self.is_shared {
            true => options.shared(),
            false => options,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = if self.is_shared { "shared" } else { "private" };
        match (self.by_guard, self.mode) {
            (true, _) => write!(f, "{memory}, guard"),
            (_, FaultMode::Service) => write!(f, "{memory}, service"),
            (_, FaultMode::InThread) => write!(f, "{memory}, in thread"),
        }
    }
}

/// What a tenant did.
#[derive(Default)]
pub(super) struct Tally {
    read: AtomicU64,
    written: AtomicU64,
    given_up: AtomicU64,
    pinned: AtomicU64,
    unmapped: AtomicU64,
    killed: AtomicU64,
    took_ns: Histogram,
}

impl Tally {
    /// What the tenant has never done.
    pub(super) fn missing(&self) -> Option<&'static str> {
        let done = [
            (&self.read, "a tenant that compared nothing"),
            (&self.written, "a tenant that wrote nothing"),
            (&self.given_up, "a tenant that gave nothing up"),
            (&self.pinned, "a tenant that pinned nothing"),
            (&self.unmapped, "a tenant that unmapped nothing"),
        ];
        let mut missing = done
            .iter()
            .filter(|(nr, _)| nr.load(Ordering::Relaxed) == 0);
        missing.next().map(|(_, what)| *what)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} pages compared, {} written, {} given up, {} pins, unmapped {} times, killed {} \
             times; {}",
            load(&self.read),
            load(&self.written),
            load(&self.given_up),
            load(&self.pinned),
            load(&self.unmapped),
            load(&self.killed),
            times(&self.took_ns.summary())
        )
    }
}

/// Why an operation did not take place.
enum Stopped {
    /// The address space was killed: everything in it is gone.
    Killed,
    Failed(JobError),
}

impl Stopped {
    fn of(error: &AccessError) -> Self {
        match error {
            AccessError::Fault {
                error: FaultError::Killed,
                ..
            } => Self::Killed,
            error => Self::Failed(JobError::of("an access failed", error)),
        }
    }

    fn of_guard(error: &GuardError, home: &Home) -> Self {
        match home.mm.is_killed() {
            true => Self::Killed,
            false => Self::Failed(JobError::of("a guard failed", error)),
        }
    }
}

/// An address space and its memory. What uses the memory comes first, to be dropped first.
struct Home {
    guards: Vec<Guard>,
    mapping: Mapping,
    mm: MmHandle,
    /// The contents of each page follow from this; zero is one that was never written.
    versions: Vec<u32>,
}

/// A tenant and its thread.
pub(super) struct Tenant<'a> {
    stage: &'a Stage,
    index: u32,
    kind: Kind,
    rng: Rng,
    tally: &'a Tally,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_BYTES as u64
}

impl<'a> Tenant<'a> {
    pub(super) fn new(stage: &'a Stage, index: u32, tally: &'a Tally) -> Self {
        Self {
            stage,
            index,
            kind: Kind::of(index),
            rng: Rng(stage.seed << 8 | u64::from(index)),
            tally,
        }
    }

    /// One address space after the other, until it is over.
    pub(super) fn live(mut self) {
        let attached = attach_thread();
        if let Err(error) = &attached {
            return self.stage.fail(JobError::of("attach a thread", error));
        }
        while !self.stage.is_over() {
            match self.live_once() {
                Ok(()) => add(&self.tally.unmapped),
                Err(Stopped::Killed) => add(&self.tally.killed),
                Err(Stopped::Failed(JobError(why))) => {
                    let why = format!("{} (tenant {}): {why}", self.kind, self.index);
                    return self.stage.fail(JobError(why));
                }
            }
        }
    }

    /// From the first page to the unmapping.
    fn live_once(&mut self) -> Result<(), Stopped> {
        let pinless = &self.stage.pinless;
        let memcg = self.stage.home_of(self.index);
        let mm = pinless.new_mm_in(memcg, memcg.name());
        let living = &self.stage.living[self.index as usize];
        *living.lock() = Some(mm.share());
        let mapped = pinless.map(&mm, self.kind.options());
        let mut home = Home {
            guards: Vec::new(),
            mapping: mapped.map_err(|error| match mm.is_killed() {
                true => Stopped::Killed,
                false => Stopped::Failed(JobError::of("map", error)),
            })?,
            mm,
            versions: vec![0; NR_PAGES as usize],
        };
        let nr_operations = 20_000 + self.rng.below(200_000);
        let mut lived = Ok(());
        for _ in 0..nr_operations {
            if self.stage.is_over() {
                break;
            }
            lived = self.operate(&mut home);
            if lived.is_err() {
                break;
            }
        }
        home.guards.clear();
        lived = lived.and_then(|()| self.compare_all(&home));
        *living.lock() = None;
        lived
    }

    fn operate(&mut self, home: &mut Home) -> Result<(), Stopped> {
        let hot = if self.rng.below(4) > 0 { HOT_SHARE } else { 1 };
        let page = self.rng.below(u64::from(NR_PAGES / hot)) as u32;
        let began = Instant::now();
        match self.rng.below(64) {
            0 => self.give_up(home, page)?,
            1 => self.page_out(home, page),
            2 => self.pin(home, page)?,
            3..=24 => self.write(home, page)?,
            _ => self.compare(home, page)?,
        }
        self.tally.took_ns.record(began.elapsed().as_nanos() as u64);
        Ok(())
    }

    fn seed_of(&self, home: &Home, page: u32) -> u64 {
        let version = home.versions[page as usize];
        u64::from(self.index) << 56 | u64::from(page) << 32 | u64::from(version)
    }

    fn write(&mut self, home: &mut Home, page: u32) -> Result<(), Stopped> {
        home.versions[page as usize] += 1;
        let mut contents: Contents = [0; PAGE_BYTES];
        contents::fill(self.seed_of(home, page), &mut contents);
        let written = match self.kind.by_guard {
            true => {
                let run = PageRun::single(page);
                let guard = home.mapping.guard(run, Access::Write);
                let guard = guard.map_err(|error| Stopped::of_guard(&error, home))?;
                guard.write(0, &contents)
            }
            false => home.mapping.write_at(offset_of(page), &contents),
        };
        written.map_err(|error| Stopped::of(&error))?;
        add(&self.tally.written);
        Ok(())
    }

    fn compare(&self, home: &Home, page: u32) -> Result<(), Stopped> {
        let (mut found, mut expected): (Contents, Contents) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        let read = match self.kind.by_guard {
            true => {
                let run = PageRun::single(page);
                let guard = home.mapping.guard(run, Access::Read);
                let guard = guard.map_err(|error| Stopped::of_guard(&error, home))?;
                guard.read(0, &mut found)
            }
            false => home.mapping.read_at(offset_of(page), &mut found),
        };
        read.map_err(|error| Stopped::of(&error))?;
        if home.versions[page as usize] > 0 {
            contents::fill(self.seed_of(home, page), &mut expected);
        }
        if found != expected {
            let what = format!("page {page} is not what was written");
            return Err(Stopped::Failed(JobError::of("lost", what)));
        }
        add(&self.tally.read);
        Ok(())
    }

    /// A few pages lose their contents, unless somebody has pinned one.
    fn give_up(&mut self, home: &mut Home, page: u32) -> Result<(), Stopped> {
        home.guards.clear();
        let nr = (1 + self.rng.below(32) as u32).min(NR_PAGES - page);
        let advised = home
            .mapping
            .advise(PageRun::new(page, nr), Advice::DontNeed);
        advised.map_err(|error| match home.mm.is_killed() {
            true => Stopped::Killed,
            false => Stopped::Failed(JobError::of("give pages up", error)),
        })?;
        home.versions[page as usize..(page + nr) as usize].fill(0);
        add(&self.tally.given_up);
        Ok(())
    }

    /// A hint: what refuses stays.
    fn page_out(&mut self, home: &Home, page: u32) {
        let nr = (1 + self.rng.below(64) as u32).min(NR_PAGES - page);
        let _ = home.mapping.advise(PageRun::new(page, nr), Advice::PageOut);
    }

    /// A few pages stay where they are until a few others do.
    fn pin(&mut self, home: &mut Home, page: u32) -> Result<(), Stopped> {
        if home.guards.len() >= 4 {
            drop(home.guards.remove(0));
        }
        let nr = (1 + self.rng.below(8) as u32).min(NR_PAGES - page);
        let guard = home.mapping.guard(PageRun::new(page, nr), Access::Read);
        let guard = guard.map_err(|error| Stopped::of_guard(&error, home))?;
        home.guards.push(guard);
        add(&self.tally.pinned);
        Ok(())
    }

    fn compare_all(&self, home: &Home) -> Result<(), Stopped> {
        (0..NR_PAGES).try_for_each(|page| self.compare(home, page))
    }
}
