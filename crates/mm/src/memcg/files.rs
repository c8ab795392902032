//! What the files of a memory cgroup tell, under the kernel's names.
//!
//! Linux counterpart: `memory_stat_show`, `memory_events_show`.

use super::Memcg;
use crate::addr::PAGE_SIZE;

impl Memcg {
    /// What `memory.stat` tells: amounts in bytes, then events in pages or times. Of this memory
    /// cgroup and all below it. Exact when nobody is at work in it.
    ///
    /// `zswapped` and `zswpin` are of the compressed store alone, pages that are all of one word
    /// included, as in the kernel; `pswpin` is of the file. Pages are `anon` whatever backs them:
    /// to a memory cgroup they are private, though the kernel, which sees a memfd, may charge them
    /// as `shmem`.
    pub fn memory_stat(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bytes = |pages: u64| pages * PAGE_SIZE as u64;
        let (stat, domain) = (self.stat(), &self.domain);
        let frames = self.frames.counter().usage();
        let standby = domain.nr_standby().min(frames);
        let nr_read = stat.pgmajfault + stat.prefetched;
        let pgfault = stat.pgfault_zero + stat.pgfault_soft + stat.pgmajfault + stat.pgfault_wp;
        [
            ("anon", bytes(frames - standby)),
            ("swapcached", bytes(standby)),
            ("zswap", self.zswap_bytes().usage()),
            ("zswapped", bytes(self.store_charges.zswapped_pages())),
            (
                "inactive_anon",
                bytes(frames.saturating_sub(domain.nr_active())),
            ),
            ("active_anon", bytes(domain.nr_active())),
            ("workingset_refault_anon", stat.workingset_refault),
            ("workingset_activate_anon", stat.workingset_activate),
            ("pgfault", pgfault),
            ("pgmajfault", stat.pgmajfault),
            ("pgsteal", stat.pgsteal),
            ("pgdeactivate", stat.pgdeactivate),
            ("pswpin", stat.pswpin),
            ("zswpin", nr_read.saturating_sub(stat.pswpin)),
            ("zswpout", stat.zswpout),
            ("zswpwb", stat.zswpwb),
        ]
        .into_iter()
    }

    /// What `memory.events` tells: how often something happened, in this memory cgroup or below it.
    pub fn memory_events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let stat = self.stat();
        [
            ("low", stat.event_low),
            ("high", stat.event_high),
            ("max", stat.event_max),
            ("oom", stat.event_oom),
            ("oom_kill", stat.oom_kill),
            ("oom_group_kill", stat.oom_group_kill),
        ]
        .into_iter()
    }
}
