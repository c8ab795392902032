//! The test suite that every machine must pass, real or simulated.
//!
//! A machine under test implements [`Machine`]; [`CASES`] are the tests, each of which names the
//! guarantee that it shows. Not part of the library's promise: it is here because the tests of
//! several crates run it.

mod basics;
#[cfg(feature = "zstd")]
mod cold;
mod concurrent;
#[cfg(feature = "notifiers")]
mod convicts;
#[cfg(feature = "notifiers")]
mod devices;
#[cfg(feature = "notifiers")]
mod endings;
mod failures;
mod file;
#[cfg(feature = "notifiers")]
mod immovable;
#[cfg(feature = "notifiers")]
mod intervals;
mod ladder;
#[cfg(feature = "notifiers")]
mod mayfail;
mod memcg;
#[cfg(feature = "notifiers")]
mod mirror;
mod mlock;
mod oom;
#[cfg(feature = "notifiers")]
mod oom_devices;
#[cfg(feature = "notifiers")]
mod oom_schedules;
mod pins;
mod prefetch;
mod pressure;
#[cfg(feature = "notifiers")]
mod refused;
#[cfg(feature = "notifiers")]
mod secondary;
mod sparse;
mod uses;

use crate::addr::PAGE_SIZE;
use crate::env::Clock;
use crate::fault::FaultError;
use crate::limits::{Limits, SPARES};
use crate::memcg::Memcg;
use crate::mm_struct::{Mm, Vma};
use crate::swap::BackingFile;
use std::sync::Arc;

/// Ends a task that [`Machine::spawn`] began: waits for it.
pub type Join = Box<dyn FnOnce() + Send>;

/// A machine under test.
pub trait Machine {
    /// Its clock.
    fn clock(&self) -> Arc<dyn Clock>;

    /// A mapping of `nr_pages` pages in `mm`, whose faults are resolved.
    fn map(&self, mm: &Arc<Mm>, nr_pages: u32) -> Arc<dyn Mapping>;

    /// A file of `nr_clusters` clusters, where the machine has one to try.
    fn file(&self, nr_clusters: u32) -> Option<Arc<dyn BackingFile>> {
        let _ = nr_clusters;
        None
    }

    /// Runs `body` beside the test.
    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Join;
}

/// A mapping as a program sees it: every access may trap and is resolved, or ends in an error.
pub trait Mapping: Send + Sync {
    /// The mapping in the books.
    fn vma(&self) -> &Arc<Vma>;

    /// Loads bytes. Stays in one page.
    ///
    /// # Errors
    ///
    /// What the fault ended with.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), FaultError>;

    /// Stores bytes. Stays in one page.
    ///
    /// # Errors
    ///
    /// What the fault ended with.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), FaultError>;
}

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// The test itself; it panics when it fails.
    pub run: fn(&dyn Machine),
}

macro_rules! cases {
    ($($(#[$feature:meta])* $module:ident::$name:ident,)*) => {
        /// Every test of the suite.
        pub const CASES: &[Case] = &[$(
            $(#[$feature])*
            Case { name: stringify!($name), run: $module::$name },
        )*];
    };
}

cases! {
    basics::untouched_pages_read_as_zeros,
    basics::contents_survive_eviction_under_every_limit,
    basics::a_clean_page_is_not_stored_twice,
    basics::a_page_that_stands_by_comes_back_softly,
    basics::pinned_pages_stay_until_they_are_let_go,
    basics::advice_not_to_need_gives_zeros_and_frees_everything,
    basics::unmapping_gives_everything_back,
    basics::willneed_fills_what_fits,
    #[cfg(feature = "zstd")]
    cold::what_stays_away_takes_less_room,
    #[cfg(feature = "zstd")]
    cold::packing_meets_programs_and_loses_nothing,
    #[cfg(feature = "zstd")]
    cold::packing_makes_no_error_look_right,
    sparse::sparse_blocks_are_emptied,
    concurrent::writers_lose_nothing_under_reclaim,
    concurrent::pins_and_reclaim_respect_each_other,
    concurrent::everybody_who_waits_gets_a_frame,
    concurrent::counts_stay_in_range,
    #[cfg(feature = "notifiers")]
    devices::a_refusal_without_blocking_is_settled_by_a_worker,
    #[cfg(feature = "notifiers")]
    devices::a_device_that_does_not_answer_is_named_and_left_alone,
    #[cfg(feature = "notifiers")]
    devices::a_translation_is_stale_after_its_page_moved,
    #[cfg(feature = "notifiers")]
    devices::each_level_of_checks_convicts_what_it_looks_at,
    #[cfg(feature = "notifiers")]
    devices::advice_not_to_need_ends_beside_a_device,
    #[cfg(feature = "notifiers")]
    endings::an_exit_waits_for_the_devices_before_pages_go,
    #[cfg(feature = "notifiers")]
    endings::an_exit_with_a_stuck_device_ends_when_it_answers,
    #[cfg(feature = "notifiers")]
    endings::an_exit_waits_for_what_was_settled_before_a_panic,
    #[cfg(feature = "notifiers")]
    endings::an_exit_beside_an_unmap_leaves_nobody_out,
    #[cfg(feature = "notifiers")]
    endings::a_failed_unmap_changes_nothing,
    #[cfg(feature = "notifiers")]
    endings::what_is_pinned_during_an_unmap_goes_with_its_pin,
    #[cfg(feature = "notifiers")]
    endings::a_pin_let_go_beside_an_unmap_keeps_nothing,
    #[cfg(feature = "notifiers")]
    endings::a_pin_of_a_dead_victim_gives_its_frames_back,
    #[cfg(feature = "notifiers")]
    endings::the_reaper_skips_no_mapping,
    #[cfg(feature = "notifiers")]
    endings::nobody_is_killed_while_another_exits,
    file::contents_survive_in_the_file,
    file::half_empty_clusters_are_won_back,
    file::what_was_written_together_comes_back_together,
    file::a_full_total_is_relieved_by_the_file,
    file::what_the_file_holds_makes_no_room_in_the_store,
    failures::a_lost_store_is_an_error_of_its_page,
    failures::a_corrupt_slot_is_an_error_of_its_page,
    failures::a_fault_without_frames_ends_in_an_error,
    #[cfg(feature = "notifiers")]
    immovable::who_can_let_go_of_nothing_has_pinned_pages,
    #[cfg(feature = "notifiers")]
    intervals::a_mirror_that_does_nothing_leaves_nothing,
    #[cfg(feature = "notifiers")]
    intervals::n31_a_mirror_reads_pages_of_every_kind,
    #[cfg(feature = "notifiers")]
    intervals::a_mirror_writes_through_what_allows_it,
    #[cfg(feature = "notifiers")]
    intervals::n52_a_lookup_during_an_invalidation_is_retried,
    #[cfg(feature = "notifiers")]
    intervals::n16_n104_the_change_comes_between_start_and_end,
    #[cfg(feature = "notifiers")]
    intervals::n35_a_migration_is_told_to_all_but_its_owner,
    #[cfg(feature = "notifiers")]
    intervals::n35_exclusive_access_ends_for_everybody,
    #[cfg(feature = "notifiers")]
    intervals::n32_n33_a_bracket_may_be_wide_and_change_nothing,
    #[cfg(feature = "notifiers")]
    intervals::n57_a_page_under_many_intervals_is_told_to_all,
    #[cfg(feature = "notifiers")]
    intervals::n17_an_unmap_ends_the_use_of_devices,
    #[cfg(feature = "notifiers")]
    intervals::n11_n13_a_subscription_keeps_no_memory,
    #[cfg(feature = "notifiers")]
    intervals::n20_n23_n27_a_refused_reclaim_changes_nothing,
    #[cfg(feature = "notifiers")]
    intervals::n54_n103_mirrors_lose_nothing_under_reclaim,
    #[cfg(feature = "notifiers")]
    intervals::n54_n118_who_drops_all_or_later_loses_nothing,
    #[cfg(feature = "notifiers")]
    intervals::n118_each_ability_lets_go_of_what_it_can,
    #[cfg(feature = "notifiers")]
    intervals::n74_the_reaper_takes_what_mirrors_hold,
    #[cfg(feature = "notifiers")]
    intervals::n83_of_pinned_pages_nobody_is_told,
    #[cfg(feature = "notifiers")]
    intervals::n88_a_fault_runs_no_callbacks,
    #[cfg(feature = "notifiers")]
    mayfail::mayfail_a_builder_is_told_to_let_go_of_its_own_pages,
    #[cfg(feature = "notifiers")]
    mayfail::mayfail_a_notifier_that_keeps_its_pages_goes_stale,
    #[cfg(feature = "notifiers")]
    mayfail::mayfail_marked_pages_are_never_asked_for,
    memcg::every_level_keeps_its_bound,
    memcg::who_is_above_high_gets_on,
    memcg::reclaim_from_above_leaves_what_is_protected,
    memcg::a_child_is_protected_within_its_parent,
    memcg::bounds_change_while_they_are_in_use,
    memcg::what_is_stored_keeps_its_bounds,
    memcg::every_level_has_its_turn,
    memcg::a_total_is_lowered_by_storing_pages,
    memcg::a_bound_that_stays_lets_those_who_wait_go_on,
    memcg::what_is_stored_makes_room_for_frames_when_it_goes,
    memcg::a_child_out_of_memory_kills_within,
    memcg::a_kill_is_counted_where_the_victim_was,
    memcg::who_goes_together_changes_while_in_use,
    mlock::locked_pages_are_never_evicted,
    mlock::a_lock_ends_with_the_last_that_covers_a_page,
    mlock::n73_the_reaper_takes_locked_pages,
    mlock::cold_pages_stand_by,
    prefetch::a_stride_is_read_ahead,
    prefetch::what_is_read_ahead_is_not_written,
    prefetch::what_has_no_stride_is_not_read_ahead,
    prefetch::a_scan_with_few_frames_gets_through,
    pressure::what_comes_back_soon_stays,
    pressure::a_wait_for_a_frame_is_pressure,
    pressure::a_shrinker_is_asked_before_memory_runs_out,
    oom::n72_n78_n82_the_leaker_is_killed_and_the_others_live,
    oom::n80_a_group_is_killed_together,
    oom::n64_n67_who_is_killed_by_request_gives_everything_back,
    oom::n67_what_was_read_back_is_refused_like_the_rest,
    oom::n59_n60_n62_the_worst_comes_first_and_of_equals_the_later,
    #[cfg(feature = "notifiers")]
    oom_devices::n70_n71_what_a_device_holds_is_left_behind_by_name,
    #[cfg(feature = "notifiers")]
    oom_devices::what_a_pin_keeps_is_told_and_comes_back_with_it,
    #[cfg(feature = "notifiers")]
    oom_devices::n61_n75_no_second_victim_before_the_first_is_reaped,
    #[cfg(feature = "notifiers")]
    oom_devices::nobody_is_killed_while_advice_is_carried_out,
    #[cfg(feature = "notifiers")]
    oom_devices::a_hung_device_does_not_stop_the_oom_killer,
    #[cfg(feature = "notifiers")]
    oom_devices::a_hung_callback_does_not_stop_the_oom_killer,
    #[cfg(feature = "notifiers")]
    oom_devices::a_reaper_that_gives_up_kills_a_second,
    ladder::a_shrinker_comes_before_a_kill,
    ladder::what_can_be_done_without_goes_before_anybody_is_killed,
    ladder::who_cancels_in_time_is_not_killed,
    #[cfg(feature = "notifiers")]
    oom_schedules::two_memory_cgroups_run_out_at_once,
    #[cfg(feature = "notifiers")]
    oom_schedules::a_victim_that_exits_already_is_reaped,
    #[cfg(feature = "notifiers")]
    oom_schedules::the_last_reference_drops_in_the_reaper,
    #[cfg(feature = "notifiers")]
    oom_schedules::a_limit_that_is_raised_ends_the_shortage,
    #[cfg(feature = "notifiers")]
    oom_schedules::a_reaction_to_a_kill_that_asks_for_memory_gets_none,
    #[cfg(feature = "notifiers")]
    oom_schedules::n113_success_in_the_last_pass_is_success,
    #[cfg(feature = "notifiers")]
    oom_schedules::who_takes_the_place_of_a_victim_has_its_own_memory,
    #[cfg(feature = "notifiers")]
    convicts::n74_a_stuck_reaper_is_left_behind,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_reclaimer_is_left_behind,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_flush_is_left_behind,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_flush_in_a_fault_is_named,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_direct_reclaim_is_named,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_settler_is_left_behind,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_reaction_to_a_kill_is_left_behind,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_reaction_keeps_nobody_else_from_being_told,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_answer_is_asked_for_once,
    #[cfg(feature = "notifiers")]
    convicts::leftovers_outlive_a_stuck_reaper,
    #[cfg(feature = "notifiers")]
    convicts::a_release_waits_for_what_is_stuck,
    #[cfg(feature = "notifiers")]
    convicts::a_stuck_release_is_named,
    #[cfg(feature = "notifiers")]
    convicts::a_panic_under_the_reaper_is_contained,
    #[cfg(feature = "notifiers")]
    convicts::who_maps_again_while_it_is_reaped_gets_nothing,
    #[cfg(feature = "notifiers")]
    convicts::nobody_is_convicted_who_returns,
    #[cfg(feature = "notifiers")]
    refused::a_willing_device_beside_a_hung_one_lets_go,
    #[cfg(feature = "notifiers")]
    refused::a_window_refused_once_is_not_lost_beside_a_hung_device,
    #[cfg(feature = "notifiers")]
    refused::a_willing_device_behind_windows_of_a_hung_one_lets_go,
    #[cfg(feature = "notifiers")]
    refused::a_window_refused_once_is_found_behind_others,
    #[cfg(feature = "notifiers")]
    refused::pages_locked_during_advice_stay_locked,
    concurrent::no_address_space_is_destroyed_in_a_fault,
    #[cfg(feature = "notifiers")]
    secondary::n87_what_a_device_uses_counts_as_referenced,
    #[cfg(feature = "notifiers")]
    secondary::memory_goes_though_devices_use_all_of_it,
    #[cfg(feature = "notifiers")]
    secondary::who_walks_the_page_table_is_told_of_each_entry,
    #[cfg(feature = "notifiers")]
    secondary::who_walks_the_page_table_is_told_of_its_end,
    #[cfg(feature = "notifiers")]
    secondary::a_callback_that_touches_memory_is_named,
    pins::pins_are_counted_by_name,
    pins::a_pin_that_fails_half_way_leaves_no_count,
    pins::what_stays_pinned_is_told_after_its_address_space_is_gone,
    pins::a_pin_is_handed_on_with_its_count,
    pins::a_bound_that_stays_names_who_pins,
    uses::what_is_used_once_goes_first,
    uses::active_pages_stay_while_they_are_used,
    uses::no_page_is_active_for_ever,
}

/// A worker's name and its loop.
type Worker = (&'static str, fn(&Memcg));

/// A memory cgroup with its workers, for one test.
struct World<'a> {
    machine: &'a dyn Machine,
    memcg: Arc<Memcg>,
    workers: Vec<Join>,
}

impl<'a> World<'a> {
    fn new(machine: &'a dyn Machine, frames: u64) -> Self {
        let mut limits = Limits::new(frames * PAGE_SIZE as u64);
        // Room for all that the tests keep, so that nothing is killed.
        limits.zswap_max_bytes = 8 * limits.max_bytes;
        Self::with_limits(machine, limits)
    }

    fn with_limits(machine: &'a dyn Machine, limits: Limits) -> Self {
        Self::on_file(machine, limits, None)
    }

    fn on_file(
        machine: &'a dyn Machine,
        limits: Limits,
        file: Option<Arc<dyn BackingFile>>,
    ) -> Self {
        let clock = machine.clock();
        let memcg = match file {
            Some(file) => Memcg::with_file(limits, clock, file),
            None => Memcg::new(limits, clock),
        };
        let memcg = memcg.expect("limits that leave a reserve");
        let loops: [Worker; 5] = [
            ("write back", Memcg::run_write_back),
            ("compact", Memcg::run_compact),
            ("reclaim", Memcg::run_reclaim),
            ("settle", Memcg::run_settle),
            ("reaper", Memcg::run_reaper),
        ];
        let spares = core::iter::repeat_n(("spare", Memcg::run_spare as fn(&Memcg)), SPARES);
        let start = |(name, run): Worker| {
            let memcg = Arc::clone(&memcg);
            machine.spawn(name, Box::new(move || run(&memcg)))
        };
        let workers = loops.into_iter().chain(spares).map(start).collect();
        Self {
            machine,
            memcg,
            workers,
        }
    }

    fn map(&self, mm: &Arc<Mm>, nr_pages: u32) -> Arc<dyn Mapping> {
        self.machine.map(mm, nr_pages)
    }

    fn spawn(&self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Join {
        self.machine.spawn(name, Box::new(body))
    }

    /// Waits until `condition` holds; other tasks run meanwhile.
    #[track_caller]
    fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        // Bounded in rounds, not in time: a condition that never comes true fails the test.
        for _ in 0..120_000 {
            if condition() {
                return;
            }
            lockdep::sync::sleep("suite.wait_until", core::time::Duration::from_micros(500));
        }
        panic!("{what} did not come true");
    }

    /// Waits until the reaper is done with every victim so far.
    #[track_caller]
    fn wait_until_reaped(&self) {
        self.wait_until("the reaper is done", || {
            let reports = self.memcg.oom_reports();
            reports.iter().all(|report| report.done_ns.is_some())
        });
    }

    /// Waits until nothing is in use: what a worker was putting away when its page went is given
    /// back by the worker, a moment later.
    #[track_caller]
    fn wait_until_empty(&self) {
        let memcg = &self.memcg;
        self.wait_until("everything is given back", || {
            let stored = (memcg.zswap().bytes(), memcg.zswap_bytes().usage());
            let counted = (memcg.frames().usage(), memcg.swap().usage());
            (stored, counted, memcg.total().usage()) == ((0, 0), (0, 0), 0)
        });
    }

    /// What must be true at every moment.
    #[track_caller]
    fn check_bounds(&self) {
        let (frames, zswap) = (self.memcg.frames(), self.memcg.zswap());
        assert!(
            !frames.is_exceeded(),
            "frames above their bound: {frames:?}"
        );
        assert!(
            zswap.peak_bytes() <= zswap.max_bytes(),
            "compressed bytes above their bound"
        );
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.memcg.stop();
        for join in self.workers.drain(..) {
            join();
        }
        if !std::thread::panicking() {
            self.check_bounds();
        }
    }
}

/// Random numbers that a seed repeats.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A page that no codec makes smaller.
    fn incompressible(&mut self) -> Vec<u8> {
        (0..PAGE_SIZE / 8)
            .flat_map(|_| self.next().to_le_bytes())
            .collect()
    }

    /// A page of which half can be compressed away.
    fn half_compressible(&mut self) -> Vec<u8> {
        let mut page = self.incompressible();
        page[PAGE_SIZE / 2..].fill(7);
        page
    }
}

/// Stays in a callback as long as `is_wanted` says so, without a sleep, which not every callback
/// may take.
fn linger(is_wanted: impl Fn() -> bool) {
    let mut nr_rounds = 0;
    // Bounded, so that a test that fails ends.
    lockdep::sync::spin_wait("suite.linger", 0, || {
        nr_rounds += 1;
        !is_wanted() || nr_rounds == 10_000_000
    });
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

fn read_page(mapping: &dyn Mapping, page: u32) -> Vec<u8> {
    let mut contents = vec![0; PAGE_SIZE];
    mapping
        .read(offset_of(page), &mut contents)
        .expect("a page that can be read");
    contents
}

#[track_caller]
fn write_page(mapping: &dyn Mapping, page: u32, contents: &[u8]) {
    mapping
        .write(offset_of(page), contents)
        .expect("a page that can be written");
}
