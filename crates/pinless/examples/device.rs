//! For device runtimes: a device with a translation table of its own, and its notifier.
//!
//! ```text
//! cargo run --release -p pinless --example device
//! ```
//!
//! The device adds up what it finds in managed memory, through translations that it keeps. It pins
//! nothing. Before a page is taken away its notifier is called, and it forgets the translation; the
//! next access fetches a new one. A translation that it kept for too long would be convicted: see
//! [`pinless::StaleDma`].

#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use pinless::mmu_notifier::{Context, IntervalNotifier, IntervalSubscription, Notifier, Range};
use pinless::sync::Mutex;
use pinless::{
    Access, Bus, BusAddr, FaultError, Mapping, PAGE_SIZE, PageIndex, PageRun, Pinless, Vaddr,
};
use std::error::Error;
use std::sync::Arc;

/// A translation for each page of the mapping, if the device has one.
type Table = Vec<Option<BusAddr>>;

/// What reclaim talks to.
struct Translations {
    base: Vaddr,
    table: Mutex<Table>,
}

impl Notifier for Translations {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        // Taken, or only tried: the context knows whether this call may wait.
        let mut table = cx.lock(&self.table)?;
        let page = |address: Vaddr| (address.0.saturating_sub(self.base.0)) as usize / PAGE_SIZE;
        let (first, end) = (page(range.start), page(range.end).min(table.len()));
        table[first..end].fill(None);
        Ok(())
    }
}

impl IntervalNotifier for Translations {
    type Lock = Mutex<Table>;

    fn lock(&self) -> &Self::Lock {
        &self.table
    }
}

/// The device.
struct Adder<'a> {
    memory: &'a Mapping,
    subscription: IntervalSubscription<Translations>,
    nr_misses: u64,
}

impl<'a> Adder<'a> {
    fn new(memory: &'a Mapping) -> Result<Self, Box<dyn Error>> {
        let translations = Translations {
            base: memory.vma().base(),
            table: Mutex::new("adder.table", vec![None; memory.nr_pages() as usize]),
        };
        let translations = Arc::new(translations);
        Ok(Self {
            memory,
            subscription: memory.subscribe_interval("adder", memory.all(), translations)?,
            nr_misses: 0,
        })
    }

    /// Reads the first word of `page`.
    fn read(&mut self, page: PageIndex) -> Result<u64, Box<dyn Error>> {
        loop {
            // Under the lock: the translation stays valid until it is let go.
            let table = self.subscription.lock();
            if let Some(at) = table[page as usize] {
                let mut word = [0; 8];
                self.memory.vma().read(at, 0, &mut word)?;
                return Ok(u64::from_ne_bytes(word));
            }
            drop(table);
            self.fetch(page)?;
        }
    }

    /// Fetches a translation, without the lock: a page may have to be made resident for it.
    fn fetch(&mut self, page: PageIndex) -> Result<(), FaultError> {
        self.nr_misses += 1;
        let access = Access::Read;
        let mut at = [BusAddr {
            page,
            generation: 0,
            access,
        }];
        loop {
            let seen = self.subscription.read_begin();
            let run = PageRun::single(page);
            self.memory.vma().fault_range(run, access, &mut at)?;
            let mut table = self.subscription.lock();
            // If the page was taken away since `read_begin`, the translation is worth nothing.
            if !self.subscription.read_retry(seen, &table) {
                table[page as usize] = Some(at[0]);
                return Ok(());
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pinless = Pinless::builder(1 << 20).build()?;
    let mm = pinless.new_mm("device");
    let memory = pinless.map(&mm, 4 << 20)?;
    let nr_pages = memory.nr_pages();
    for page in 0..nr_pages {
        memory.store_u64(u64::from(page) * PAGE_SIZE as u64, page.into())?;
    }
    let mut device = Adder::new(&memory)?;
    for round in 0..4 {
        let mut sum = 0;
        for page in 0..nr_pages {
            sum += device.read(page)?;
        }
        assert_eq!(sum, u64::from(nr_pages) * u64::from(nr_pages - 1) / 2);
        println!(
            "round {round}: sum {sum}, {} misses so far",
            device.nr_misses
        );
    }
    assert_eq!(pinless.memcg().stat().stale_dma, 0);
    Ok(())
}
