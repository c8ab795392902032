//! One round: the program is started in a group, runs into the limit, and is followed until its
//! memory is back.

use super::TeardownError;
use super::facts::{At, Facts, Reaper};
use super::press::Presser;
use super::progress::Progress;
use super::watch::{self, Watcher, now_ns};
use crate::args::{Bytes, LimitWhen, TeardownArgs};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use pinless_host::memcg::{Memcg, MemcgError, Version};
use pinless_host::process::{self, Hold, Mrelease, PidFd};
use pinless_host::tracefs::Trace;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// What the names of our groups and trace instances begin with.
pub(super) const PREFIX: &str = "pinless-teardown-";

/// How often it looks.
const TICK: Duration = Duration::from_millis(2);
/// Memory has settled when it has grown by less than a hundredth for this long.
const STABLE_NS: u64 = 500_000_000;
/// When the reaper has ended at the latest: two seconds, and ten passes 100 ms apart, and some.
const REAPER_NS: u64 = 4_000_000_000;
/// How much above what is in use a limit is that must not be below it.
const NEAR_BYTES: u64 = 64 << 10;
/// How long processes of the program that were not chosen may go on.
const SURVIVOR_NS: u64 = 1_000_000_000;
/// How long after the reaper ended the address space is still held: what comes back in it was
/// the reaper's work.
const HELD_NS: u64 = 100_000_000;
/// The most that is taken for charges that processors keep in stock.
const STOCK_BYTES_PER_CPU: u64 = 2 * 64 * 4096;

/// What one round showed, and how it was set up.
pub(super) struct Played {
    pub(super) facts: Facts,
    pub(super) begun_ns: u64,
    pub(super) version: Version,
    pub(super) is_traced: bool,
    pub(super) has_log: bool,
    pub(super) slack_bytes: u64,
    /// The limit that was in force at last.
    pub(super) limit_bytes: u64,
    pub(super) notes: Vec<String>,
}

/// How a round ended.
pub(super) enum Outcome {
    Torn(Box<Played>),
    Interrupted,
}

/// Plays one round. Whatever it made is gone when it returns.
pub(super) fn play(
    args: &TeardownArgs,
    nr: u32,
    progress: &Progress,
    is_interrupted: &AtomicBool,
) -> Result<Outcome, TeardownError> {
    let name = format!("{PREFIX}{}-{nr}", std::process::id());
    let mut notes = Vec::new();
    let trace = trace(&name, &mut notes);
    let is_traced = trace.is_some();
    let memcg = Memcg::create(args.cgroup.as_deref(), &name).map_err(TeardownError::Group)?;
    let limit = args.limit.0;
    let slack_bytes = slack(limit);
    let watcher = Watcher::new(&memcg, trace, slack_bytes);
    let has_log = watcher.has_log();
    if !has_log {
        notes.push("without the kernel's log: complaints are not seen".to_owned());
    }
    let mut round = Round {
        args,
        memcg: &memcg,
        watcher,
        progress,
        is_interrupted,
        notes,
        limit_bytes: None,
        limit_write: None,
        begun_ns: now_ns(),
    };
    if args.limit_when == LimitWhen::Start {
        round.set_limits(limit).map_err(TeardownError::Group)?;
    }
    let played = round.play()?;
    let version = memcg.version();
    let removed = memcg.remove();
    Ok(match played {
        None => Outcome::Interrupted,
        Some((facts, mut notes, begun_ns, limit_bytes)) => {
            // No reason to keep silent about what was found: this is a part of it.
            if let Err(error) = removed {
                notes.push(format!(
                    "the group is left behind, somebody hangs in it ({error})"
                ));
            }
            Outcome::Torn(Box::new(Played {
                facts,
                begun_ns,
                version,
                is_traced,
                has_log,
                slack_bytes,
                limit_bytes,
                notes,
            }))
        }
    })
}

/// Tracing, as far as there is any; what is missing is noted.
fn trace(name: &str, notes: &mut Vec<String>) -> Option<Trace> {
    let trace = match Trace::start(name, &watch::WANTED) {
        Ok(trace) => trace,
        Err(error) => {
            notes.push(format!(
                "without trace events ({error}): times are those of polling, and the reaper is \
                 not seen"
            ));
            return None;
        }
    };
    if !trace.absent().is_empty() {
        let absent = trace.absent().join(", ");
        notes.push(format!("this kernel has no trace event {absent}"));
    }
    Some(trace)
}

/// What may stay charged to an empty group.
fn slack(limit: u64) -> u64 {
    let nr_cpus = std::thread::available_parallelism().map_or(1, |nr| nr.get() as u64);
    (nr_cpus * STOCK_BYTES_PER_CPU).min(limit / 8)
}

type Story = (Facts, Vec<String>, u64, u64);

struct Round<'a> {
    args: &'a TeardownArgs,
    memcg: &'a Memcg,
    watcher: Watcher<'a>,
    progress: &'a Progress,
    is_interrupted: &'a AtomicBool,
    notes: Vec<String>,
    limit_bytes: Option<u64>,
    limit_write: Option<JoinHandle<Result<(), MemcgError>>>,
    begun_ns: u64,
}

/// The program, killed when this is dropped.
struct Program {
    child: Child,
    pidfd: PidFd,
    ready: Option<File>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // A process that hangs in the kernel would hang us, too.
        if self.pidfd.wait_dead(Duration::from_secs(5)) {
            let _ = self.child.wait();
        }
    }
}

impl Round<'_> {
    /// Without a story when it was interrupted.
    fn play(mut self) -> Result<Option<Story>, TeardownError> {
        let mut program = self.start()?;
        let hold = if self.args.hold {
            Some(self.hold(&mut program)?)
        } else {
            None
        };
        if hold.is_some() && self.watcher.is_traced() {
            self.watcher.facts.held = Some(program.child.id());
        }
        let mut presser = None;
        if self.limit_bytes.is_none() {
            if !self.wait_for_limit_time(&mut program)? {
                return Ok(None);
            }
            self.watcher.facts.limit_set_ns = Some(now_ns());
            presser = self.set_limit_late()?;
        }
        if !self.wait_for_kill(&mut program)? {
            return Ok(None);
        }
        if presser.as_mut().is_some_and(Presser::is_dead) {
            return Err(TeardownError::WrongVictim);
        }
        drop(presser);
        self.watcher.stranger = None;
        if !self.follow(&mut program, hold) {
            return Ok(None);
        }
        let limit = self.limit_bytes.unwrap_or(self.args.limit.0);
        let facts = self.watcher.finish();
        Ok(Some((facts, self.notes, self.begun_ns, limit)))
    }

    fn start(&mut self) -> Result<Program, TeardownError> {
        let (name, args) = self.args.program.split_first().expect("clap asks for one");
        let mut command = Command::new(name);
        // Standard output is for the report. A group of its own: Ctrl-C is for us.
        let errors = io::stderr().as_fd().try_clone_to_owned();
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(errors.map_or(Stdio::null(), Stdio::from))
            .process_group(0);
        let mut ready = None;
        let mut theirs = None;
        if self.args.limit_when == LimitWhen::ReadyFd {
            let (reader, writer) = io::pipe().map_err(TeardownError::Pipe)?;
            let writer = OwnedFd::from(writer);
            command.env("PINLESS_READY_FD", writer.as_raw_fd().to_string());
            ready = Some(File::from(OwnedFd::from(reader)));
            theirs = Some(writer);
        }
        let entry = self.memcg.entry().map_err(TeardownError::Group)?;
        let spawned = process::spawn_in(&mut command, entry, theirs);
        // Our copies of what it was given; a pipe ends when nobody has its other end.
        drop(command);
        let child = spawned.map_err(|error| TeardownError::Start {
            program: name.to_string_lossy().into_owned(),
            error,
        })?;
        let pidfd = PidFd::open(child.id()).map_err(TeardownError::PidFd)?;
        self.watcher.facts.tasks.insert(child.id());
        Ok(Program {
            child,
            pidfd,
            ready,
        })
    }

    fn hold(&mut self, program: &mut Program) -> Result<Hold, TeardownError> {
        let held = Hold::of(program.child.id());
        if held.is_err() {
            // Of a program that has ended there is nothing to hold.
            self.tick(program, "holding its memory");
            self.check_alive()?;
        }
        held.map_err(TeardownError::Hold)
    }

    /// Waits until the limit is to be set; false when interrupted.
    fn wait_for_limit_time(&mut self, program: &mut Program) -> Result<bool, TeardownError> {
        let ready = program.ready.take().map(Ready::new);
        let mut stable = (0_u64, now_ns());
        loop {
            if !self.tick(program, "waiting until its memory is in place") {
                return Ok(false);
            }
            self.check_alive()?;
            let now = now_ns();
            let usage = self.watcher.usage();
            if usage > stable.0 + stable.0 / 100 {
                stable = (usage, now);
            }
            let is_time = match &ready {
                Some(ready) => ready.is_told(),
                None => usage > 0 && now - stable.1 > STABLE_NS,
            };
            if is_time {
                return Ok(true);
            }
            if now - self.begun_ns > self.patience_ns() {
                return Err(match ready {
                    Some(_) => TeardownError::NotReady {
                        seconds: self.args.patience,
                    },
                    None => TeardownError::NotStable {
                        seconds: self.args.patience,
                    },
                });
            }
        }
    }

    /// Sets both limits of an empty group.
    fn set_limits(&mut self, limit: u64) -> Result<(), MemcgError> {
        self.memcg.set_max(limit)?;
        self.limit_bytes = Some(limit);
        self.set_swap_limit(limit, self.args.swap.0)
    }

    /// Bounds swap, given the limit in force.
    fn set_swap_limit(&mut self, limit_bytes: u64, swap_bytes: u64) -> Result<(), MemcgError> {
        match self.memcg.set_swap_max(limit_bytes, swap_bytes) {
            Err(error) if !matches!(error, MemcgError::BelowUsage { .. }) => {
                self.note(format!("swap is not bounded ({error})"));
                Ok(())
            }
            answer => answer,
        }
    }

    /// Sets the limit below what is in use. Where that is refused, near it; and then a process of
    /// ours in the group takes up the rest, so that the limit is hit also if the program does not
    /// go on to grow.
    fn set_limit_late(&mut self) -> Result<Option<Presser>, TeardownError> {
        let (limit, swap) = (self.args.limit.0, self.args.swap.0);
        if self.memcg.version() == Version::V2 {
            self.set_swap_limit(limit, swap)
                .map_err(TeardownError::Group)?;
            self.limit_bytes = Some(limit);
            self.limit_write = Some(self.memcg.begin_set_max(limit));
            return Ok(None);
        }
        let mut presser = Presser::start(self.memcg)?;
        self.watcher.stranger = Some(presser.pid());
        let room = self.set_limit_near().map_err(TeardownError::Group)?;
        presser.press(room);
        Ok(Some(presser))
    }

    /// Sets the limit of version 1, and the bound on swap, as near to what is in use as they must
    /// be. Gives what is left below both.
    fn set_limit_near(&mut self) -> Result<u64, MemcgError> {
        let (wanted, swap) = (self.args.limit.0, self.args.swap.0);
        let mut near = NEAR_BYTES;
        // Of memory and swap together, as much must fit as is in use.
        let fits = |near: u64| {
            let in_use = self.memcg.usage_with_swap().saturating_add(near);
            in_use.saturating_sub(swap).max(wanted)
        };
        let mut limit = wanted;
        if swap > 0 {
            limit = fits(near);
        } else if let Err(error) = self.memcg.forbid_swap() {
            // To lower a limit would be to swap out what is above it.
            self.note(format!("swap is not forbidden ({error})"));
        }
        loop {
            // What is in use may have grown in between, and not all of it can be swapped out.
            limit = match self.memcg.set_max(limit) {
                Err(MemcgError::BelowUsage { usage_bytes }) => usage_bytes.saturating_add(near),
                Err(error) => return Err(error),
                Ok(()) => match self.set_swap_limit(limit, swap) {
                    Err(MemcgError::BelowUsage { .. }) => fits(near),
                    Err(error) => return Err(error),
                    Ok(()) => break,
                },
            };
            near = near.saturating_mul(2);
        }
        self.limit_bytes = Some(limit);
        if limit != wanted {
            self.note(format!(
                "cgroup v1 takes no limit below what is in use: the limit was near that instead \
                 of {}, and a helper in the group took up what was left",
                Bytes(wanted)
            ));
        }
        let bound = limit.saturating_add(self.bound_swap_near(limit));
        Ok(bound.saturating_sub(self.memcg.usage_with_swap()))
    }

    /// Bounds swap near what is in use, if it may take more: who fills all of that would be the
    /// largest. Gives what it may take.
    fn bound_swap_near(&mut self, limit: u64) -> u64 {
        let mut near = NEAR_BYTES;
        loop {
            let in_use = self.memcg.usage_with_swap().saturating_add(near);
            let swap = in_use.saturating_sub(limit);
            if swap >= self.args.swap.0 {
                return self.args.swap.0;
            }
            match self.memcg.set_swap_max(limit, swap) {
                Ok(()) => {
                    self.note(format!(
                        "swap was bounded near what is in use, at {}, for the helper to be small",
                        Bytes(swap)
                    ));
                    return swap;
                }
                // It has grown in between.
                Err(MemcgError::BelowUsage { .. }) => near = near.saturating_mul(2),
                // Nothing of it is accounted.
                Err(_) => return 0,
            }
        }
    }

    /// Waits until the kernel has killed somebody in the group; false when interrupted.
    fn wait_for_kill(&mut self, program: &mut Program) -> Result<bool, TeardownError> {
        let begun = now_ns();
        loop {
            if !self.tick(program, "waiting for the limit") {
                return Ok(false);
            }
            if self.watcher.facts.kill_seen_ns.is_some() {
                return Ok(true);
            }
            self.check_alive()?;
            self.check_limit_write()?;
            if now_ns() - begun > self.patience_ns() {
                return Err(TeardownError::NeverReached {
                    peak: Bytes(self.memcg.peak()),
                    limit: Bytes(self.limit_bytes.unwrap_or(self.args.limit.0)),
                    seconds: self.args.patience,
                });
            }
        }
    }

    /// A limit that is being set may be refused.
    fn check_limit_write(&mut self) -> Result<(), TeardownError> {
        let Some(write) = self.limit_write.take_if(|write| write.is_finished()) else {
            return Ok(());
        };
        let result = write.join().expect("writing a file does not panic");
        result.map_err(TeardownError::Group)
    }

    /// The program must not end before it was killed for its memory.
    fn check_alive(&self) -> Result<(), TeardownError> {
        let Some(exit) = &self.watcher.facts.exit else {
            return Ok(());
        };
        // The kill may have come between the last look and the end.
        let is_killed = self.memcg.events().oom_kill > 0;
        let has_others = !self.memcg.processes().is_empty();
        if is_killed || has_others {
            return Ok(());
        }
        Err(TeardownError::EndedFirst {
            status: exit.what,
            peak: Bytes(self.memcg.peak()),
            limit: self.args.limit,
        })
    }

    /// Follows the teardown until everything is back or the time is over; false when interrupted.
    fn follow(&mut self, program: &mut Program, mut hold: Option<Hold>) -> bool {
        let mut survivors_ended = false;
        loop {
            if !self.tick(program, "waiting until its memory is back") {
                return false;
            }
            let now = now_ns();
            let since_kill = now - self.watcher.facts.kill_ns().unwrap_or(now);
            if hold.is_some() && self.is_reaper_done(now, since_kill) {
                let facts = &mut self.watcher.facts;
                facts.reaped_bytes = Some(facts.usage_at_kill.saturating_sub(self.memcg.usage()));
                facts.held = None;
                hold = None;
            }
            let facts = &self.watcher.facts;
            let victims_gone = facts.victims.iter().all(|at| at.what.gone_ns.is_some());
            if !survivors_ended && victims_gone && since_kill > SURVIVOR_NS {
                survivors_ended = true;
                self.end_survivors();
            }
            let facts = &self.watcher.facts;
            // A group is empty before the end of its last process can be waited for.
            let is_back = facts.empty_ns.is_some() && facts.back_ns.is_some();
            if hold.is_none() && is_back && facts.exit.is_some() {
                return true;
            }
            if since_kill > self.args.stuck.saturating_mul(1_000_000_000) {
                self.watcher.facts.held = None;
                drop(hold);
                self.ask_for_memory();
                return true;
            }
        }
    }

    /// Whether there is nothing more to be expected of the reaper.
    fn is_reaper_done(&self, now: u64, since_kill: u64) -> bool {
        let facts = &self.watcher.facts;
        let finished = facts.reaper_ns(Reaper::Finished);
        let is_finished = finished.is_some_and(|at| now.saturating_sub(at) > HELD_NS);
        let is_refused = facts.nr_reaper(Reaper::Finished) != facts.nr_reaper(Reaper::Started);
        let half = self.args.stuck.saturating_mul(500_000_000).max(REAPER_NS);
        (is_finished && !is_refused && facts.back_ns.is_some())
            || facts.gave_up().is_some()
            || (is_finished && now.saturating_sub(finished.unwrap_or(now)) > 15 * HELD_NS)
            || (facts.back_ns.is_some() && finished.is_none() && since_kill > 30 * HELD_NS)
            || since_kill > half
    }

    fn end_survivors(&mut self) {
        let left = self.memcg.processes();
        let alive = left
            .iter()
            .filter(|&&pid| process::Status::read(pid).is_some_and(|status| status.state != 'Z'));
        let nr = alive.count();
        if nr > 0 {
            self.watcher.facts.survivors = Some(At {
                ns: now_ns(),
                what: nr,
            });
            self.memcg.kill_all();
        }
    }

    /// Something is stuck: would the kernel give the memory back if asked outright?
    fn ask_for_memory(&mut self) {
        for pid in self.memcg.processes() {
            let Ok(pidfd) = PidFd::open(pid) else {
                continue;
            };
            let answer = match pidfd.mrelease() {
                Mrelease::Released => "released it",
                Mrelease::Refused => "EAGAIN: an MMU notifier refuses",
                Mrelease::Gone => "ESRCH: no thread has the memory any more",
                Mrelease::NotDying => "EINVAL: it is not dying",
                Mrelease::Failed(_) => "not possible here",
            };
            self.watcher.facts.mrelease = Some(format!("process_mrelease({pid}): {answer}"));
        }
    }

    /// Looks once, shows how it goes, and waits a little; false when interrupted.
    fn tick(&mut self, program: &mut Program, doing: &'static str) -> bool {
        let is_over = self.watcher.facts.exit.is_some();
        if is_over || !program.pidfd.wait_dead(TICK) {
            if is_over {
                std::thread::sleep(TICK);
            }
        } else {
            // The last look at who is dead, before its number is free again.
            self.watcher.look();
            if let Ok(Some(status)) = program.child.try_wait() {
                self.watcher.facts.exit = Some(At {
                    ns: now_ns(),
                    what: status,
                });
            }
        }
        self.watcher.look();
        let limit = self.limit_bytes.unwrap_or(self.args.limit.0);
        self.progress.show(doing, self.watcher.usage(), limit);
        // A flag of a signal handler; nothing else is read because of it.
        !self.is_interrupted.load(Ordering::Relaxed)
    }

    fn patience_ns(&self) -> u64 {
        self.args.patience.saturating_mul(1_000_000_000)
    }

    fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

/// The reading end of the pipe on which a program says that it is ready.
struct Ready {
    told: std::sync::mpsc::Receiver<()>,
}

impl Ready {
    /// A line feed, or the end of the pipe, means ready.
    fn new(mut pipe: File) -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = pipe.read(&mut [0]);
            let _ = tell.send(());
        });
        Self { told }
    }

    fn is_told(&self) -> bool {
        self.told.try_recv().is_ok()
    }
}
