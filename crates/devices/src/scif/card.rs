//! The coprocessor's side: its memory, the mirrors of windows, and the messages between nodes.

use crate::engine::{Doorbell, Next};
use crate::scif::{Endpoint, Offset, Offsets, Unit};
use lockdep::sync::{Fence, ShortLock};
use pinless_mm::addr::PAGE_SIZE;
use std::collections::VecDeque;

/// How many messages are on their way at once.
const INBOX_MAX: usize = 16;

/// How many mirrors of windows a node keeps.
pub const WINDOWS_MAX: usize = 16;

/// The other node.
pub struct Card {
    state: ShortLock<State>,
    doorbell: Doorbell,
    endpoint: Endpoint,
}

struct State {
    inbox: VecDeque<Message>,
    mirrors: Vec<Offset>,
    /// Windows of its own memory that the other side may copy from and to.
    offered: Vec<Offered>,
    offsets: Offsets,
    memory: Vec<u8>,
    /// It answers no message.
    is_silent: bool,
    is_over: bool,
}

/// A window of the node's own.
struct Offered {
    offset: Offset,
    at: usize,
    nr_bytes: usize,
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
    /// A node with so many bytes of memory, and its program's connection to the other node.
    pub fn new(nr_bytes: usize, endpoint: Endpoint) -> Self {
        let state = State {
            inbox: VecDeque::with_capacity(INBOX_MAX),
            mirrors: Vec::with_capacity(WINDOWS_MAX),
            offered: Vec::with_capacity(WINDOWS_MAX),
            offsets: Offsets::default(),
            memory: vec![0; nr_bytes],
            is_silent: false,
            is_over: false,
        };
        Self {
            state: ShortLock::new("devices.scif.card", state),
            doorbell: Doorbell::new(),
            endpoint,
        }
    }

    /// The connection of the node's program to that of the other node.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
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

    /// Registers a window of the node's own memory; none if there is no room, or no such memory.
    pub fn offer(&self, at: usize, nr_bytes: usize) -> Option<Offset> {
        let mut state = self.state.lock();
        let is_there = at.checked_add(nr_bytes)? <= state.memory.len() && nr_bytes > 0;
        if state.offered.len() == WINDOWS_MAX {
            return None;
        }
        let nr_pages = u32::try_from(nr_bytes.div_ceil(PAGE_SIZE)).ok()?;
        let offset = is_there.then(|| state.offsets.take(nr_pages, Unit::Pages))??;
        state.offered.push(Offered {
            offset,
            at,
            nr_bytes,
        });
        Some(offset)
    }

    /// Where in the node's memory `nr_bytes` of a window are, if it has so many there.
    pub fn place(&self, offset: Offset, from: usize, nr_bytes: usize) -> Option<usize> {
        let state = self.state.lock();
        let window = state
            .offered
            .iter()
            .find(|window| window.offset == offset)?;
        let is_inside = from.checked_add(nr_bytes)? <= window.nr_bytes;
        is_inside.then_some(window.at + from)
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

    /// The node goes away: it answers what is in its inbox, and then nothing any more, and its
    /// program hangs up.
    pub fn stop(&self) {
        self.endpoint.close();
        self.state.lock().is_over = true;
        self.doorbell.ring();
    }
}
