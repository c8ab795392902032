//! What is told of one lock of another crate.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::UNNAMED;
use crate::class::Class;
use crate::event::{self, Acquire};
use crate::handed::{self, Token};
use crate::hooks;
use crate::registry::{self, Attributes, WaitType};
use crate::task::{self, Site};
use crate::wait::{EventKind, EventState, Limit};
use crate::word::{ClassId, Mode};

/// What is told of one lock.
pub(super) struct Watch {
    class: Class,
    wait: WaitType,
    /// The token of who took it alone.
    taken_by: AtomicU32,
    /// Another thread than had taken it once released it: it is an event now.
    is_event: AtomicBool,
    waits: EventState,
}

impl Watch {
    #[track_caller]
    pub(super) const fn new(class: &'static str, wait: WaitType) -> Self {
        Self {
            class: Class::new(class),
            wait,
            taken_by: AtomicU32::new(Token::ANY.0),
            is_event: AtomicBool::new(false),
            waits: EventState::new(EventKind::Once),
        }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.class.name()
    }

    #[track_caller]
    pub(super) fn id(&self) -> ClassId {
        let attributes = Attributes::of(self.wait);
        if self.class.known_id().is_none() && self.class.name() == UNNAMED {
            let place = Location::caller();
            self.class
                .set_id(registry::resolve_site("unnamed", place, &attributes));
        }
        self.class.id(&attributes)
    }

    // Relaxed throughout: the lock itself orders what its holders write, and a reader that learns
    // late that the lock is an event told an order more.
    fn is_event(&self) -> bool {
        self.is_event.load(Ordering::Relaxed)
    }

    /// Somebody is about to take it, and may block.
    #[track_caller]
    pub(super) fn taking(&self, mode: Mode) {
        if !hooks::load().has_validator() {
            return;
        }
        if self.is_event() {
            let site = Site::caller();
            return drop(self.waits.wait(self.id(), Limit::Forever, site));
        }
        event::acquire(&Acquire::new(self.id(), self.class.addr(), mode));
    }

    /// It was taken, as was told before.
    pub(super) fn taken(&self, mode: Mode) {
        if !hooks::load().has_validator() {
            return;
        }
        if self.is_event() {
            return self.waits.begin();
        }
        let taken_by = if mode.is_read() {
            Token::ANY
        } else {
            Token::mine()
        };
        self.taken_by.store(taken_by.0, Ordering::Relaxed);
    }

    /// It was taken without blocking.
    #[track_caller]
    pub(super) fn tried(&self, mode: Mode) {
        if hooks::load().has_validator() && !self.is_event() {
            event::acquire(&Acquire::new(self.id(), self.class.addr(), mode).tried());
        }
        self.taken(mode);
    }

    /// It was not taken after all.
    pub(super) fn given_up(&self) {
        if hooks::load().has_validator() && !self.is_event() {
            event::release_at(self.class.addr(), Site::Unknown);
        }
    }

    /// It is about to be released.
    #[track_caller]
    pub(super) fn releasing(&self, is_sent: bool) {
        let (hooks, addr) = (hooks::load(), self.class.addr());
        if !hooks.has_validator() || task::with(|task| task.pop_known(addr, hooks)) {
            return;
        }
        let is_mine = event::is_held(addr, event::HeldAs::Any) == Some(true);
        if is_mine || !is_sent || hooks::was_toggled() {
            return event::release_at(addr, Site::Unknown);
        }
        if !self.is_event.swap(true, Ordering::Relaxed) {
            handed::file(Token(self.taken_by.load(Ordering::Relaxed)), addr);
        } else {
            self.waits.signal(self.id(), Site::caller());
        }
    }

    /// Its writer is about to become a reader.
    pub(super) fn downgrading(&self) {
        if hooks::load().has_validator() && !self.is_event() {
            event::downgrade(self.class.addr());
            self.taken(Mode::Shared);
        }
    }
}
