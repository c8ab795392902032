//! The kernel's own reaper, on a process of the same size: it goes over its limit, is killed, and
//! its memory stays because a system call of ours holds on to it, until the reaper takes it.

use super::super::report::{BenchError, Samples};
use super::{failed, gib_per_s};
use pinless_host::MonotonicClock;
use pinless_host::memcg::Memcg;
use pinless_host::process::{Hold, PidFd, spawn_in};
use pinless_host::tracefs::{Event, Trace, Wanted};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::env::Clock;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The part of the process that is killed.
pub(in super::super) const VICTIM: &str = "reap/victim";

const PART: &str = "bench-part";

/// What a victim may have beside its memory before it is killed.
const SPARE_BYTES: u64 = 16 << 20;

/// How long the kernel may take: it waits two seconds before it reaps.
const PATIENCE_NS: u64 = 10_000_000_000;
const PAUSE: Duration = Duration::from_millis(1);

const EVENTS: [&str; 3] = ["mark_victim", "start_task_reaping", "finish_task_reaping"];

/// What it took.
pub(super) struct Reaped {
    /// From the kill until all was back, in milliseconds.
    pub(super) back_ms: Samples,
    /// GiB a second, without the wait.
    pub(super) speed: Samples,
}

/// Plays the victim: has memory, says so, and takes more without end once it is told.
pub(in super::super) fn victim() -> Result<(), BenchError> {
    let mut bytes = String::new();
    let mut told = io::stdin().lock();
    told.read_line(&mut bytes).map_err(failed)?;
    let nr: usize = bytes.trim().parse().map_err(failed)?;
    let held = black_box(vec![1_u8; nr]);
    println!("ready");
    io::stdout().flush().map_err(failed)?;
    let mut go = String::new();
    told.read_line(&mut go).map_err(failed)?;
    if go.is_empty() {
        // Nobody is there any more.
        return Ok(());
    }
    let mut more = Vec::new();
    // Twice over any limit, so that it ends where there is none.
    while more.len() as u64 * PAGE_SIZE as u64 <= 4 * SPARE_BYTES {
        more.push(black_box(vec![1_u8; PAGE_SIZE]));
    }
    black_box(held.len());
    Err(failed("nobody killed it"))
}

/// Has the kernel reap a process of `bytes`, so many times.
pub(super) fn reap_a_process(bytes: u64, rounds: u32) -> Result<Reaped, BenchError> {
    let (mut back_ms, mut speed) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let [killed, started, finished] = once(bytes, round)?;
        back_ms.push((finished - killed) as f64 / 1e6);
        speed.push(gib_per_s(bytes, (finished - started).max(1) as f64));
    }
    Ok(Reaped {
        back_ms: Samples::new(back_ms),
        speed: Samples::new(speed),
    })
}

fn once(bytes: u64, round: u32) -> Result<[u64; 3], BenchError> {
    let name = format!("pinless-bench-{}-{round}", std::process::id());
    let wanted = EVENTS.map(|event| Wanted {
        system: "oom",
        event,
        filter: "",
    });
    let mut trace = Trace::start(&name, &wanted).map_err(failed)?;
    let memcg = Memcg::create(None, &name).map_err(failed)?;
    let max_bytes = bytes + SPARE_BYTES;
    memcg.set_max(max_bytes).map_err(failed)?;
    // Where swap is not counted there is none, or the run takes longer.
    let _ = memcg.set_swap_max(max_bytes, 0);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .args([PART, VICTIM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let entry = memcg.entry().map_err(failed)?;
    let mut child = spawn_in(&mut command, entry, None).map_err(failed)?;
    let times = watch(&mut child, &mut trace, bytes);
    // Also when it failed; an error says that it has ended.
    let _ = child.kill();
    child.wait().map_err(failed)?;
    memcg.remove().map_err(failed)?;
    times
}

/// When it was killed, and when the reaper began and ended.
fn watch(child: &mut Child, trace: &mut Trace, bytes: u64) -> Result<[u64; 3], BenchError> {
    let pid = child.id();
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (Some(mut tell), Some(told)) = (stdin, stdout) else {
        return Err(failed("no pipes"));
    };
    writeln!(tell, "{bytes}").map_err(failed)?;
    let mut ready = [0; 6];
    BufReader::new(told)
        .read_exact(&mut ready)
        .map_err(failed)?;
    let process = PidFd::open(pid).map_err(failed)?;
    let _hold = Hold::of(pid).map_err(failed)?;
    writeln!(tell, "go").map_err(failed)?;
    let mut seen: Vec<Event> = Vec::new();
    let give_up_ns = MonotonicClock.now_ns() + PATIENCE_NS;
    loop {
        let ours = |event: &Event| event.number("pid") == Some(u64::from(pid));
        seen.extend(trace.drain().into_iter().filter(ours));
        let at = EVENTS.map(|name| seen.iter().find(|event| event.name == name));
        if let [Some(killed), Some(started), Some(finished)] = at {
            return Ok([killed.at_ns, started.at_ns, finished.at_ns]);
        }
        if MonotonicClock.now_ns() > give_up_ns {
            // Not left to use its memory any longer.
            let _ = process.kill();
            return Err(failed("the reaper was not seen"));
        }
        std::thread::sleep(PAUSE);
    }
}
