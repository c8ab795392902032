//! The coprocessor's side: its memory, the mirrors of windows, and the messages between nodes.

use crate::engine::{Doorbell, Next};
use crate::scif::Offset;
use lockdep::sync::{Fence, ShortLock};
use std::collections::VecDeque;

/// How many messages are on their way at once.
const INBOX_MAX: usize = 16;

/// How many mirrors of windows a node keeps.
pub const WINDOWS_MAX: usize = 16;

/// The other node.
pub struct Card {
    state: ShortLock<State>,
    doorbell: Doorbell,
}

struct State {
    inbox: VecDeque<Message>,
    mirrors: Vec<Offset>,
    memory: Vec<u8>,
    /// It answers no message.
    is_silent: bool,
    is_over: bool,
}

/// What one node tells the other; each is answered by its fence.
pub struct Message {
    /// What it is about.
    pub what: What,
    /// Signals when the other node has done it.
    pub done: Fence,
}

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A window is there: keep a mirror of it.
    Register(Offset),
    /// It goes: the mirror must go first.
    Unregister(Offset),
    /// Everything before this has arrived.
    Fence,
}

impl Card {
    /// A node with so many bytes of memory.
    pub fn new(nr_bytes: usize) -> Self {
        let state = State {
            inbox: VecDeque::with_capacity(INBOX_MAX),
            mirrors: Vec::with_capacity(WINDOWS_MAX),
            memory: vec![0; nr_bytes],
            is_silent: false,
            is_over: false,
        };
        Self {
            state: ShortLock::new("devices.scif.card", state),
            doorbell: Doorbell::new(),
        }
    }

    /// Sends a message; the fence signals when it was answered. None if the inbox is full, or the
    /// node is gone.
    pub fn send(&self, what: What) -> Option<Fence> {
        let done = Fence::new("devices.scif.answer");
        let mut state = self.state.lock();
        if state.is_over || state.inbox.len() == INBOX_MAX {
            return None;
        }
        let message = Message {
            what,
            done: done.clone(),
        };
        state.inbox.push_back(message);
        drop(state);
        self.doorbell.ring();
        Some(done)
    }

    /// The node: answers messages until it is stopped.
    pub fn serve(&self) {
        self.doorbell.serve(|| {
            let mut state = self.state.lock();
            if state.is_silent && !state.is_over {
                return Next::Sleep;
            }
            let Some(message) = state.inbox.pop_front() else {
                return if state.is_over {
                    Next::End
                } else {
                    Next::Sleep
                };
            };
            match message.what {
                What::Register(offset) if state.mirrors.len() < WINDOWS_MAX => {
                    state.mirrors.push(offset);
                }
                What::Unregister(offset) => state.mirrors.retain(|&mirror| mirror != offset),
                What::Register(_) | What::Fence => {}
            }
            drop(state);
            message.done.signal();
            Next::Step
        });
    }

    /// Stores bytes in the node's memory.
    ///
    /// # Panics
    ///
    /// If they do not fit.
    pub fn store(&self, at: usize, bytes: &[u8]) {
        self.state.lock().memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Loads bytes from the node's memory.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn load(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.state.lock().memory[at..at + into.len()]);
    }

    /// How many windows it has mirrors of.
    pub fn nr_mirrors(&self) -> usize {
        self.state.lock().mirrors.len()
    }

    /// The node answers no message.
    pub fn mute(&self) {
        self.state.lock().is_silent = true;
    }

    /// The node answers again.
    pub fn unmute(&self) {
        self.state.lock().is_silent = false;
        self.doorbell.ring();
    }

    /// The node answers what is in its inbox, and then nothing any more.
    pub fn stop(&self) {
        self.state.lock().is_over = true;
        self.doorbell.ring();
    }
}
