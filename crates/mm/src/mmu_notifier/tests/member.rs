//! What brackets do to a member by itself: its number, and when those who wait for it are woken.

use super::super::member::{How, Member, Target};
use super::super::misuse::Misuses;
use super::super::sequence::{Ended, Look};
use super::super::stats::Counters;
use super::super::version::{Common, Deferred, Epoch};
use super::super::wait::Waits;
use super::super::{Context, Inject, Notifier, Range};
use core::time::Duration;
use std::sync::Arc;

struct Silent;

impl Notifier for Silent {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        Ok(())
    }
}

/// An interval over which `nr_open` brackets are open, and for which somebody waits.
fn waited(nr_open: u64) -> (Member, Common) {
    let target = Target::Interval { start: 0, end: 1 };
    let member = Member::new(&"silent".into(), 1007, target, Arc::new(Silent));
    let common = Common {
        counters: Counters::default(),
        waits: Waits::new(),
        misuses: Misuses::new(),
    };
    for _ in 1..nr_open {
        member.begin(Inject::None);
    }
    assert_eq!(member.sequence().announce_wait(), Look::Open);
    (member, common)
}

/// Whether a wake-up is still due once nothing is open.
fn is_waited_for(member: &Member) -> bool {
    member.begin(Inject::None);
    member.sequence().end() == Ended::Wake
}

#[test]
fn n51_the_last_end_wakes_and_no_other() {
    for how in [How::Changed, How::GivenUp] {
        let (member, common) = waited(2);
        member.end(how, &common);
        // Were it woken now it would not be told that the last has ended.
        assert_eq!(member.sequence().look(), Look::Open);
        assert_eq!(member.sequence().end(), Ended::Wake, "{how:?}");
        let (member, common) = waited(1);
        member.end(how, &common);
        assert!(!is_waited_for(&member), "{how:?}");
        let (member, common) = waited(1);
        common.counters.inject(Inject::LoseWakeUp);
        member.end(how, &common);
        assert!(is_waited_for(&member), "{how:?}: the fault loses it");
    }
}

/// Who joined while brackets were open is woken when they are over, as if one of them had ended.
#[test]
fn n45_n51_the_end_of_an_epoch_wakes_who_joined_in_it() {
    let (member, common) = waited(1);
    let member = Arc::new(member);
    let epoch = Epoch::new();
    let joined = Deferred::Joined(Arc::clone(&member), Arc::new(common));
    epoch.replace(&Epoch::new(), Some(joined));
    assert_eq!(member.sequence().look(), Look::Open);
    drop(epoch);
    assert_eq!(member.sequence().look(), Look::Idle(0));
    assert!(!is_waited_for(&member));
}

/// A wait is for what is open, and tells the number that it found then.
#[test]
fn n51_a_wait_ends_when_nothing_is_open() {
    let (member, common) = waited(2);
    assert_eq!(member.wait(&common, Some(Duration::ZERO)), None);
    member.end(How::Changed, &common);
    assert_eq!(member.wait(&common, Some(Duration::ZERO)), None);
    member.end(How::Changed, &common);
    for timeout in [None, Some(Duration::ZERO)] {
        assert_eq!(member.wait(&common, timeout), Some(1));
    }
}

/// Where a fault has the number grow late, it grows when the callback has returned.
#[test]
fn the_number_grows_before_the_callback() {
    let (member, _) = waited(1);
    for (fault, before, after) in [(Inject::None, 1, 1), (Inject::BumpAfter, 1, 2)] {
        member.begin(fault);
        assert_eq!(member.sequence().snapshot().1, before, "{fault:?}");
        member.begun(fault);
        assert_eq!(member.sequence().snapshot().1, after, "{fault:?}");
    }
}
