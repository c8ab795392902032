//! What the files of a memory cgroup tell, under the kernel's names.
//!
//! Linux counterpart: `memory_stat_show`, `memory_events_show`.

use super::Memcg;
use crate::addr::PAGE_SIZE;

impl Memcg {
    /// What `memory.stat` tells: amounts in bytes, then events in pages or times. Of this memory
    /// cgroup and all below it. Exact when nobody is at work in it.
    ///
    /// As in the kernel, frames of private mappings are `anon`, or `swapcached` while they stand
    /// by. Those of shared mappings are `shmem`, which is all that there is of `file`, and unless
    /// they stand by, `file_mapped`: such a page needs no place in swap to be unmapped. Both kinds
    /// are `inactive_anon` or `active_anon`, and their refaults are told under that name.
    ///
    /// `zswapped` and `zswpin` are of the compressed store alone, pages that are all of one word
    /// included; `pswpin` is of the file under it, of which `file` tells nothing. Allocates.
    pub fn memory_stat(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bytes = |pages: u64| pages * PAGE_SIZE as u64;
        let (stat, domain) = (self.stat(), &self.domain);
        let frames = self.frames.counter().usage();
        let standby = domain.nr_standby().min(frames);
        let (shmem, shmem_standby) = self.nr_shmem();
        let file_mapped = shmem.saturating_sub(shmem_standby);
        let nr_read = stat.pgmajfault + stat.prefetched;
        let pgfault = stat.pgfault_zero + stat.pgfault_soft + stat.pgmajfault + stat.pgfault_wp;
        [
            (
                "anon",
                bytes((frames - standby).saturating_sub(file_mapped)),
            ),
            ("file", bytes(shmem)),
            ("shmem", bytes(shmem)),
            ("zswap", self.zswap_bytes().usage()),
            ("zswapped", bytes(self.store_charges.zswapped_pages())),
            ("file_mapped", bytes(file_mapped)),
            ("swapcached", bytes(standby.saturating_sub(shmem_standby))),
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

    /// Frames of shared mappings here and below, and those of them that stand by. Allocates.
    fn nr_shmem(&self) -> (u64, u64) {
        let (mut nr, mut nr_standby) = (0, 0);
        self.for_each_alive(&mut |mm| {
            let of_mm = mm.nr_shmem();
            nr += of_mm.0;
            nr_standby += of_mm.1;
        });
        (nr, nr_standby)
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
