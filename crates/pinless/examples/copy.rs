//! For storage: a file is copied by io_uring through managed buffers that reclaim may take back.
//!
//! ```text
//! cargo run --release -p pinless --example copy -- FROM TO
//! ```
//!
//! The buffers are registered with the kernel, as fixed buffers. An operation in flight holds its
//! pages; between operations they can be reclaimed, and the registration is made anew when it is
//! needed. So the buffers may be larger than the budget.

#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use pinless::Pinless;
use pinless::io_uring::{Kind, Ring};
use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;

const BUDGET: u64 = 1 << 20;
const BUFFERS: u64 = 4 << 20;
const CHUNK: u64 = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &paths[..] else {
        return Err("say which file to copy, and where to: copy FROM TO".into());
    };
    let (from, to) = (File::open(from)?, File::create(to)?);
    let len = from.metadata()?.len();
    let pinless = Pinless::builder(BUDGET).build()?;
    let mm = pinless.new_mm("copy");
    let buffers = pinless.map(&mm, BUFFERS)?;
    let ring = Ring::new(32, 64, Kind::Shared)?;
    let area = buffers.attach_to(&ring)?;
    for offset in (0..len).step_by(CHUNK as usize) {
        let bytes = CHUNK.min(len - offset);
        let place = offset % BUFFERS;
        ring.read_fixed(&area, from.as_fd(), offset, place..place + bytes)?;
        ring.write_fixed(&area, to.as_fd(), offset, place..place + bytes)?;
    }
    to.sync_all()?;
    println!("{len} bytes through {} KiB of buffers", BUFFERS >> 10);
    println!("{:?}", ring.stats());
    Ok(())
}
