//! All keys of the process: their names, places and attributes.
//!
//! Numbers are shared by all validators, so that an object can keep its own; what was seen of a
//! class is kept by each validator. A lock of the registry is the innermost lock of the validator.

use std::cell::Cell;
use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::panic::Location;
use std::sync::atomic::{self, AtomicU64};
use std::sync::{Arc, OnceLock};

use crate::sync::raw::RawLock;
use crate::word::ClassId;

/// What may be done while a lock is held, and where a lock may be taken: later ones sleep longer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WaitType {
    /// Not checked.
    Unchecked = 0,
    /// Waits for nothing: a reader of an epoch.
    Free = 1,
    /// Spins.
    Spin = 2,
    /// Spins, or sleeps where the system is configured so.
    Config = 3,
    /// Sleeps.
    Sleep = 4,
}

/// How a class takes part in the checks of contexts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LockType {
    /// As any lock.
    Normal,
    /// One for each thread or core: carries no inversion between interrupt-like levels.
    Local,
    /// Replaces the wait limit of its holder instead of lowering it.
    WaitOverride,
}

/// Whether and how a class is watched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Checking {
    /// Everything.
    Full,
    /// Balance and freeing only; transparent to orders.
    NoValidate,
    /// Not at all.
    NoTrack,
}

/// Compares two instances of one class, by address: `Less` if the first may be held for the second.
pub type OrderFn = fn(usize, usize) -> Ordering;

/// What the validator knows of a class besides its name.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// What holding it allows inside.
    pub inner: WaitType,
    /// Where it may be taken.
    pub outer: WaitType,
    /// Its part in the checks of contexts.
    pub lock_type: LockType,
    /// How it is watched.
    pub checking: Checking,
    /// The order of its instances, if they have one.
    pub order: Option<OrderFn>,
}

impl Attributes {
    /// A lock of this wait type, fully watched.
    pub const fn of(wait: WaitType) -> Self {
        Self {
            inner: wait,
            outer: wait,
            lock_type: LockType::Normal,
            checking: Checking::Full,
            order: None,
        }
    }

    /// A map: nothing is known of what it waits for.
    pub const MAP: Self = Self::of(WaitType::Unchecked);
    /// A lock whose waiters sleep.
    pub const SLEEP: Self = Self::of(WaitType::Sleep);
    /// A lock whose waiters spin; its holder may take others like it.
    pub const SPIN: Self = Self::of(WaitType::Spin);

    /// The same with an order of its instances.
    #[must_use]
    pub const fn ordered(mut self, order: OrderFn) -> Self {
        self.order = Some(order);
        self
    }

    /// The same, watched in this way.
    #[must_use]
    pub const fn checking(mut self, checking: Checking) -> Self {
        self.checking = checking;
        self
    }
}

/// What makes two keys one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum KeyName {
    /// The same name given at the same place. Compared by content: a place has several addresses.
    Site(&'static str, &'static str, u32, u32),
    /// A static name, wherever it is used.
    Static(&'static str),
    /// The address of a key of foreign code.
    Address(usize),
    /// Nothing else is this key.
    Unique(u64),
}

impl KeyName {
    pub(crate) fn of_site(name: &'static str, at: &'static Location<'static>) -> Self {
        Self::Site(name, at.file(), at.line(), at.column())
    }

    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self::Unique(NEXT.fetch_add(1, atomic::Ordering::Relaxed))
    }
}

/// The name of a key; a copy of it allocates nothing.
#[derive(Clone, Debug)]
pub enum Name {
    /// Written in the program.
    Static(&'static str),
    /// Made while it runs.
    Made(Arc<str>),
}

impl Name {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Made(name) => name,
        }
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self::Made(name.into())
    }
}

/// What is known of a key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    key: KeyName,
    pub(crate) name: Name,
    pub(crate) attributes: Attributes,
    /// 1 for the first key of its name; unlike that of every other live key of the name.
    pub(crate) version: u32,
    is_zapped: bool,
    /// Whether the validator itself, at work, was seen to take locks of it.
    is_taken_by_reports: bool,
    links: [Link; 2],
}

/// The neighbours of a key in the list of one bucket; 0 is none.
#[derive(Clone, Copy, Default, Debug)]
struct Link {
    next: u32,
    previous: u32,
}

/// By what keys are looked up: each has its own lists.
#[derive(Clone, Copy)]
enum By {
    Key = 0,
    Name = 1,
}

/// All keys. Everything is reserved at the start and linked by numbers, so that nothing is
/// allocated, and nothing given back, under the lock.
struct Registry {
    keys: Vec<Key>,
    /// The first key of each bucket, the newest.
    heads: [Vec<u32>; 2],
    /// Keys to be used again, the longest free first.
    free: std::collections::VecDeque<u32>,
}

const NR_KEYS: usize = ClassId::NR_KEYS_MAX as usize;
const NR_BUCKETS: usize = NR_KEYS * 2;
/// A number rests after its key was zapped until this many others rest too.
const NR_RESTING_MIN: usize = crate::room(1024);

fn bucket(hashed: &(impl Hash + ?Sized)) -> usize {
    let mut hasher = DefaultHasher::new();
    hashed.hash(&mut hasher);
    hasher.finish() as usize % NR_BUCKETS
}

impl Registry {
    fn new() -> Self {
        let mut keys = Vec::with_capacity(NR_KEYS);
        // Number 0 is nobody: an object with it has not been resolved, and what there was no more
        // room for is not tracked.
        keys.push(Key {
            key: KeyName::Static("<none>"),
            name: Name::Static("<none>"),
            attributes: Attributes::MAP.checking(Checking::NoTrack),
            version: 1,
            is_zapped: false,
            is_taken_by_reports: false,
            links: Default::default(),
        });
        Self {
            keys,
            heads: [(); 2].map(|()| vec![0; NR_BUCKETS]),
            free: std::collections::VecDeque::with_capacity(NR_KEYS),
        }
    }

    /// The newest key of a bucket for which `is_it` holds.
    fn find(&self, by: By, bucket: usize, is_it: impl Fn(&Key) -> bool) -> Option<u32> {
        let mut number = self.heads[by as usize][bucket];
        while number != 0 {
            let key = &self.keys[number as usize];
            if is_it(key) {
                return Some(number);
            }
            number = key.links[by as usize].next;
        }
        None
    }

    fn link(&mut self, by: By, bucket: usize, number: u32) {
        let head = &mut self.heads[by as usize][bucket];
        let next = std::mem::replace(head, number);
        self.keys[number as usize].links[by as usize] = Link { next, previous: 0 };
        if next != 0 {
            self.keys[next as usize].links[by as usize].previous = number;
        }
    }

    fn unlink(&mut self, by: By, bucket: usize, number: u32) {
        let Link { next, previous } = self.keys[number as usize].links[by as usize];
        match previous {
            0 => self.heads[by as usize][bucket] = next,
            previous => self.keys[previous as usize].links[by as usize].next = next,
        }
        if next != 0 {
            self.keys[next as usize].links[by as usize].previous = previous;
        }
    }

    /// Puts an entry in; its number, and the entry that had the number before.
    fn insert(&mut self, entry: Key) -> Result<(u32, Option<Key>), Key> {
        let is_full = self.keys.len() == NR_KEYS;
        if self.free.len() <= NR_RESTING_MIN && !is_full {
            self.keys.push(entry);
            return Ok((self.keys.len() as u32 - 1, None));
        }
        let Some(number) = self.free.pop_front() else {
            return Err(entry);
        };
        let before = std::mem::replace(&mut self.keys[number as usize], entry);
        Ok((number, Some(before)))
    }
}

static REGISTRY: OnceLock<RawLock<Registry>> = OnceLock::new();

fn registry() -> &'static RawLock<Registry> {
    REGISTRY.get_or_init(|| RawLock::new(Registry::new()))
}

/// Whether it is made: until then it must not be asked by an allocator that makes room for it.
pub(crate) fn is_started() -> bool {
    REGISTRY.get().is_some()
}

/// Makes room, so that later calls do not allocate.
pub(crate) fn start() {
    registry();
}

const NR_SITES: usize = 64;

thread_local! {
    /// Sites met lately, by the addresses of name and place, with their numbers.
    ///
    /// Objects of one site are often built in numbers. Sites are never zapped, so an entry holds.
    static SITES: [Cell<(usize, usize, u32)>; NR_SITES] =
        const { [const { Cell::new((0, 0, 0)) }; NR_SITES] };
}

/// The class of a name at a place.
pub(crate) fn resolve_site(
    name: &'static str,
    location: &'static Location<'static>,
    attributes: &Attributes,
) -> ClassId {
    let at = (name.as_ptr().addr(), std::ptr::from_ref(location).addr());
    let slot = (at.0 ^ (at.1 / 8)) % NR_SITES;
    let known = SITES.with(|sites| sites[slot].get());
    if (known.0, known.1) == at {
        return ClassId::from_index(known.2);
    }
    // A name that was stated in advance is one class wherever its locks are built.
    let id = find(&KeyName::Static(name)).unwrap_or_else(|| {
        let key = KeyName::of_site(name, location);
        register(key, Name::Static(name), attributes)
    });
    SITES.with(|sites| sites[slot].set((at.0, at.1, id.index())));
    id
}

/// The class of this key, subclass 0; made if there is none.
///
/// Number 0, which is not tracked, when there is no more room.
pub(crate) fn register(key: KeyName, name: Name, attributes: &Attributes) -> ClassId {
    let (by_key, by_name) = (bucket(&key), bucket(name.as_str()));
    let mut entry = Key {
        key,
        name,
        attributes: *attributes,
        version: 1,
        is_zapped: false,
        is_taken_by_reports: false,
        links: Default::default(),
    };
    let mut registry = registry().lock();
    if let Some(number) = registry.find(By::Key, by_key, |known| known.key == entry.key) {
        drop(registry);
        return ClassId::of_key(number);
    }
    let same_name = |known: &Key| known.name.as_str() == entry.name.as_str();
    if let Some(newest) = registry.find(By::Name, by_name, same_name) {
        entry.version = registry.keys[newest as usize].version + 1;
    }
    let inserted = registry.insert(entry);
    if let Ok((number, _)) = inserted {
        registry.link(By::Key, by_key, number);
        registry.link(By::Name, by_name, number);
    }
    // What is left over is given back without the lock: an allocator may wait for the validator.
    drop(registry);
    inserted.map_or(ClassId::of_key(0), |(number, _)| ClassId::of_key(number))
}

/// Finds a key that was registered.
pub(crate) fn find(key: &KeyName) -> Option<ClassId> {
    let bucket = bucket(key);
    let number = registry()
        .lock()
        .find(By::Key, bucket, |known| known.key == *key);
    number.map(ClassId::of_key)
}

/// The first class above number `after` whose key is an address in the range.
pub(crate) fn find_address(range: &Range<usize>, after: ClassId) -> Option<ClassId> {
    next_key(after, |key| match key.key {
        KeyName::Address(address) => range.contains(&address),
        _ => false,
    })
}

/// Takes a key out; its number rests before it is used again.
pub(crate) fn unregister(class: ClassId) {
    let number = class.key();
    let (by_key, by_name) = with_key(class, |key| (bucket(&key.key), bucket(key.name.as_str())));
    let mut registry = registry().lock();
    let key = &mut registry.keys[number as usize];
    if std::mem::replace(&mut key.is_zapped, true) {
        return;
    }
    key.attributes.checking = Checking::NoTrack;
    registry.unlink(By::Key, by_key, number);
    registry.unlink(By::Name, by_name, number);
    registry.free.push_back(number);
}

/// Remembers that a report needs locks of this class.
pub(crate) fn mark_taken_by_reports(class: ClassId) {
    if class.key() == 0 {
        return;
    }
    registry().lock().keys[class.key() as usize].is_taken_by_reports = true;
}

/// Whether a report needs locks of this class, as far as was seen.
pub(crate) fn is_taken_by_reports(class: ClassId) -> bool {
    with_key(class, |key| key.is_taken_by_reports)
}

/// What is known of the key of a class.
pub(crate) fn with_key<R>(class: ClassId, look: impl FnOnce(&Key) -> R) -> R {
    look(&registry().lock().keys[class.key() as usize])
}

pub(crate) fn attributes(class: ClassId) -> Attributes {
    with_key(class, |key| key.attributes)
}

/// The name as reports have it: `name#version/subclass`.
pub(crate) fn display_name(class: ClassId) -> String {
    // Text is made without the lock: an allocator may wait for the validator.
    let (name, version) = with_key(class, |key| (key.name.clone(), key.version));
    let mut text = name.as_str().to_owned();
    if version > 1 {
        text += &format!("#{version}");
    }
    if class.nr_subclass() > 0 {
        text += &format!("/{}", class.nr_subclass());
    }
    text
}

/// All classes whose plain name is this one.
pub(crate) fn find_named(name: &str) -> Vec<ClassId> {
    let mut after = ClassId::of_key(0);
    // One at a time: the list grows without the lock.
    let next = || {
        after = next_key(after, |key| key.name.as_str() == name)?;
        Some(after)
    };
    std::iter::from_fn(next).collect()
}

/// The first live class above number `after` whose key is like this.
fn next_key(after: ClassId, is_like: impl Fn(&Key) -> bool) -> Option<ClassId> {
    let registry = registry().lock();
    let from = after.key() as usize + 1;
    let mut keys = registry.keys.get(from..)?.iter();
    let found = keys.position(|key| !key.is_zapped && is_like(key))?;
    Some(ClassId::of_key((from + found) as u32))
}

/// All classes that were not zapped, in the order of their numbers.
pub(crate) fn live() -> Vec<ClassId> {
    let registry = registry().lock();
    let numbered = registry.keys.iter().enumerate().skip(1);
    numbered
        .filter(|(_, key)| !key.is_zapped)
        .map(|(number, _)| ClassId::of_key(number as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes and drops classes of one name; the versions of those made last.
    fn versions(steps: &[&str]) -> Vec<u32> {
        // A name that no other test has.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("versions {}", NEXT.fetch_add(1, atomic::Ordering::Relaxed));
        let mut live: Vec<ClassId> = Vec::new();
        for step in steps {
            match step.strip_prefix('-') {
                Some(at) => unregister(live.remove(at.parse().expect("a number"))),
                None => {
                    let name = Name::from(name.clone());
                    live.push(register(KeyName::unique(), name, &Attributes::SLEEP));
                }
            }
        }
        assert_eq!(find_named(&name).len(), live.len());
        let version = |&class: &ClassId| with_key(class, |key| key.version);
        let versions = live.iter().map(version).collect();
        live.into_iter().for_each(unregister);
        assert_eq!(find_named(&name), []);
        versions
    }

    #[test]
    fn live_keys_of_one_name_have_versions_of_their_own() {
        for (steps, expected) in [
            (&["+", "+", "+"][..], &[1, 2, 3][..]),
            (&["+", "+", "-0", "+"], &[2, 3]),
            (&["+", "+", "-1", "+"], &[1, 2]),
            (&["+", "-0", "+"], &[1]),
            (&["+", "+", "+", "-1", "-0", "+", "+"], &[3, 4, 5]),
        ] {
            assert_eq!(versions(steps), expected, "{steps:?}");
        }
    }

    #[test]
    fn a_key_is_found_until_it_is_taken_out() {
        let key = KeyName::Address(usize::MAX - 7);
        let make = || register(key.clone(), Name::Static("found"), &Attributes::SLEEP);
        assert_eq!(find(&key), None);
        let class = make();
        assert_eq!(make(), class);
        assert_eq!(find(&key), Some(class));
        let range = usize::MAX - 8..usize::MAX;
        assert_eq!(find_address(&range, ClassId::of_key(0)), Some(class));
        assert_eq!(find_address(&range, class), None);
        unregister(class);
        assert_eq!(find(&key), None);
        assert_eq!(find_address(&range, ClassId::of_key(0)), None);
        assert_ne!(make(), class, "its number rests");
    }
}
