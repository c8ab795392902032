//! What the seed decides before anything begins.

use crate::args::{Injection, TortureArgs};
use crate::cmd::run::plan::CpuAccess;
use crate::cmd::run::rng::{Rng, mix};
use crate::cmd::run::tenant::{Driver, Shape};
use clap::ValueEnum;
use core::time::Duration;
use pinless::{Checks, PAGE_SIZE};
use pinless_devices::models;

/// Streams of choices that are no life's: see [`Plan::rng`].
const PLAN: u32 = u32::MAX;
pub(super) const CHAOS: u32 = u32::MAX - 1;

/// Pages of a life, at least. There may be as many more as there are frames.
const LIFE_PAGES_MIN: u64 = 64;

/// Devices of a life.
const DEVICES: usize = 2;

/// What one run of the command is like.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) limit_bytes: u64,
    /// Address spaces at a time.
    pub(super) nr_slots: u32,
    pub(super) inject: Option<Injection>,
    pub(super) checks: Checks,
    pub(super) with_io_uring: bool,
    /// The command that does the same again.
    pub(super) replay: String,
}

impl Plan {
    pub(super) fn new(args: &TortureArgs, seed: u64) -> Self {
        let mut rng = Rng::new(seed, PLAN, 0);
        Self {
            seed,
            duration: Duration::from_secs(args.seconds),
            limit_bytes: (4 + rng.below(13)) << 20,
            nr_slots: 2 + rng.below(3) as u32,
            inject: args.inject,
            checks: args.checks.level(),
            with_io_uring: !args.no_io_uring,
            replay: replay(args, seed),
        }
    }

    /// Compressed bytes: room for all pages of all lives, however little they compress. So nobody
    /// has to be killed, unless the bound is lowered.
    pub(super) fn zswap_bytes(&self) -> u64 {
        let life_bytes = self.limit_bytes + LIFE_PAGES_MIN * PAGE_SIZE as u64;
        u64::from(self.nr_slots) * life_bytes * 3 / 2
    }

    /// The seed of a life, from which its contents and all streams of its threads follow.
    pub(super) fn seed_of(&self, slot: u32, life: u32) -> u64 {
        mix(self.seed ^ mix(u64::from(slot) << 32 | u64::from(life)))
    }

    /// The choices of a thread that belongs to no life.
    pub(super) fn rng(&self, stream: u32) -> Rng {
        Rng::new(self.seed, stream, 0)
    }

    /// What a life is to be like.
    pub(super) fn shape_of(&self, slot: u32, life: u32) -> Shape {
        let seed = self.seed_of(slot, life);
        let mut rng = Rng::new(seed, PLAN, 0);
        let access = [CpuAccess::Service, CpuAccess::InThread, CpuAccess::Guard];
        let frames = self.limit_bytes / PAGE_SIZE as u64;
        let drivers = (0..DEVICES).map(|_| {
            let model = &models()[rng.below(models().len() as u64) as usize];
            Driver {
                model,
                kind: model.name,
                name: model.name,
            }
        });
        Shape {
            index: slot,
            name: format!("slot-{slot}/life-{life}"),
            drivers: drivers.collect(),
            access: access[rng.below(3) as usize],
            nr_pages: (LIFE_PAGES_MIN + rng.below(frames)) as u32,
            seed,
            hanging: None,
            with_io_uring: self.with_io_uring && rng.below(2) == 0,
        }
    }
}

fn replay(args: &TortureArgs, seed: u64) -> String {
    let mut command = format!("pinless torture --seed {seed} --seconds {}", args.seconds);
    if let Some(value) = args.inject.and_then(|inject| inject.to_possible_value()) {
        command += &format!(" --inject {}", value.get_name());
    }
    if let Some(input) = &args.input {
        command += &format!(" --input {}", input.display());
    }
    command += args.checks.option();
    if args.no_io_uring {
        command += " --no-io-uring";
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    /// The plan of a seed, and what its first lives are like, as text.
    fn drawn(seed: u64) -> String {
        let cli = Cli::parse_from(["pinless", "torture", "--seconds", "1"]);
        let Command::Torture(args) = cli.command else {
            unreachable!("it was asked for")
        };
        let plan = Plan::new(&args, seed);
        let lives = (0..3).map(|life| plan.shape_of(0, life));
        format!("{plan:?} {:?}", lives.collect::<Vec<_>>())
    }

    #[test]
    fn all_that_is_drawn_follows_from_the_seed() {
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }
}
