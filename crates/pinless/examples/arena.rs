//! For databases and arenas: a heap of records under a hard budget, whose owner may be killed.
//!
//! ```text
//! cargo run --release -p pinless --example arena
//! ```
//!
//! Records are appended to an arena of four times the budget and found again by their number. An
//! arena that asks for more than budget and store can hold is killed, and ends in an error; the one
//! beside it goes on.

#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use pinless::{
    AccessError, Advice, FaultError, MapError, Mapping, Mm, MmHandle, PAGE_SIZE, PageRun, Pinless,
};
use std::error::Error;
use std::sync::Arc;

const BUDGET: u64 = 8 << 20;
const RECORD_BYTES: usize = 256;

/// Records of one length, one after the other.
struct Arena {
    memory: Mapping,
    nr_records: u64,
}

impl Arena {
    fn new(pinless: &Pinless, mm: &Arc<Mm>, len_bytes: u64) -> Result<Self, MapError> {
        Ok(Self {
            memory: pinless.map(mm, len_bytes)?,
            nr_records: 0,
        })
    }

    fn push(&mut self, record: &[u8; RECORD_BYTES]) -> Result<u64, AccessError> {
        let number = self.nr_records;
        self.memory.write_at(number * RECORD_BYTES as u64, record)?;
        self.nr_records += 1;
        Ok(number)
    }

    fn get(&self, number: u64) -> Result<[u8; RECORD_BYTES], AccessError> {
        let mut record = [0; RECORD_BYTES];
        self.memory
            .read_at(number * RECORD_BYTES as u64, &mut record)?;
        Ok(record)
    }

    /// Forgets everything: the next one to use the memory finds zeros.
    fn clear(&mut self) -> Result<(), pinless::AdviseError> {
        self.nr_records = 0;
        self.memory.advise(self.memory.all(), Advice::DontNeed)
    }
}

/// Text compresses well.
fn text(number: u64) -> [u8; RECORD_BYTES] {
    let mut record = [b' '; RECORD_BYTES];
    let words = format!("record {number} of an arena that is larger than memory");
    record[..words.len()].copy_from_slice(words.as_bytes());
    record
}

/// Noise does not.
fn noise(number: u64) -> [u8; RECORD_BYTES] {
    let mut state = number + 1;
    core::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let pinless = Pinless::builder(BUDGET).build()?;
    let good: MmHandle = pinless.new_mm("good");
    good.set_oom_score_adj(-1000); // never the one to go
    let mut arena = Arena::new(&pinless, &good, 4 * BUDGET)?;
    let capacity = 4 * BUDGET / RECORD_BYTES as u64;
    for number in 0..capacity {
        arena.push(&text(number))?;
    }
    for number in (0..capacity).step_by(997) {
        assert_eq!(arena.get(number)?, text(number));
    }
    let memcg = pinless.memcg();
    println!(
        "{} MiB of records in at most {} MiB of frames, and {} KiB compressed",
        (4 * BUDGET) >> 20,
        (memcg.frames().peak() * PAGE_SIZE as u64) >> 20,
        memcg.zswap().bytes() >> 10
    );
    arena.memory.advise(PageRun::new(0, 16), Advice::WillNeed)?;

    // Noise that budget and store cannot hold: this arena is the one to go.
    let greedy = pinless.new_mm("greedy");
    let mut leak = Arena::new(&pinless, &greedy, 16 * BUDGET)?;
    let end = (0..).find_map(|number| leak.push(&noise(number)).err());
    let end = end.ok_or("it ends in an error")?;
    println!("greedy: {end}");
    assert!(matches!(
        end,
        AccessError::Fault {
            error: FaultError::Killed,
            ..
        }
    ));
    println!("{}", memcg.oom_reports()[0]);
    assert_eq!(arena.get(4711)?, text(4711), "the other one is unharmed");
    arena.clear()?;
    Ok(())
}
