//! All keys of the process: their names, places and attributes.
//!
//! Numbers are shared by all validators, so that an object can keep its own; what was seen of a
//! class is kept by each validator. A lock of the registry is the innermost lock of the validator.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
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
    pub(crate) name: Name,
    pub(crate) attributes: Attributes,
    /// 1 for the first key of its name.
    pub(crate) version: u32,
    is_zapped: bool,
}

struct Registry {
    keys: Vec<Key>,
    by_name: HashMap<KeyName, u32>,
    /// Keys to be used again, the longest free first.
    free: std::collections::VecDeque<u32>,
}

/// How many keys there is room for before the registry allocates.
const NR_KEYS_RESERVED: usize = 4096;
/// A number rests after its key was zapped until this many others rest too.
const NR_RESTING_MIN: usize = 1024;

fn registry() -> &'static RawLock<Registry> {
    static REGISTRY: OnceLock<RawLock<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let mut keys = Vec::with_capacity(NR_KEYS_RESERVED);
        // Number 0 is nobody: an object with it has not been resolved, and what there was no more
        // room for is not tracked.
        keys.push(Key {
            name: Name::Static("<none>"),
            attributes: Attributes::MAP.checking(Checking::NoTrack),
            version: 1,
            is_zapped: false,
        });
        RawLock::new(Registry {
            keys,
            by_name: HashMap::with_capacity(NR_KEYS_RESERVED),
            free: std::collections::VecDeque::with_capacity(NR_KEYS_RESERVED),
        })
    })
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
    let id = register(
        KeyName::of_site(name, location),
        Name::Static(name),
        attributes,
    );
    SITES.with(|sites| sites[slot].set((at.0, at.1, id.index())));
    id
}

/// The class of this key, subclass 0; made if there is none.
///
/// Number 0, which is not tracked, when there is no more room.
pub(crate) fn register(key: KeyName, name: Name, attributes: &Attributes) -> ClassId {
    let mut registry = registry().lock();
    if let Some(&number) = registry.by_name.get(&key) {
        return ClassId::of_key(number);
    }
    let same_name = |key: &&Key| key.name.as_str() == name.as_str() && !key.is_zapped;
    let version = registry.keys.iter().filter(same_name).count() as u32 + 1;
    let entry = Key {
        name,
        attributes: *attributes,
        version,
        is_zapped: false,
    };
    let is_full = registry.keys.len() == ClassId::NR_KEYS_MAX as usize;
    let number = if registry.free.len() > NR_RESTING_MIN || is_full {
        let Some(number) = registry.free.pop_front() else {
            return ClassId::of_key(0);
        };
        registry.keys[number as usize] = entry;
        number
    } else {
        registry.keys.push(entry);
        registry.keys.len() as u32 - 1
    };
    registry.by_name.insert(key, number);
    ClassId::of_key(number)
}

/// Finds a key that was registered.
pub(crate) fn find(key: &KeyName) -> Option<ClassId> {
    let registry = registry().lock();
    registry
        .by_name
        .get(key)
        .map(|&number| ClassId::of_key(number))
}

/// Takes a key out; its number rests before it is used again.
pub(crate) fn unregister(class: ClassId) {
    let mut registry = registry().lock();
    let number = class.key();
    registry.by_name.retain(|_, known| *known != number);
    let key = &mut registry.keys[number as usize];
    key.is_zapped = true;
    key.attributes.checking = Checking::NoTrack;
    registry.free.push_back(number);
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
    let registry = registry().lock();
    let numbered = registry.keys.iter().enumerate().skip(1);
    numbered
        .filter(|(_, key)| key.name.as_str() == name && !key.is_zapped)
        .map(|(number, _)| ClassId::of_key(number as u32))
        .collect()
}
