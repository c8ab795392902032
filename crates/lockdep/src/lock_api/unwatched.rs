//! What is told of one lock of another crate where nothing watches: nothing, and in no room.

use crate::registry::WaitType;
use crate::word::{ClassId, Mode};

pub(super) struct Watch;

impl Watch {
    pub(super) const fn new(_class: &'static str, _wait: WaitType) -> Self {
        Self
    }

    pub(super) const fn name(&self) -> &'static str {
        ""
    }

    pub(super) fn id(&self) -> ClassId {
        ClassId::of_key(0)
    }

    pub(super) fn taking(&self, _mode: Mode) {}

    pub(super) fn taken(&self, _mode: Mode) {}

    pub(super) fn tried(&self, _mode: Mode) {}

    pub(super) fn given_up(&self) {}

    pub(super) fn releasing(&self, _is_sent: bool) {}

    pub(super) fn downgrading(&self) {}
}
