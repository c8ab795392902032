//! Those who use a tenant's memory, and compare everything that they read with the model.

pub(crate) mod cpu;
pub(crate) mod dma;
pub(crate) mod leak;
pub(crate) mod load;
pub(crate) mod ring;

use super::judge::{Failure, Judge};
use super::model::{Locked, Mismatch};
use super::rng::Rng;
use super::tenant::{Tally, Tenant};
use core::fmt;
use pinless::PageIndex;

/// How often an actor looks for a block that nobody uses before it lets others run.
const LOOKS: u32 = 8;

/// The actor has nothing more to do: the work is over, or its tenant was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Over;

/// Who does something to a tenant's memory.
pub(crate) struct Actor<'a> {
    pub(crate) judge: &'a Judge,
    pub(crate) tenant: &'a Tenant,
    pub(crate) name: String,
    pub(crate) tally: &'a Tally,
    pub(crate) rng: Rng,
}

impl<'a> Actor<'a> {
    /// Repeats a step until the work is over.
    pub(crate) fn repeat(&mut self, mut step: impl FnMut(&mut Self) -> Result<(), Over>) {
        while self.go_on().is_ok() && step(self).is_ok() {
            self.tally.op();
        }
    }

    pub(crate) fn go_on(&self) -> Result<(), Over> {
        if self.judge.is_stopped() || self.tenant.mm.is_killed() {
            return Err(Over);
        }
        Ok(())
    }

    /// An access ended in an error. That is as it must be when the tenant was killed.
    pub(crate) fn failed(
        &self,
        step: &'static str,
        page: PageIndex,
        error: &dyn fmt::Display,
    ) -> Over {
        if !self.tenant.mm.is_killed() {
            self.judge.fail(self.failure(step, Some(page), error));
        }
        Over
    }

    /// Something was read that was not there.
    pub(crate) fn mismatch(&self, step: &'static str, mismatch: &Mismatch) -> Over {
        let failure = self.failure(step, Some(mismatch.page()), mismatch);
        self.judge.fail_contents(failure);
        Over
    }

    /// A block was read.
    pub(crate) fn verify(
        &self,
        step: &'static str,
        block: &Locked<'_>,
        found: &[u8],
    ) -> Result<(), Over> {
        block
            .check(found)
            .map_err(|mismatch| self.mismatch(step, &mismatch))?;
        self.tally.verified(found.len());
        Ok(())
    }

    pub(crate) fn failure(
        &self,
        step: &'static str,
        page: Option<PageIndex>,
        what: &dyn fmt::Display,
    ) -> Failure {
        Failure {
            whose: self.tenant.name.clone(),
            actor: self.name.clone(),
            step,
            page,
            what: what.to_string(),
        }
    }

    /// A block that nobody uses: half of the time one of the first eighth, so that some pages are
    /// in use all the time.
    pub(crate) fn lock_block(&mut self) -> Result<Locked<'a>, Over> {
        let model = &self.tenant.model;
        let nr_blocks = model.nr_blocks();
        loop {
            for _ in 0..LOOKS {
                let among = if self.coin() {
                    nr_blocks
                } else {
                    nr_blocks.div_ceil(8)
                };
                if let Some(block) = model.try_lock(self.rng.below(among)) {
                    return Ok(block);
                }
            }
            self.go_on()?;
            std::thread::yield_now();
        }
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.rng.next() & 1 == 1
    }
}
