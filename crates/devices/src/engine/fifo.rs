//! The bounded queue of commands from a driver to its hardware.
//!
//! A start posts commands and must not allocate, so the fences that it hands out are made
//! beforehand, by the engine, and the queue never refuses an invalidation: when it is full, the
//! newest one in it is widened. To invalidate too much is always allowed.

use lockdep::sync::Fence;
use pinless_mm::addr::PageRun;
use pinless_mm::bus::BusAddr;
use std::collections::VecDeque;

/// How many commands wait at once.
pub const COMMANDS_MAX: usize = 64;

/// How many of them may be [`Command::Map`]: a full queue always holds an invalidation.
pub const MAPS_MAX: usize = COMMANDS_MAX / 2;

/// One for each place, and one for the command that the engine carries out.
const SPARES: usize = COMMANDS_MAX + 1;

/// What the engine is to do.
#[derive(Debug)]
pub enum Command {
    /// Take over a translation, if it is still fresh.
    Map {
        /// The translation.
        at: BusAddr,
        /// The sequence at which it was asked for.
        sequence: u64,
        /// Signals when the command was carried out, whatever came of it.
        done: Fence,
    },
    /// Drop the translations of a run.
    Invalidate {
        /// The run.
        run: PageRun,
        /// Signals when no access to the run is in flight any more, and none can begin.
        done: Fence,
    },
}

/// The queue. Oldest first out.
#[derive(Debug)]
pub struct Fifo {
    commands: VecDeque<Command>,
    nr_maps: usize,
    /// Fences of invalidations still to be posted.
    spares: Vec<Fence>,
}

/// The fence of one invalidation, made where allocating is allowed.
pub fn spare() -> Fence {
    Fence::new("devices.fifo.invalidated")
}

impl Fifo {
    /// An empty queue.
    pub fn new() -> Self {
        Self {
            commands: VecDeque::with_capacity(COMMANDS_MAX),
            nr_maps: 0,
            spares: (0..SPARES).map(|_| spare()).collect(),
        }
    }

    /// Posts an invalidation, and returns the fence of it. Allocates nothing.
    pub fn post_invalidate(&mut self, run: PageRun) -> Fence {
        if self.commands.len() < COMMANDS_MAX {
            let done = self
                .spares
                .pop()
                .expect("there are as many spares as places");
            self.commands.push_back(Command::Invalidate {
                run,
                done: done.clone(),
            });
            return done;
        }
        let newest = self
            .commands
            .iter_mut()
            .rev()
            .find_map(|command| match command {
                Command::Invalidate { run, done } => Some((run, done)),
                Command::Map { .. } => None,
            });
        let (posted, done) = newest.expect("maps alone do not fill the queue");
        *posted = posted.hull(run);
        done.clone()
    }

    /// Posts a map command; gives it back if there is no room.
    ///
    /// # Errors
    ///
    /// The fence, unsignalled: try again later.
    pub fn post_map(&mut self, at: BusAddr, sequence: u64, done: Fence) -> Result<(), Fence> {
        if self.nr_maps == MAPS_MAX || self.commands.len() == COMMANDS_MAX {
            return Err(done);
        }
        self.nr_maps += 1;
        self.commands.push_back(Command::Map { at, sequence, done });
        Ok(())
    }

    /// Takes the oldest command.
    pub fn take(&mut self) -> Option<Command> {
        let command = self.commands.pop_front()?;
        self.nr_maps -= usize::from(matches!(command, Command::Map { .. }));
        Some(command)
    }

    /// Replaces the fence of an invalidation that was taken.
    pub fn restock(&mut self, spare: Fence) {
        assert!(
            self.spares.len() < SPARES,
            "more fences than were handed out"
        );
        self.spares.push(spare);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl Default for Fifo {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinless_mm::primary_mmu::Access;

    fn post_map(fifo: &mut Fifo) -> bool {
        let at = BusAddr {
            page: 0,
            generation: 0,
            access: Access::Read,
        };
        fifo.post_map(at, 0, Fence::new("test.map")).is_ok()
    }

    #[test]
    fn full_queue_refuses_maps_and_widens_the_newest_invalidation() {
        let mut fifo = Fifo::new();
        assert!((0..MAPS_MAX).all(|_| post_map(&mut fifo)));
        assert!(!post_map(&mut fifo), "maps leave room for invalidations");
        let fences: Vec<Fence> = (0..40)
            .map(|page| fifo.post_invalidate(PageRun::single(page)))
            .collect();
        let own = COMMANDS_MAX - MAPS_MAX;
        assert!(
            fences[own - 1..]
                .iter()
                .all(|fence| *fence == fences[own - 1])
        );
        let mut runs = Vec::new();
        while let Some(command) = fifo.take() {
            if let Command::Invalidate { run, .. } = command {
                runs.push(run);
                fifo.restock(spare());
            }
        }
        let mut expected: Vec<PageRun> = (0..31).map(PageRun::single).collect();
        expected.push(PageRun::new(31, 9));
        assert_eq!(runs, expected);
        for nr in 0..COMMANDS_MAX {
            assert_eq!(fifo.is_empty(), nr == 0);
            fifo.post_invalidate(PageRun::single(0));
        }
        drop(fifo.take());
        fifo.post_invalidate(PageRun::single(0)); // while the engine is at the one that it took
    }
}
