//! The guide for people who write a subscriber, so that its programs are compiled and run.

#[doc = include_str!("../../../../docs/mmu-notifiers.md")]
pub(super) struct Guide;
