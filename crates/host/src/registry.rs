//! Which address belongs to which mapping: a table that a signal handler can read.
//!
//! Readers take no lock and allocate nothing. A writer publishes a new table and waits until no
//! reader can still see the old one: each reader stands in one of two counters while it searches,
//! and the writer turns new readers to the other counter and waits for each to empty once, as
//! sleepable RCU does. What a search finds is held by a count of its own ("in flight"), because
//! resolving a fault may take long; taking a mapping out waits for that count.
//!
//! Linux counterpart: `kernel/rcu/srcutree.c`, `include/linux/percpu-refcount.h`.

use crate::fault_thread::Pleader;
use crate::fork::is_forked_child;
use crate::primary_mmu::HostMmu;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use lockdep::sync::{Completion, Mutex, spin_wait};
use pinless_mm::fault::FaultHandler;
use std::sync::Arc;

/// What lies at a range of addresses.
#[derive(Clone)]
pub(crate) enum Kind {
    /// A mapping.
    Managed {
        /// Who resolves its faults.
        handler: Arc<dyn FaultHandler>,
        /// Its memory.
        mmu: Arc<HostMmu>,
        /// The service that a thread may ask that cannot resolve a fault itself, if there is one.
        pleader: Option<Pleader>,
    },
    /// The slots of a mapping: an access that faults there is a bug of ours.
    Staging,
    /// Memory of another process: what ends in a signal there was refused.
    Foreign,
}

/// A range of addresses and what lies there.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) base: usize,
    pub(crate) len: usize,
    pub(crate) kind: Kind,
}

/// In `nr_in_flight`: the last one to leave says so.
const CLOSING: u32 = 1 << 31;

/// The place of a target. Never freed but used again, so a reader that leaves late touches no
/// freed memory.
///
/// # Invariants
///
/// `target` is written only while no table names the slot and `nr_in_flight` is zero; it is read
/// only by who is counted in `nr_in_flight`, or holds the registry's lock.
struct Slot {
    /// How many hold it; [`CLOSING`] when somebody waits for that to be none.
    nr_in_flight: AtomicU32,
    left: Completion,
    target: UnsafeCell<Option<Target>>,
}

// SAFETY: `target` is the only field that is not `Sync`; by the type invariant it is never written
// while another thread can read it. Its contents, an `Arc` of a `Send + Sync` handler and numbers,
// may be read and dropped by any thread.
unsafe impl Sync for Slot {}

#[derive(Clone, Copy)]
struct Row {
    base: usize,
    end: usize,
    slot: &'static Slot,
}

/// The rows in order of address.
type Table = Vec<Row>;

static TABLE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());
static EPOCH: AtomicUsize = AtomicUsize::new(0);
static READERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
/// Slots that no table names. The lock also serializes the writers.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new("host.registry", Vec::new());

/// A target in the table; taken out when dropped.
pub(crate) struct Registration {
    slot: &'static Slot,
}

/// A target that was found, and stays until this is dropped.
pub(crate) struct InFlight {
    slot: &'static Slot,
}

/// Puts a target into the table. Ranges of targets do not overlap.
pub(crate) fn register(target: Target) -> Registration {
    let mut free = FREE.lock();
    let slot = free.pop().unwrap_or_else(|| {
        Box::leak(Box::new(Slot {
            nr_in_flight: AtomicU32::new(0),
            left: Completion::new("host.registry.left"),
            target: UnsafeCell::new(None),
        }))
    });
    let row = Row {
        base: target.base,
        end: target.base + target.len,
        slot,
    };
    // SAFETY: the slot came from the free list, or is new: no table names it and nobody is in
    // flight in it, so nobody else accesses the cell (type invariant).
    unsafe { *slot.target.get() = Some(target) };
    let mut table = current();
    let place = table.partition_point(|other| other.base < row.base);
    assert!(
        place == 0 || table[place - 1].end <= row.base,
        "two mappings at one address"
    );
    assert!(
        table.get(place).is_none_or(|next| row.end <= next.base),
        "two mappings at one address"
    );
    table.insert(place, row);
    publish(table);
    drop(free);
    Registration { slot }
}

/// Finds what lies at an address. Callable from a signal handler.
pub(crate) fn lookup(address: usize) -> Option<InFlight> {
    let mut reader = enter();
    // SeqCst: pairs with the swap in `publish`. A reader that the writer did not see in a counter
    // came after the swap in the one order of these operations, so it loads the new table.
    let table = TABLE.load(Ordering::SeqCst);
    // SAFETY: a table that was published is freed only after every reader that may have loaded it
    // has left its counter (`publish`); this one leaves when `reader` drops, below.
    let table = unsafe { table.as_ref() };
    let found = table.and_then(|table| {
        let place = table.partition_point(|row| row.end <= address);
        let row = table.get(place)?;
        (row.base <= address).then_some(row.slot)
    });
    found.map(|slot| {
        // Relaxed: `Registration::drop` reads the count only after a grace period, which orders
        // everything that this reader did before.
        slot.nr_in_flight.fetch_add(1, Ordering::Relaxed);
        reader.leave();
        InFlight { slot }
    })
}

impl InFlight {
    /// What was found.
    pub(crate) fn target(&self) -> &Target {
        // SAFETY: this value is counted in `nr_in_flight`, so the cell is not written while the
        // reference lives (type invariant of `Slot`).
        let target = unsafe { &*self.slot.target.get() };
        target
            .as_ref()
            .expect("a slot that a table names has a target")
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Release: pairs with the acquire in `Registration::drop`; what this reader did with the
        // target happens before the target goes.
        if self.slot.nr_in_flight.fetch_sub(1, Ordering::Release) == CLOSING | 1 {
            self.slot.left.complete_all();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if is_forked_child() {
            // The threads that may be using it are not here to be waited for.
            return;
        }
        let free = FREE.lock();
        let mut table = current();
        table.retain(|row| !core::ptr::eq(row.slot, self.slot));
        publish(table);
        drop(free);
        // From here on nobody finds the slot. Who has it already is waited for, without the lock:
        // resolving a fault may take long.
        //
        // Relaxed: the loop reads the count again.
        self.slot.nr_in_flight.fetch_or(CLOSING, Ordering::Relaxed);
        // Acquire: pairs with the release in `InFlight::drop`.
        while self.slot.nr_in_flight.load(Ordering::Acquire) != CLOSING {
            self.slot.left.wait();
            // A late announcement of an earlier use of the slot may end a wait too early: so the
            // count is read again, after the reset, which any later announcement undoes.
            self.slot.left.reset();
        }
        // SAFETY: no table names the slot and nobody is in flight in it, so nobody else accesses
        // the cell (type invariant).
        let target = unsafe { (*self.slot.target.get()).take() };
        // Relaxed: the lock below hands the slot to its next user.
        self.slot.nr_in_flight.store(0, Ordering::Relaxed);
        FREE.lock().push(self.slot);
        drop(target);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}

/// A reader in one of the two counters.
struct Reader {
    counter: Option<&'static AtomicUsize>,
}

fn enter() -> Reader {
    // Relaxed: a reader that is late for its counter is dealt with by the second wait of a writer.
    let counter = &READERS[EPOCH.load(Ordering::Relaxed) & 1];
    // SeqCst: pairs with the loads in `wait_for_readers`.
    counter.fetch_add(1, Ordering::SeqCst);
    Reader {
        counter: Some(counter),
    }
}

impl Reader {
    fn leave(&mut self) {
        if let Some(counter) = self.counter.take() {
            // SeqCst: pairs with the loads in `wait_for_readers`: what was done before is done.
            counter.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A copy of the table that readers see. For writers, who hold the lock.
fn current() -> Table {
    // Relaxed: only writers change it, and they hold the lock.
    let table = TABLE.load(Ordering::Relaxed);
    // SAFETY: only writers free tables, and this one holds their lock.
    unsafe { table.as_ref() }.cloned().unwrap_or_default()
}

/// Shows readers a new table, waits until none sees the old one, and frees that. For writers, who
/// hold the lock.
fn publish(table: Table) {
    let new = Box::into_raw(Box::new(table));
    // SeqCst: pairs with the load in `lookup`.
    let old = TABLE.swap(new, Ordering::SeqCst);
    wait_for_readers();
    if !old.is_null() {
        // SAFETY: `old` came from `Box::into_raw` in an earlier call. It is no longer published,
        // and every reader that may have loaded it has left.
        drop(unsafe { Box::from_raw(old) });
    }
}

/// Waits until every reader that came before the call has left.
///
/// ```text
///   reader                         writer
///   c = EPOCH & 1                  swap the table
///   READERS[c] += 1                EPOCH += 1, wait for READERS[old]
///   load the table                 EPOCH += 1, wait for READERS[new]
///   READERS[c] -= 1                free the old table
/// ```
/// A reader may have read EPOCH long ago, so either counter may hold an old reader, and both are
/// waited for; turning new readers away first keeps them from feeding the one waited for.
fn wait_for_readers() {
    for _ in 0..2 {
        // SeqCst: readers that come after it stand in the other counter.
        let old = EPOCH.fetch_add(1, Ordering::SeqCst) & 1;
        // SeqCst: pairs with the additions and subtractions of readers.
        // A reader is a few dozen instructions from leaving, in a signal handler that no other
        // handler interrupts.
        let counter = &READERS[old];
        spin_wait("host.registry.readers", 0, || {
            counter.load(Ordering::SeqCst) == 0
        });
    }
}
