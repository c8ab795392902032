//! A program for teardown tests: takes memory, and never gives any back.
//!
//! ```text
//! pinless teardown -- target/debug/examples/leaker
//! ```
//!
//! Without arguments it takes memory until it is killed. With a number, it takes that many MiB,
//! says so (a line feed into the descriptor `PINLESS_READY_FD`, if there is one), and waits for
//! ever; with the word `end` behind the number it ends.

use std::hint::black_box;

const MIB: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let nr_mib = match args.next() {
        Some(number) => number.parse()?,
        None => usize::MAX,
    };
    let mut taken = Vec::new();
    while taken.len() < nr_mib {
        taken.push(black_box(vec![1_u8; MIB]));
    }
    if let Ok(fd) = std::env::var("PINLESS_READY_FD") {
        std::fs::write(format!("/proc/self/fd/{fd}"), "\n")?;
    }
    if args.next().as_deref() == Some("end") {
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}
