//! The threads of a memory cgroup: who fills which post, and who steps in.
//!
//! Linux counterpart: `kswapd`, `oom_reaper`; nobody steps in for them.

use super::Memcg;
use crate::watch::{Conviction, Post, is_replaced};

impl Memcg {
    /// The loop of the reclaim worker: keeps free frames between the marks, until
    /// [`Memcg::stop`]. One thread is enough; more may run.
    ///
    /// When a callback overstays its budget in it, a spare takes over, and the thread becomes a
    /// spare itself once the callback has returned; so it is with each of these loops.
    pub fn run_reclaim(&self) {
        self.run(Some(Post::Reclaim));
    }

    /// The loop of the worker that waits for devices, until [`Memcg::stop`]. One thread; no fault
    /// ever waits for it.
    pub fn run_settle(&self) {
        self.run(Some(Post::Settle));
    }

    /// The loop of the reaper, until [`Memcg::stop`]. One thread. It waits for no device, takes
    /// no lock of a victim but by trying, and allocates nothing while it frees.
    pub fn run_reaper(&self) {
        self.run(Some(Post::Reaper));
    }

    /// The loop of a spare, until [`Memcg::stop`]: convicts callbacks that overstay their budget,
    /// and takes over from the worker that is in one.
    ///
    /// Without a spare such a callback stops its worker for as long as it runs. A subscription
    /// that hangs costs one spare for each of the three workers at most, a shrinker one, and an
    /// address space one in each of its two reactions; what hangs beside it costs its own. One has
    /// to be left to watch: see [`SPARES`](crate::limits::SPARES).
    pub fn run_spare(&self) {
        self.run(None);
    }

    fn run(&self, mut post: Option<Post>) {
        while !self.is_stopped() {
            let Some(filled) = post.take() else {
                post = self.watch.wait_for_post(|| self.is_stopped());
                continue;
            };
            let sitting = self.watch.sit(Some(filled));
            match filled {
                Post::Reclaim => {
                    // Whoever had the post before may be stuck in one of these.
                    self.call_on_kill();
                    self.reclaim_until_over();
                }
                Post::Settle => self.settle_until_over(),
                Post::Reaper => self.reap_until_over(),
            }
            drop(sitting);
            // What could not be had while the callback ran can be had now.
            self.reclaim.kick();
            self.oom.wake_reaper();
        }
    }

    /// Whether the worker that asks has nothing more to do: it was stopped, or replaced.
    pub(crate) fn is_over(&self) -> bool {
        is_replaced() || self.is_stopped()
    }

    /// The callbacks that overstayed their budget, oldest first; the last
    /// [`CONVICTIONS_MAX`](crate::limits::CONVICTIONS_MAX) of them.
    pub fn convictions(&self) -> Vec<Conviction> {
        self.watch.convictions()
    }
}
