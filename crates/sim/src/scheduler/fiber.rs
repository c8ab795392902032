//! A task's own stack: a coroutine on the thread that makes the run.
//!
//! What is local to a thread and is a task's own is put aside with it: what `lockdep` and the
//! memory manager keep for a thread, and the panic that it is in the middle of.

use super::panics;
use super::state::Next;
use generator::{Generator, Gn};
use std::mem;

/// The size of a stack in words: a mebibyte, of which the system gives what is touched.
const STACK_WORDS: usize = (1 << 20) / size_of::<usize>();

type Stack = Generator<'static, (), Next>;

/// A task that has begun.
pub(super) struct Fiber {
    /// There until the drop.
    stack: Option<Stack>,
    local: Local,
}

/// What is local to a thread, of one that does not run.
#[derive(Default)]
struct Local {
    lockdep: lockdep::ThreadState,
    mm: pinless_mm::ThreadState,
    panic: panics::State,
}

/// Fibers whose tasks have ended, for the next ones.
#[derive(Default)]
pub(super) struct Idle(Vec<Fiber>);

/// Gives the thread back to who resumed the calling fiber, until it is resumed again.
///
/// # Panics
///
/// If the caller is not in a fiber.
pub(super) fn suspend(next: Next) {
    #[expect(deprecated, reason = "a scope cannot be had deep inside a task")]
    generator::yield_with(next);
}

impl Idle {
    /// A fiber that runs `task` when it is resumed.
    pub(super) fn begin(&mut self, task: impl FnOnce() -> Next + Send + 'static) -> Fiber {
        let Some(mut fiber) = self.0.pop() else {
            return Fiber {
                stack: Some(Gn::new_opt(STACK_WORDS, task)),
                local: Local::default(),
            };
        };
        fiber.stack().init_code(task);
        fiber.local.restart();
        fiber
    }

    /// Takes what can be used again.
    pub(super) fn put(&mut self, fiber: Fiber) {
        self.0.push(fiber);
    }
}

impl Fiber {
    /// Goes on with the task; returns when it gives the thread back.
    pub(super) fn resume(&mut self) -> Next {
        self.local.exchange();
        let next = self.stack().resume();
        self.local.exchange();
        next.expect("a task says who is next before it ends")
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.stack().is_done()
    }

    fn stack(&mut self) -> &mut Stack {
        self.stack.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Fiber {
    /// A task that has not ended stays where it is: its stack is never freed. Destructors of a
    /// state that is broken might wait for ever, or panic.
    fn drop(&mut self) {
        if !self.has_ended() {
            mem::forget(self.stack.take());
        }
    }
}

impl Local {
    /// Puts this on the calling thread, and what was there into `self`.
    fn exchange(&mut self) {
        self.panic.exchange();
        self.mm.exchange();
        self.lockdep.exchange();
    }

    fn restart(&mut self) {
        self.lockdep.restart();
        self.mm = pinless_mm::ThreadState::new();
        self.panic = panics::State::default();
    }
}
