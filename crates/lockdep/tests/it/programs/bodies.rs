//! The programs, and what is expected of each.

use lockdep::sync::{Condvar, Mutex, RwLock};
use lockdep::{Attributes, DynamicClass, Kind, Level, Map, context};

use super::wrappers::{
    AsyncMutex, Channel, Joinable, Lock, Once, Semaphore, give_way, run_alone, run_tasks,
};
use super::{Body, Expected, Fine, Found, Program, Run, Stage};

/// A program by the name of its function.
macro_rules! programs {
    ($($name:ident: $expected:expr,)*) => {
        pub(super) const ALL: &[Program] = &[$(Program {
            name: stringify!($name),
            run: $name,
            expected: $expected,
        },)*];
    };
}

const CIRCLE: Expected = Found(Kind::Circular);
const SILENT: Expected = Fine { unlikely: false };
const UNLIKELY: Expected = Fine { unlikely: true };

programs! {
    abba: CIRCLE,
    abba_one_thread: CIRCLE,
    cycle3: CIRCLE,
    reentrancy: Found(Kind::Recursive),
    rw_upgrade: Found(Kind::Recursive),
    rw_read_recursion: Found(Kind::Recursive),
    rw_inversion: CIRCLE,
    rr_inversion_writers: CIRCLE,
    trylock_then_block: CIRCLE,
    transient_middle: CIRCLE,
    class_abba: CIRCLE,
    condvar_holding_other: CIRCLE,
    channel_holding_lock: CIRCLE,
    semaphore_abba: CIRCLE,
    join_holding_lock: CIRCLE,
    once_recursion: Found(Kind::Recursive),
    once_vs_mutex: CIRCLE,
    leaked_guard: Found(Kind::HeldAtExit),
    guard_across_await: Found(Kind::HeldAtExit),
    async_mutex_abba: CIRCLE,
    reclaim_context: CIRCLE,
    signal_context: Found(Kind::InconsistentUsage),
    no_block_section: Found(Kind::WaitContext),
    ok_trylock_backoff: SILENT,
    ok_rr_inversion_no_writer: UNLIKELY,
    ok_address_order: SILENT,
    ok_parent_child: SILENT,
    ok_out_of_order_drop: SILENT,
    ok_gate_lock: UNLIKELY,
    ok_hb_separated: UNLIKELY,
    ok_recreated_opposite: UNLIKELY,
}

fn body<'a>(body: impl FnOnce() + Send + 'a) -> Body<'a> {
    Box::new(body)
}

fn nest(outer: &Mutex<()>, inner: &Mutex<()>) {
    let _outer = outer.lock();
    let _inner = inner.lock();
}

fn abba(stage: &Stage) {
    let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
    stage.together(vec![body(|| nest(&a, &b)), body(|| nest(&b, &a))]);
}

fn abba_one_thread(stage: &Stage) {
    let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
    stage.together(vec![body(|| {
        nest(&a, &b);
        nest(&b, &a);
    })]);
}

fn cycle3(stage: &Stage) {
    let (a, b, c) = (
        Mutex::new("a", ()),
        Mutex::new("b", ()),
        Mutex::new("c", ()),
    );
    stage.together(vec![
        body(|| nest(&a, &b)),
        body(|| nest(&b, &c)),
        body(|| nest(&c, &a)),
    ]);
}

fn reentrancy(stage: &Stage) {
    let a = Mutex::new("a", ());
    stage.until_report(|| nest(&a, &a));
}

fn rw_upgrade(stage: &Stage) {
    let a = RwLock::new("a", ());
    stage.until_report(|| {
        let _reader = a.read();
        let _writer = a.write();
    });
}

fn rw_read_recursion(stage: &Stage) {
    let a = RwLock::new("a", ());
    stage.together(vec![body(|| {
        let _reader = a.read();
        let _again = a.read();
    })]);
}

fn rw_inversion(stage: &Stage) {
    let (a, b) = (RwLock::new("a", ()), Mutex::new("b", ()));
    let reader = || {
        let _a = a.read();
        let _b = b.lock();
    };
    let writer = || {
        let _b = b.lock();
        let _a = a.write();
    };
    stage.together(vec![body(reader), body(writer)]);
}

fn read_both(first: &RwLock<()>, then: &RwLock<()>) {
    let _first = first.read();
    let _then = then.read();
}

fn rr_inversion_writers(stage: &Stage) {
    let (a, b) = (RwLock::new("a", ()), RwLock::new("b", ()));
    stage.together(vec![
        body(|| read_both(&a, &b)),
        body(|| read_both(&b, &a)),
        body(|| drop(a.write())),
        body(|| drop(b.write())),
    ]);
}

fn trylock_then_block(stage: &Stage) {
    let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
    let tries = || {
        let _a = a.try_lock();
        let _b = b.lock();
    };
    stage.together(vec![body(tries), body(|| nest(&b, &a))]);
}

fn transient_middle(stage: &Stage) {
    let (a, c) = (Mutex::new("a", ()), Mutex::new("c", ()));
    let through = || {
        let _a = a.lock();
        let middle = Mutex::new("middle", ());
        let _middle = middle.lock();
        let _c = c.lock();
    };
    stage.together(vec![body(through), body(|| nest(&c, &a))]);
}

fn class_abba(stage: &Stage) {
    let inodes = [(); 2].map(|()| Mutex::new("inode", ()));
    let pages = [(); 2].map(|()| Mutex::new("page", ()));
    stage.together(vec![
        body(|| nest(&inodes[0], &pages[0])),
        body(|| nest(&pages[1], &inodes[1])),
    ]);
}

/// A flag that is waited for.
struct Flag {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn new() -> Self {
        Self {
            is_set: Mutex::new("flag", false),
            changed: Condvar::new("changed"),
        }
    }

    fn set(&self) {
        *self.is_set.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let is_set = self.is_set.lock();
        drop(self.changed.wait_while(is_set, |is_set| !*is_set));
    }
}

fn condvar_holding_other(stage: &Stage) {
    let (other, flag) = (Mutex::new("other", ()), Flag::new());
    let notifier = || {
        let _other = other.lock();
        flag.set();
    };
    let waiter = || {
        let _other = other.lock();
        flag.wait();
    };
    stage.together(vec![body(notifier), body(waiter)]);
}

fn channel_holding_lock(stage: &Stage) {
    let (lock, channel) = (Mutex::new("lock", ()), Channel::new());
    let sender = || {
        drop(lock.lock());
        channel.send(1);
    };
    let receiver = || {
        let _lock = lock.lock();
        assert_eq!(channel.receive(), 1);
    };
    stage.together(vec![body(sender), body(receiver)]);
}

fn semaphore_abba(stage: &Stage) {
    let (a, b) = (Semaphore::new("a"), Semaphore::new("b"));
    let both = |first: &Semaphore, then: &Semaphore| {
        let _first = first.acquire();
        let _then = then.acquire();
    };
    stage.together(vec![body(|| both(&a, &b)), body(|| both(&b, &a))]);
}

fn join_holding_lock(stage: &Stage) {
    let (lock, thread) = (Mutex::new("lock", ()), Joinable::new("thread"));
    let joined = || thread.run(|| drop(lock.lock()));
    let joining = || {
        let _lock = lock.lock();
        thread.join();
    };
    stage.together(vec![body(joined), body(joining)]);
}

fn once_recursion(stage: &Stage) {
    let once = Once::new("once");
    stage.until_report(|| once.call_once(|| once.call_once(|| ())));
}

fn once_vs_mutex(stage: &Stage) {
    let (once, mutex) = (Once::new("once"), Mutex::new("mutex", ()));
    let maker = || once.call_once(|| drop(mutex.lock()));
    let user = || {
        let _mutex = mutex.lock();
        once.call_once(|| ());
    };
    stage.together(vec![body(maker), body(user)]);
}

fn leaked_guard(stage: &Stage) {
    let a = Mutex::new("a", ());
    stage.together(vec![body(|| std::mem::forget(a.lock()))]);
}

fn guard_across_await(stage: &Stage) {
    let a = Mutex::new("a", ());
    let holds = || {
        run_alone(async {
            let _a = a.lock();
            give_way().await;
        });
    };
    stage.together(vec![body(holds)]);
}

fn async_mutex_abba(stage: &Stage) {
    let executor = || {
        let (a, b) = (AsyncMutex::new("a"), AsyncMutex::new("b"));
        let one = async {
            let _a = a.lock().await;
            let _b = b.lock().await;
        };
        let other = async {
            let _b = b.lock().await;
            let _a = a.lock().await;
        };
        run_tasks(vec![Box::pin(one), Box::pin(other)]);
    };
    stage.together(vec![body(executor)]);
}

fn reclaim_context(stage: &Stage) {
    let (reclaim, lock) = (Map::new("reclaim"), Mutex::new("lock", ()));
    let shrinker = || {
        let _reclaim = reclaim.enter();
        drop(lock.lock());
    };
    let allocates = || {
        let _lock = lock.lock();
        reclaim.might_acquire();
    };
    stage.together(vec![body(shrinker), body(allocates)]);
}

fn signal_context(stage: &Stage) {
    let lock = Mutex::new("lock", ());
    let handler = || {
        let _signal = context::enter(Level::Hard);
        drop(lock.lock());
    };
    stage.together(vec![body(|| {
        drop(lock.lock());
        handler();
    })]);
}

fn no_block_section(stage: &Stage) {
    let lock = Mutex::new("lock", ());
    stage.together(vec![body(|| {
        let _section = context::non_block();
        drop(lock.lock());
    })]);
}

fn ok_trylock_backoff(stage: &Stage) {
    let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
    let tries = |first: &Mutex<()>, then: &Mutex<()>| {
        let _first = first.lock();
        drop(then.try_lock());
    };
    stage.together(vec![body(|| tries(&a, &b)), body(|| tries(&b, &a))]);
}

fn ok_rr_inversion_no_writer(stage: &Stage) {
    let (a, b) = (RwLock::new("a", ()), RwLock::new("b", ()));
    stage.together(vec![body(|| read_both(&a, &b)), body(|| read_both(&b, &a))]);
}

fn ok_address_order(stage: &Stage) {
    let by_address = Attributes::SLEEP.ordered(|held, taken| held.cmp(&taken));
    let class = DynamicClass::new("account", by_address);
    let accounts = [0; 2];
    let both = || {
        let _low = Lock::new(class.id(), &accounts[0]).lock();
        let _high = Lock::new(class.id(), &accounts[1]).lock();
    };
    stage.together(vec![body(both), body(both)]);
}

fn ok_parent_child(stage: &Stage) {
    let class = DynamicClass::new("node", Attributes::SLEEP);
    let child = class.id().subclass(1).expect("one of eight");
    let nodes = [0; 2];
    let down = || {
        let _parent = Lock::new(class.id(), &nodes[0]).lock();
        let _child = Lock::new(child, &nodes[1]).lock();
    };
    stage.together(vec![body(down), body(down)]);
}

fn ok_out_of_order_drop(stage: &Stage) {
    let (a, b, c) = (
        Mutex::new("a", ()),
        Mutex::new("b", ()),
        Mutex::new("c", ()),
    );
    let hand_over_hand = || {
        let held = a.lock();
        let next = b.lock();
        drop(held);
        let last = c.lock();
        drop(next);
        drop(last);
    };
    stage.together(vec![body(hand_over_hand), body(hand_over_hand)]);
}

fn ok_gate_lock(stage: &Stage) {
    let gate = Mutex::new("gate", ());
    let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
    let gated = |outer: &Mutex<()>, inner: &Mutex<()>| {
        let _gate = gate.lock();
        nest(outer, inner);
    };
    stage.together(vec![body(|| gated(&a, &b)), body(|| gated(&b, &a))]);
}

fn ok_hb_separated(stage: &Stage) {
    let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
    stage.one_by_one(vec![body(|| nest(&a, &b)), body(|| nest(&b, &a))]);
}

/// Each thread builds its pair, takes it in its order, and is gone with it before the next.
fn ok_recreated_opposite(stage: &Stage) {
    let with_pair = |takes: fn(&Mutex<()>, &Mutex<()>)| {
        let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
        takes(&a, &b);
    };
    stage.one_by_one(vec![
        body(|| with_pair(nest)),
        body(|| with_pair(|a, b| nest(b, a))),
    ]);
}

/// Who notifies while somebody may wait, and whether the waiter is told of.
pub(super) const NOTIFIERS: &[(Run, Expected)] = &[
    (condvar_holding_other, CIRCLE),
    (waiter_comes_first, CIRCLE),
    (unrelated_lock_long_before, SILENT),
    (another_notifier_needs_nothing, SILENT),
    (a_lock_of_another_object, SILENT),
    (only_the_mutex_of_the_wait, SILENT),
    (a_lock_that_is_only_tried, SILENT),
    (a_map_that_many_are_in, SILENT),
];

/// The condition is fulfilled in silence, and the notifier comes later.
fn waiter_comes_first(stage: &Stage) {
    let (other, flag) = (Mutex::new("other", ()), Flag::new());
    *flag.is_set.lock() = true;
    let waiter = || {
        let _other = other.lock();
        flag.wait();
    };
    let notifier = || {
        let _other = other.lock();
        flag.set();
    };
    stage.together(vec![body(waiter), body(notifier)]);
}

fn unrelated_lock_long_before(stage: &Stage) {
    let (other, flag) = (Mutex::new("other", ()), Flag::new());
    let notifier = || {
        drop(other.lock());
        flag.set();
    };
    let waiter = || {
        let _other = other.lock();
        flag.wait();
    };
    stage.together(vec![body(notifier), body(waiter)]);
}

fn another_notifier_needs_nothing(stage: &Stage) {
    let (other, flag) = (Mutex::new("other", ()), Flag::new());
    let holder = || {
        let _other = other.lock();
        flag.set();
    };
    let waiter = || {
        let _other = other.lock();
        flag.wait();
    };
    stage.together(vec![
        body(holder),
        body(|| flag.set()),
        body(waiter),
        body(holder),
    ]);
}

/// One class for each mapping: the lock of one says nothing of another's.
fn a_lock_of_another_object(stage: &Stage) {
    let mappings = [(); 2].map(|()| Mutex::new("served", ()));
    let frames = Flag::new();
    let gives_back = || {
        let _served = mappings[0].lock();
        frames.set();
    };
    let waits = || {
        let _served = mappings[1].lock();
        frames.wait();
    };
    stage.together(vec![body(gives_back), body(waits)]);
}

fn only_the_mutex_of_the_wait(stage: &Stage) {
    let flag = Flag::new();
    let notifier = || {
        let mut is_set = flag.is_set.lock();
        *is_set = true;
        flag.changed.notify_one();
    };
    stage.together(vec![body(notifier), body(|| flag.wait())]);
}

fn a_lock_that_is_only_tried(stage: &Stage) {
    let (other, flag) = (Mutex::new("other", ()), Flag::new());
    let notifier = || {
        let _other = other.try_lock();
        flag.set();
    };
    let waiter = || {
        let _other = other.lock();
        flag.wait();
    };
    stage.together(vec![body(notifier), body(waiter)]);
}

/// The notifier is a reader of the map, as the waiter is; that somebody might enter it alone and
/// wait was declared.
fn a_map_that_many_are_in(stage: &Stage) {
    let (touching, flag) = (Map::new("touching"), Flag::new());
    let inside = |act: &dyn Fn()| {
        let _touching = touching.read_recursive();
        act();
    };
    let alone = || {
        let _touching = touching.enter();
        flag.wait();
    };
    stage.together(vec![
        body(|| inside(&|| flag.set())),
        body(alone),
        body(|| inside(&|| flag.wait())),
    ]);
}
