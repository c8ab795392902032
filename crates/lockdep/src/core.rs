//! What a validator has seen, behind its one lock.

use crate::finding::NR_HOPS_MAX;
use crate::graph::{Graph, Hop, Place, Step};
use crate::needs::{NR_NOTIFIERS_MAX, Notifier};
use crate::task::{Held, Site};
use crate::testing::Inject;
use crate::usage::{Usage, UsageBit};
use crate::word::{ClassId, Word};

const NR_USES_MAX: usize = crate::room(8 * 1024);
const NR_THREADS_MAX: usize = crate::room(16 * 1024);
/// How many names of tasks are told apart.
const NR_TASK_NAMES_MAX: usize = crate::room(1024);
const NAME_BYTES: usize = 16;

/// A use of a class that set one of its usage bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    pub(crate) class: ClassId,
    pub(crate) bit: UsageBit,
    pub(crate) step: Step,
}

/// A thread that was seen, or all tasks of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    name: [u8; NAME_BYTES],
    /// The name of tasks, which never end as far as is known: there may be more of them.
    task: Option<&'static str>,
    /// The time of its first event, in events of this kind.
    pub(crate) began: u64,
    /// The time of its end, or `u64::MAX`.
    pub(crate) ended: u64,
}

impl Thread {
    /// Whether it stands for tasks, of which there may be several.
    pub(crate) fn is_task(&self) -> bool {
        self.task.is_some()
    }

    pub(crate) fn name(&self) -> &str {
        if let Some(name) = self.task {
            return name;
        }
        let len = self.name.iter().position(|&byte| byte == 0);
        let name = &self.name[..len.unwrap_or(NAME_BYTES)];
        std::str::from_utf8(name).unwrap_or("?")
    }
}

/// Everything behind the lock of a validator.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) graph: Graph,
    /// By class; bytes, so that the table is made of untouched zero pages.
    pub(crate) usage: Vec<u8>,
    /// The union of all.
    pub(crate) usage_any: Usage,
    /// By class: whether a writer was seen, and whether a report waits for one.
    pub(crate) writers: Vec<u8>,
    /// Whether some cycle was found unlikely, and may have to be looked at again.
    pub(crate) has_doubts: bool,
    /// Whether locks that a nest lock tolerates record their orders.
    pub(crate) is_strict: bool,
    /// A fault put in by a test.
    pub(crate) injected: Inject,
    pub(crate) uses: Vec<Use>,
    pub(crate) threads: Vec<Thread>,
    /// Those of `threads` that are tasks.
    tasks: Vec<u32>,
    /// Acquisitions that no table knew.
    pub(crate) nr_misses: u64,
    /// Who notified, with what held; see [`crate::needs`].
    pub(crate) notifiers: Vec<Notifier>,
    now: u64,
    /// The stack of the thread that is looked at.
    pub(crate) stack: Vec<Held>,
    pub(crate) hops: Vec<Hop>,
    /// Scratch of a search of paths.
    pub(crate) trail: Vec<u32>,
}

impl Core {
    pub(crate) fn new() -> Self {
        Self {
            graph: Graph::new(),
            usage: vec![0; ClassId::NR_MAX as usize],
            usage_any: Usage::default(),
            writers: vec![0; ClassId::NR_MAX as usize],
            has_doubts: false,
            is_strict: false,
            injected: Inject::Nothing,
            uses: Vec::with_capacity(NR_USES_MAX),
            threads: Vec::with_capacity(NR_THREADS_MAX),
            tasks: Vec::with_capacity(NR_TASK_NAMES_MAX),
            nr_misses: 0,
            notifiers: Vec::with_capacity(NR_NOTIFIERS_MAX),
            now: 0,
            stack: Vec::with_capacity(crate::room(20 * 1024)),
            hops: Vec::with_capacity(NR_HOPS_MAX),
            trail: Vec::with_capacity(NR_HOPS_MAX),
        }
    }

    /// Forgets everything but the threads.
    pub(crate) fn clear(&mut self) {
        self.graph.clear();
        for used in &self.uses {
            self.usage[used.class.index() as usize] = 0;
        }
        self.uses.clear();
        self.notifiers.clear();
        self.writers.fill(0);
        self.has_doubts = false;
        self.usage_any = Usage::default();
    }

    /// Forgets what was seen of a key.
    pub(crate) fn zap(&mut self, class: ClassId) {
        self.graph.zap(class);
        self.zap_notifiers(class);
        for subclass in 0..ClassId::NR_SUBCLASSES {
            let class = class.subclass(subclass).expect("subclasses are below that");
            self.usage[class.index() as usize] = 0;
            self.writers[class.index() as usize] = 0;
        }
        self.uses.retain(|used| used.class.key() != class.key());
    }

    pub(crate) fn usage(&self, class: ClassId) -> Usage {
        Usage::from_raw(self.usage[class.index() as usize])
    }

    /// Adds a usage bit; false if it was there.
    pub(crate) fn mark(&mut self, used: Use) -> bool {
        let usage = self.usage(used.class);
        // Without room for its place a use is not counted: clearing would leave its bit behind.
        if usage.has(used.bit) || self.uses.len() == self.uses.capacity() {
            return false;
        }
        self.usage[used.class.index() as usize] = usage.with(used.bit).raw();
        self.usage_any = self.usage_any.with(used.bit);
        self.uses.push(used);
        true
    }

    pub(crate) fn find_use(&self, class: ClassId, bit: UsageBit) -> Option<Use> {
        let mut uses = self.uses.iter();
        uses.find(|used| used.class == class && used.bit == bit)
            .copied()
    }

    /// Numbers a thread that has not been seen before; 0 when there is no more room.
    pub(crate) fn add_thread(&mut self) -> u32 {
        self.add(None)
    }

    /// The number of the tasks of this name; 0 when there is no more room.
    pub(crate) fn number_task(&mut self, name: &'static str) -> u32 {
        let is_it = |number: &u32| self.thread(*number).is_some_and(|t| t.task == Some(name));
        if let Some(&number) = self.tasks.iter().find(|&number| is_it(number)) {
            return number;
        }
        if self.tasks.len() == self.tasks.capacity() {
            return 0;
        }
        let number = self.add(Some(name));
        if number != 0 {
            self.tasks.push(number);
        }
        number
    }

    fn add(&mut self, task: Option<&'static str>) -> u32 {
        if self.threads.len() == self.threads.capacity() {
            return 0;
        }
        self.now += 1;
        self.threads.push(Thread {
            name: task.map_or_else(thread_name, |_| [0; NAME_BYTES]),
            task,
            began: self.now,
            ended: u64::MAX,
        });
        self.threads.len() as u32
    }

    pub(crate) fn end_thread(&mut self, number: u32) {
        self.now += 1;
        let now = self.now;
        if let Some(thread) = self.threads.get_mut((number as usize).wrapping_sub(1)) {
            thread.ended = now;
        }
    }

    pub(crate) fn thread(&self, number: u32) -> Option<&Thread> {
        self.threads.get((number as usize).checked_sub(1)?)
    }
}

/// The name of the calling thread, without allocating.
///
/// The standard library's own would make a handle for threads that it has not made, which must not
/// happen in an allocator.
fn thread_name() -> [u8; NAME_BYTES] {
    use std::io::Read;
    let mut name = [0; NAME_BYTES];
    if cfg!(not(miri))
        && let Ok(mut file) = std::fs::File::open("/proc/thread-self/comm")
    {
        let nr_read = file.read(&mut name).unwrap_or(0);
        let end = name[..nr_read].iter().position(|&byte| byte == b'\n');
        name[end.unwrap_or(nr_read)..].fill(0);
    }
    name
}

pub(crate) fn step_of(held: &Held) -> Step {
    Step {
        word: held.word,
        site: held.site,
    }
}

/// An order that nobody was seen to take.
pub(crate) fn declared(from: Word, to: Word) -> Place {
    let step = |word| Step {
        word,
        site: Site::Unknown,
    };
    Place {
        held: step(from),
        taken: step(to),
        thread: 0,
        provenance: crate::graph::Provenance::Declared,
    }
}
