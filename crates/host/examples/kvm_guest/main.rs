//! A KVM guest that writes all of its memory: a real user of MMU notifiers, for teardown tests.
//!
//! ```text
//! pinless teardown --limit 64M -- target/debug/examples/kvm_guest 128
//! pinless teardown --limit 16M --limit-when ready-fd -- target/debug/examples/kvm_guest 32 128
//! ```
//!
//! Arguments: how many MiB the guest writes; if a second number follows, it says so at that
//! point (a line feed into the descriptor `PINLESS_READY_FD`), and goes on to this many MiB. Then
//! it waits for ever.

use std::error::Error;

#[cfg(target_arch = "x86_64")]
mod guest;

/// The largest guest: its memory ends where devices would begin.
const MIB_MAX: u32 = 3072;

fn main() -> Result<(), Box<dyn Error>> {
    let sizes = std::env::args().skip(1).map(|arg| arg.parse::<u32>());
    let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
    let (first, last) = match sizes[..] {
        [only] => (only, only),
        [first, last] if first <= last => (first, last),
        _ => return Err("say how many MiB: kvm_guest 128, or kvm_guest 32 128".into()),
    };
    if first == 0 || last > MIB_MAX {
        return Err(format!("a guest has 1 to {MIB_MAX} MiB").into());
    }
    run(first << 20, last << 20)
}

#[cfg(target_arch = "x86_64")]
fn run(first: u32, last: u32) -> Result<(), Box<dyn Error>> {
    let mut guest = guest::Guest::new(last)?;
    guest.write_pages(guest::DATA, first)?;
    if last > first {
        if let Ok(fd) = std::env::var("PINLESS_READY_FD") {
            std::fs::write(format!("/proc/self/fd/{fd}"), "\n")?;
        }
        guest.write_pages(first, last)?;
    }
    loop {
        std::thread::park();
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_first: u32, _last: u32) -> Result<(), Box<dyn Error>> {
    Err("the guest's code is for x86-64".into())
}
