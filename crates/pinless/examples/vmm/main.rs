//! A small VMM: a guest with four times more memory than there is, until it is killed.
//!
//! ```text
//! cargo run --release -p pinless --example vmm -- 64 service 8 real
//! ```
//!
//! Arguments: MiB of guest memory, who resolves its faults (`service` or `in-thread`), how often
//! the guest writes all of its memory, and what the guest is (code in `real` mode, or a 64-bit
//! `program`). Meanwhile another thread has memory paged out. Then the address space is killed, and
//! the processor's loop ends.

#![expect(clippy::print_stdout, reason = "an example tells what it does")]

use pinless::{FaultMode, MapOptions, Mapping, Pinless};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_arch = "x86_64")]
mod guest;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mib, mode, passes, kind] = &args[..] else {
        return Err("say how much, who, how often and what: vmm 64 service 8 real".into());
    };
    let (len_bytes, mode) = (mib.parse::<u64>()? << 20, mode.parse::<FaultMode>()?);
    let pinless = Pinless::builder(len_bytes / 4).build()?;
    println!("{}", pinless.capabilities());
    let mm = pinless.new_mm("guest");
    let is_chosen = Arc::new(AtomicBool::new(false));
    let chosen = Arc::clone(&is_chosen);
    mm.set_on_kill(move || chosen.store(true, Ordering::Relaxed));
    let memory = pinless.map(&mm, MapOptions::new(len_bytes).fault_mode(mode))?;
    run(&pinless, memory, passes.parse()?, kind)?;
    println!("told of the kill: {}", is_chosen.load(Ordering::Relaxed));
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn run(pinless: &Pinless, memory: Mapping, passes: u32, kind: &str) -> Result<(), Box<dyn Error>> {
    use guest::{Ended, FIRST_PAGE, Machine, Pass};
    use pinless::{Advice, PAGE_SIZE, PageRun, attach_thread};

    // Where faults are resolved in the thread, this one also touches the memory.
    let _attached = attach_thread()?;
    let machine = Machine::new(memory, kind.parse()?)?;
    let nr_pages = machine.memory().nr_pages();
    let done = std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            let thread = attach_thread().map_err(|errno| errno.to_string())?;
            let mut guest = machine.guest(0).map_err(|error| error.to_string())?;
            for pass in 1.. {
                let pass = Pass {
                    pages: FIRST_PAGE..nr_pages,
                    expects: (pass > 1).then_some((pass - 1) % PAGE_SIZE as u32),
                    writes: pass % PAGE_SIZE as u32,
                };
                if pass.writes == passes % PAGE_SIZE as u32 {
                    pinless.memcg().kill(machine.memory().vma().mm());
                }
                match guest.pass(&thread, &pass) {
                    Ok(Ended::Done) => {}
                    Ok(ended) => return Err(format!("{ended:?}")),
                    Err(error) => return Ok((guest.vcpu().stats(), error.to_string())),
                }
            }
            unreachable!("the passes end in an error")
        });
        while !vcpu.is_finished() {
            for first in (0..nr_pages).step_by(64) {
                let run = PageRun::new(first, 64.min(nr_pages - first));
                // Ends in an error when the guest is killed.
                let _ = machine.memory().advise(run, Advice::PageOut);
            }
        }
        vcpu.join().expect("the processor's thread does not panic")
    });
    let (vcpu, end) = done?;
    let stat = pinless.memcg().stat();
    println!("the guest ended: {end}");
    println!("pages taken back: {}, faults: {vcpu:?}", stat.pgsteal);
    for report in pinless.memcg().oom_reports() {
        println!("{report}");
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_: &Pinless, _: Mapping, _: u32, _: &str) -> Result<(), Box<dyn Error>> {
    Err("the guest's code is for x86-64".into())
}
