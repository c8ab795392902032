//! `cargo xtask huge`: a mapping of many gigabytes under a limit of few.
//!
//! Each page is written, then pages are read at random, then all in order, and compared with what
//! was written. Nothing is lost or killed, the limit is never exceeded, and what is kept about the
//! pages is three thousandths of them at most.

use super::contents::{self, Contents, PAGE_BYTES, Rng};
use super::figures::{print_stores, resident_bytes};
use super::{JobError, exit};
use pinless::{Builder, FaultMode, MapOptions, Mapping, Pinless, attach_thread};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What is kept about pages, in thousandths of a percent of them, at most: 0.3 %.
const METADATA_MAX: u64 = 300;

/// Options of the job.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// GiB of managed memory
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1024))]
    gib: u64,

    /// GiB that may be in frames
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    limit_gib: u64,

    /// GiB that may be compressed
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=100))]
    store_gib: u64,

    /// Pages that are read at random
    #[arg(long, default_value_t = 1_000_000)]
    reads: u64,
}

/// Does it, and says how it went.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("huge", play(args))
}

fn play(args: &Args) -> Result<(), JobError> {
    let pinless = Builder::new(args.limit_gib << 30)
        .zswap_max(args.store_gib << 30)
        .fault_mode(FaultMode::InThread)
        .fault_deadline(Duration::from_secs(60))
        .build()
        .map_err(|error| JobError::of("set up", error))?;
    let _attached = attach_thread().map_err(|error| JobError::of("attach the thread", error))?;
    let mm = pinless.new_mm("huge");
    let memory = pinless.map(&mm, MapOptions::new(args.gib << 30));
    let memory = memory.map_err(|error| JobError::of("map", error))?;
    let all = 0..memory.nr_pages();
    println!("{} pages under a limit of {} GiB", all.end, args.limit_gib);
    phase("written", &memory, all.clone(), write)?;
    print_stores(pinless.memcg());
    println!(
        "  {} MiB of the process are resident",
        resident_bytes() >> 20
    );
    let mut rng = Rng(1);
    let at_random = (0..args.reads).map(|_| rng.below(u64::from(all.end)) as u32);
    phase("read at random", &memory, at_random, compare)?;
    phase("read in order", &memory, all, compare)?;
    print_stores(pinless.memcg());
    judge(&pinless, &memory)?;
    memory
        .unmap()
        .map_err(|error| JobError::of("unmap", error))?;
    let (frames, stored) = (
        pinless.memcg().frames().usage(),
        pinless.memcg().zswap().stats().stored_pages,
    );
    match (frames, stored) {
        (0, 0) => Ok(()),
        left => Err(JobError::of(
            "pages that were not given back",
            format!("{left:?}"),
        )),
    }
}

/// Works on pages one after the other, and says how long that took.
fn phase(
    what: &str,
    memory: &Mapping,
    pages: impl Iterator<Item = u32>,
    mut work: impl FnMut(&Mapping, u32) -> Result<(), JobError>,
) -> Result<(), JobError> {
    let (began, mut nr) = (Instant::now(), 0_u32);
    for page in pages {
        work(memory, page)?;
        nr += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    let us = seconds * 1e6 / f64::from(nr.max(1));
    println!("{nr} pages {what} in {seconds:.1} s, {us:.2} us each");
    Ok(())
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_BYTES as u64
}

fn write(memory: &Mapping, page: u32) -> Result<(), JobError> {
    let mut contents: Contents = [0; PAGE_BYTES];
    contents::fill(u64::from(page), &mut contents);
    let written = memory.write_at(offset_of(page), &contents);
    written.map_err(|error| JobError::of("write", error))
}

fn compare(memory: &Mapping, page: u32) -> Result<(), JobError> {
    let (mut found, mut expected): (Contents, Contents) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    let read = memory.read_at(offset_of(page), &mut found);
    read.map_err(|error| JobError::of("read", error))?;
    contents::fill(u64::from(page), &mut expected);
    match found == expected {
        true => Ok(()),
        false => Err(JobError::of(
            "lost",
            format!("page {page} has other contents"),
        )),
    }
}

fn judge(pinless: &Pinless, memory: &Mapping) -> Result<(), JobError> {
    let (memcg, stat) = (pinless.memcg(), pinless.memcg().stat());
    let metadata = memory.vma().metadata_bytes() as u64;
    let share = metadata * 100_000 / memory.len() as u64;
    println!(
        "metadata: {} KiB, 0.{share:03} % of what is managed",
        metadata >> 10
    );
    println!(
        "frames: {} at most of {}; OOM kills: {}",
        memcg.frames().peak(),
        memcg.frames().max(),
        stat.oom_kill
    );
    let wrong = [
        (share > METADATA_MAX, "more than 0.3 % of metadata"),
        (memcg.frames().is_exceeded(), "more frames than the limit"),
        (stat.oom_kill > 0, "somebody was killed"),
        (stat.pages_lost > 0, "pages were lost"),
    ];
    match wrong.into_iter().find(|&(is_wrong, _)| is_wrong) {
        None => Ok(()),
        Some((_, what)) => Err(JobError::of("did not hold", what)),
    }
}
