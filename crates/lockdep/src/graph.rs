//! The orders seen so far: which class was taken while which was held, and in what modes.
//!
//! Two classes are joined by one edge, which has up to four kinds. What an edge can do in a cycle
//! depends on what its first end blocks (`E`: everybody, `S`: writers) and on what blocks its other
//! end (`N`: any holder, `R`: writers only). A recursive reader is never blocked by a reader, so a
//! path that comes in by `R` and leaves by `S` is *weak* there, and no deadlock goes along it.
//!
//! A search has the state *(class, came by `R` only)*. Both states of a class are visited on their
//! own, and the one that is not restricted makes the other superfluous. So no order of edges hides
//! a strong path behind a weak one. Nothing here recurses or allocates.

use crate::task::Site;
use crate::word::{ClassId, Mode, Word};

/// The kinds of an edge, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kinds(u8);

impl Kinds {
    const SR: u8 = 1;
    const ER: u8 = 2;
    const SN: u8 = 4;
    const EN: u8 = 8;
    pub(crate) const NR_KINDS: usize = 4;

    /// The kind of an edge from a lock held in one mode to one taken in another.
    pub(crate) const fn of(held: Mode, taken: Mode) -> Self {
        let is_recursive = matches!(taken, Mode::SharedRecursive);
        Self(match (held.is_read(), is_recursive) {
            (true, true) => Self::SR,
            (false, true) => Self::ER,
            (true, false) => Self::SN,
            (false, false) => Self::EN,
        })
    }

    pub(crate) const fn place(self) -> usize {
        self.0.trailing_zeros() as usize
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn without(self, bits: u8) -> Self {
        Self(self.0 & !bits)
    }

    const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn lowest(self) -> Self {
        Self(self.0 & self.0.wrapping_neg())
    }
}

/// In which direction a search goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From a class to those taken under it.
    Forward,
    /// From a class to those it was taken under.
    Backward,
}

impl Direction {
    /// The kinds that a restricted state may not go on by.
    const fn barred(self) -> u8 {
        match self {
            Self::Forward => Kinds::SR | Kinds::SN,
            Self::Backward => Kinds::SR | Kinds::ER,
        }
    }

    /// The kinds that lead to a state without restriction.
    const fn freeing(self) -> u8 {
        match self {
            Self::Forward => Kinds::SN | Kinds::EN,
            Self::Backward => Kinds::ER | Kinds::EN,
        }
    }
}

/// How an order became known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Provenance {
    /// Stated in advance, and never seen.
    Declared,
    /// Seen: the second was taken while the first was held.
    Observed,
    /// Seen: whoever ends the wait for the first took the second before, at another time.
    Inferred,
}

/// One observation of an edge: the first of its kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) held: Step,
    pub(crate) taken: Step,
    /// The thread that was seen, in the validator's numbering; 0 is nobody.
    pub(crate) thread: u32,
    pub(crate) provenance: Provenance,
}

impl Place {
    /// Whether it leaves less doubt than one that was seen before.
    fn is_better_than(&self, known: &Self) -> bool {
        let is_timed =
            |place: &Self| place.held.word.has(Word::TIMED) || place.taken.word.has(Word::TIMED);
        let was_declared = known.provenance == Provenance::Declared;
        let is_paired = |place: &Self| place.held.word.has(Word::WAIT);
        (was_declared && self.provenance != Provenance::Declared)
            || (self.provenance == known.provenance
                && ((is_timed(known) && !is_timed(self)) || (!is_paired(known) && is_paired(self))))
    }
}

/// One end of an observation.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) word: Word,
    pub(crate) site: Site,
}

impl Step {
    /// That of no lock.
    pub(crate) const NOBODY: Self = Self {
        word: Word::NONE,
        site: Site::Unknown,
    };
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:?}", self.word.class().index(), self.site)
    }
}

pub(crate) const NR_GATES: usize = 4;

#[derive(Clone, Debug)]
pub(crate) struct Edge {
    pub(crate) from: ClassId,
    pub(crate) to: ClassId,
    kinds: Kinds,
    /// How many different chains had this order.
    pub(crate) nr_seen: u32,
    /// Classes that were held alone, outside, whenever this order was seen; 0 is none.
    pub(crate) gates: [u32; NR_GATES],
    places: [u32; Kinds::NR_KINDS],
    next_forward: u32,
    next_backward: u32,
    /// The thread that was seen first.
    thread: u32,
    /// Whether more than one thread was seen to do it.
    pub(crate) is_common: bool,
    is_dead: bool,
}

impl Edge {
    fn end(&self, direction: Direction) -> ClassId {
        match direction {
            Direction::Forward => self.to,
            Direction::Backward => self.from,
        }
    }

    fn next(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Forward => self.next_forward,
            Direction::Backward => self.next_backward,
        }
    }

    /// The kinds by which a search may go along this edge.
    fn usable(&self, is_restricted: bool, direction: Direction) -> Kinds {
        if is_restricted {
            self.kinds.without(direction.barred())
        } else {
            self.kinds
        }
    }
}

/// Whether an edge was new.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recorded {
    /// Neither the edge nor this kind of it was known.
    New,
    /// It was known.
    Known,
    /// It was known, but what spoke against it no longer does: a common lock, only one thread, that
    /// it was only declared or inferred, that a wait had a limit.
    Loosened,
    /// There is no more room.
    Full,
}

/// Edges that there is room for.
pub(crate) const NR_EDGES_MAX: usize = crate::room(64 * 1024);
const NR_NODES: usize = ClassId::NR_MAX as usize;
const NR_BUCKETS: usize = NR_EDGES_MAX * 2;

/// The graph. Its tables are reserved when it is made; pages that no class needs stay untouched.
#[derive(Debug)]
pub(crate) struct Graph {
    /// Number 0 is no edge.
    edges: Vec<Edge>,
    places: Vec<Place>,
    /// By the hash of both ends: the edge between them, or 0.
    buckets: Vec<u32>,
    first_forward: Vec<u32>,
    first_backward: Vec<u32>,
    search: Search,
}

/// The scratch of a search.
#[derive(Debug)]
struct Search {
    /// By state: the number of the search that visited it last.
    visited: Vec<u32>,
    /// By state: the edge by which it was reached, shifted, and the restriction before it.
    via: Vec<u32>,
    /// States that a search has reached, or classes, for each side of a search from both ends.
    queues: [Vec<u32>; 2],
    number: u32,
}

/// A class and whether the way to it was restricted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    pub(crate) class: ClassId,
    pub(crate) is_restricted: bool,
}

impl State {
    const fn index(self) -> u32 {
        self.class.index() * 2 + self.is_restricted as u32
    }

    const fn from_index(index: u32) -> Self {
        Self {
            class: ClassId::from_index(index / 2),
            is_restricted: !index.is_multiple_of(2),
        }
    }
}

/// How a search goes.
pub(crate) struct Walk<Skips, OnlyReads> {
    pub(crate) direction: Direction,
    /// Classes that are as if they were not there.
    pub(crate) skips: Skips,
    /// Classes of which nobody writes: their readers are as good as recursive.
    pub(crate) only_reads: OnlyReads,
}

/// An edge of a path that was found, and the kind that makes it strong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop {
    pub(crate) edge: u32,
    pub(crate) place: Place,
}

impl Graph {
    pub(crate) fn new() -> Self {
        let mut graph = Self {
            edges: Vec::with_capacity(NR_EDGES_MAX + 1),
            places: Vec::with_capacity(NR_EDGES_MAX * 2),
            buckets: vec![0; NR_BUCKETS],
            first_forward: vec![0; NR_NODES],
            first_backward: vec![0; NR_NODES],
            search: Search {
                visited: vec![0; NR_NODES * 2],
                via: vec![0; NR_NODES * 2],
                queues: [(); 2].map(|()| Vec::with_capacity(NR_EDGES_MAX * 2 + 2)),
                number: 0,
            },
        };
        graph.add_nobody();
        graph
    }

    fn add_nobody(&mut self) {
        self.edges.push(Edge {
            from: ClassId::of_key(0),
            to: ClassId::of_key(0),
            kinds: Kinds(0),
            nr_seen: 0,
            gates: [0; NR_GATES],
            places: [0; Kinds::NR_KINDS],
            next_forward: 0,
            next_backward: 0,
            thread: 0,
            is_common: false,
            is_dead: true,
        });
    }

    /// Forgets all edges.
    pub(crate) fn clear(&mut self) {
        for edge in &self.edges {
            for end in [edge.from, edge.to] {
                self.first_forward[end.index() as usize] = 0;
                self.first_backward[end.index() as usize] = 0;
            }
        }
        self.empty_buckets();
        self.edges.clear();
        self.places.clear();
        self.add_nobody();
    }

    pub(crate) fn nr_edges(&self) -> usize {
        self.live().count()
    }

    /// All edges, with their numbers.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u32, &Edge)> {
        let numbered = self.edges.iter().enumerate();
        numbered
            .filter(|(_, edge)| !edge.is_dead)
            .map(|(number, edge)| (number as u32, edge))
    }

    /// Whether this order is known in this kind.
    pub(crate) fn has(&self, from: ClassId, to: ClassId, kinds: Kinds) -> bool {
        self.find(from, to)
            .is_some_and(|edge| self.edges[edge as usize].kinds.contains(kinds))
    }

    pub(crate) fn find(&self, from: ClassId, to: ClassId) -> Option<u32> {
        let mut at = Self::bucket(from, to);
        loop {
            let number = self.buckets[at];
            if number == 0 {
                return None;
            }
            let edge = &self.edges[number as usize];
            if !edge.is_dead && (edge.from, edge.to) == (from, to) {
                return Some(number);
            }
            at = (at + 1) % NR_BUCKETS;
        }
    }

    /// The next order by which readers of a class are taken; `number` says where to go on.
    pub(crate) fn next_read(
        &self,
        class: ClassId,
        number: &mut u32,
    ) -> Option<(Place, [u32; NR_GATES])> {
        loop {
            *number += 1;
            let edge = self.edges.get(*number as usize)?;
            let mut reads = self
                .places(edge)
                .filter(|place| place.taken.word.mode().is_read());
            if edge.to == class
                && !edge.is_dead
                && let Some(place) = reads.next()
            {
                return Some((*place, edge.gates));
            }
        }
    }

    pub(crate) fn edge(&self, number: u32) -> &Edge {
        &self.edges[number as usize]
    }

    /// Where the kinds of an edge were seen first.
    pub(crate) fn places(&self, edge: &Edge) -> impl Iterator<Item = &Place> {
        let kinds = edge.kinds;
        (0..Kinds::NR_KINDS)
            .filter(move |&kind| kinds.has(1 << kind))
            .map(|kind| &self.places[edge.places[kind] as usize])
    }

    fn bucket(from: ClassId, to: ClassId) -> usize {
        let both = u64::from(from.index()) << 32 | u64::from(to.index());
        (crate::chain::spread(both) >> 40) as usize % NR_BUCKETS
    }

    /// Records that `place` was seen; `gates` were held alone outside of it.
    pub(crate) fn record(&mut self, place: Place, gates: [u32; NR_GATES]) -> Recorded {
        let (from, to) = (place.held.word.class(), place.taken.word.class());
        let kinds = Kinds::of(place.held.word.mode(), place.taken.word.mode());
        let Some(number) = self.find(from, to) else {
            return self.insert(place, kinds, gates);
        };
        let at = self.places.len() as u32;
        let edge = &mut self.edges[number as usize];
        edge.nr_seen = edge.nr_seen.saturating_add(1);
        let before = (edge.gates, edge.is_common);
        for gate in &mut edge.gates {
            if !gates.contains(gate) {
                *gate = 0;
            }
        }
        edge.is_common |= edge.thread != place.thread;
        let is_loosened = before != (edge.gates, edge.is_common);
        if edge.kinds.contains(kinds) {
            let known = &mut self.places[edge.places[kinds.place()] as usize];
            let is_better = place.is_better_than(known);
            if is_better {
                *known = place;
            }
            return if is_loosened || is_better {
                Recorded::Loosened
            } else {
                Recorded::Known
            };
        }
        if self.places.len() == self.places.capacity() {
            return Recorded::Full;
        }
        edge.kinds = Kinds(edge.kinds.0 | kinds.0);
        edge.places[kinds.place()] = at;
        self.places.push(place);
        Recorded::New
    }

    fn insert(&mut self, place: Place, kinds: Kinds, gates: [u32; NR_GATES]) -> Recorded {
        let number = self.edges.len();
        if number > NR_EDGES_MAX || self.places.len() == self.places.capacity() {
            return Recorded::Full;
        }
        let (from, to) = (place.held.word.class(), place.taken.word.class());
        let mut places = [0; Kinds::NR_KINDS];
        places[kinds.place()] = self.places.len() as u32;
        self.places.push(place);
        self.edges.push(Edge {
            from,
            to,
            kinds,
            nr_seen: 1,
            gates,
            places,
            next_forward: self.first_forward[from.index() as usize],
            next_backward: self.first_backward[to.index() as usize],
            thread: place.thread,
            is_common: false,
            is_dead: false,
        });
        self.first_forward[from.index() as usize] = number as u32;
        self.first_backward[to.index() as usize] = number as u32;
        let mut at = Self::bucket(from, to);
        while self.buckets[at] != 0 {
            at = (at + 1) % NR_BUCKETS;
        }
        self.buckets[at] = number as u32;
        Recorded::New
    }

    /// Forgets every edge of the key of this class.
    pub(crate) fn zap(&mut self, class: ClassId) {
        let touches = |edge: &Edge| edge.from.key() == class.key() || edge.to.key() == class.key();
        if !self.live().any(|(_, edge)| touches(edge)) {
            return;
        }
        for edge in &mut self.edges[1..] {
            edge.is_dead |= touches(edge);
        }
        self.compact();
    }

    /// Empties the buckets that are in use, and touches no others.
    fn empty_buckets(&mut self) {
        for edge in &self.edges[1..] {
            let mut at = Self::bucket(edge.from, edge.to);
            while self.buckets[at] != 0 {
                self.buckets[at] = 0;
                at = (at + 1) % NR_BUCKETS;
            }
        }
    }

    /// Builds the tables again from the edges that live, in place.
    fn compact(&mut self) {
        for edge in &self.edges {
            for end in [edge.from, edge.to] {
                self.first_forward[end.index() as usize] = 0;
                self.first_backward[end.index() as usize] = 0;
            }
        }
        self.empty_buckets();
        let mut number = 0;
        self.edges.retain(|edge| {
            number += 1;
            number == 1 || !edge.is_dead
        });
        for number in 1..self.edges.len() {
            let (from, to) = (self.edges[number].from, self.edges[number].to);
            let (forward, backward) = (from.index() as usize, to.index() as usize);
            self.edges[number].next_forward = self.first_forward[forward];
            self.edges[number].next_backward = self.first_backward[backward];
            self.first_forward[forward] = number as u32;
            self.first_backward[backward] = number as u32;
            let mut at = Self::bucket(from, to);
            while self.buckets[at] != 0 {
                at = (at + 1) % NR_BUCKETS;
            }
            self.buckets[at] = number as u32;
        }
    }

    /// Searches along strong paths, nearest classes first, until `is_found` says so.
    ///
    /// The start itself is asked too. Classes that the walk `skips` are not asked and not passed
    /// through.
    pub(crate) fn find_strong(
        &mut self,
        start: State,
        walk: Walk<impl Fn(ClassId) -> bool, impl Fn(ClassId) -> bool>,
        mut is_found: impl FnMut(State) -> bool,
    ) -> Option<State> {
        self.search.begin();
        self.search.visit(start, 0);
        let mut next = 0;
        while let Some(&index) = self.search.queues[0].get(next) {
            next += 1;
            let state = State::from_index(index);
            if (walk.skips)(state.class) {
                continue;
            }
            if is_found(state) {
                return Some(state);
            }
            self.expand(state, walk.direction, &walk.only_reads);
        }
        None
    }

    fn expand(&mut self, state: State, direction: Direction, only_reads: impl Fn(ClassId) -> bool) {
        let mut number = self.first(state.class, direction);
        while number != 0 {
            let edge = &self.edges[number as usize];
            let usable = edge.usable(state.is_restricted, direction);
            if !usable.is_empty() {
                let class = edge.end(direction);
                let to = State {
                    class,
                    is_restricted: !usable.has(direction.freeing()) || only_reads(class),
                };
                let via = number * 2 + u32::from(state.is_restricted);
                self.search.visit(to, via);
            }
            number = edge.next(direction);
        }
    }

    /// The hops of the path by which the last search reached `end`, its start first.
    ///
    /// For each hop the place of a kind that keeps the path strong. A path that is longer than
    /// the capacity of `hops` loses its beginning.
    pub(crate) fn path(&self, end: State, direction: Direction, hops: &mut Vec<Hop>) {
        hops.clear();
        let mut state = end;
        loop {
            let via = self.search.via[state.index() as usize];
            if via == 0 || hops.len() == hops.capacity() {
                break;
            }
            let edge = &self.edges[(via / 2) as usize];
            let was_restricted = !via.is_multiple_of(2);
            let usable = edge.usable(was_restricted, direction);
            let freeing = Kinds(usable.0 & direction.freeing());
            let kind = if freeing.is_empty() { usable } else { freeing }.lowest();
            hops.push(Hop {
                edge: via / 2,
                place: self.places[edge.places[kind.place()] as usize],
            });
            state = State {
                class: match direction {
                    Direction::Forward => edge.from,
                    Direction::Backward => edge.to,
                },
                is_restricted: was_restricted,
            };
        }
        hops.reverse();
    }

    /// Goes along strong paths that visit no class twice, from `start` to a class where they close
    /// a cycle, until one is accepted; gives up after some steps.
    ///
    /// `hops` has the path that was accepted; `trail` is scratch.
    pub(crate) fn try_paths(
        &self,
        start: State,
        end: (ClassId, impl Fn(State) -> bool),
        (hops, trail): (&mut Vec<Hop>, &mut Vec<u32>),
        mut accepts: impl FnMut(&[Hop]) -> bool,
    ) -> bool {
        const NR_TRIED_MAX: u32 = 4096;
        hops.clear();
        trail.clear();
        let mut state = start;
        let mut number = self.first(start.class, Direction::Forward);
        for _ in 0..NR_TRIED_MAX {
            if number == 0 {
                let Some(last) = trail.pop() else {
                    break;
                };
                hops.pop();
                let edge = &self.edges[(last / 2) as usize];
                state = State {
                    class: edge.from,
                    is_restricted: !last.is_multiple_of(2),
                };
                number = edge.next_forward;
                continue;
            }
            let edge = &self.edges[number as usize];
            let usable = edge.usable(state.is_restricted, Direction::Forward);
            let freeing = Kinds(usable.0 & Direction::Forward.freeing());
            let to = State {
                class: edge.to,
                is_restricted: freeing.is_empty(),
            };
            let is_end = to.class == end.0;
            let is_visited = to.class == start.class
                || hops
                    .iter()
                    .any(|hop| hop.place.taken.word.class() == to.class);
            let goes_on = !usable.is_empty() && !is_visited && hops.len() + 1 < hops.capacity();
            if !goes_on || (is_end && !(end.1)(to)) {
                number = edge.next_forward;
                continue;
            }
            let kind = if freeing.is_empty() { usable } else { freeing }.lowest();
            hops.push(Hop {
                edge: number,
                place: self.places[edge.places[kind.place()] as usize],
            });
            if is_end {
                if accepts(hops) {
                    return true;
                }
                hops.pop();
                number = edge.next_forward;
                continue;
            }
            trail.push(number * 2 + u32::from(state.is_restricted));
            state = to;
            number = self.first(to.class, Direction::Forward);
        }
        false
    }

    fn first(&self, class: ClassId, direction: Direction) -> u32 {
        match direction {
            Direction::Forward => self.first_forward[class.index() as usize],
            Direction::Backward => self.first_backward[class.index() as usize],
        }
    }

    /// Whether any path, of any kinds, leads from `from` to `to`.
    ///
    /// Searches from both ends, an edge at a time in turn, and stops as soon as one of them is
    /// through. In a chain of classes that grows at either end, that is at once.
    pub(crate) fn may_reach(&mut self, from: ClassId, to: ClassId) -> bool {
        const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];
        if from == to {
            return true;
        }
        self.search.begin();
        let ends = [from, to];
        let mut cursors = [0, 1].map(|side| self.first(ends[side], DIRECTIONS[side]));
        let mut heads = [0, 0];
        for (side, end) in ends.into_iter().enumerate() {
            self.search.reach(end, side);
        }
        loop {
            for side in 0..2 {
                while cursors[side] == 0 {
                    heads[side] += 1;
                    let Some(&class) = self.search.queues[side].get(heads[side]) else {
                        return false;
                    };
                    cursors[side] = self.first(ClassId::from_index(class), DIRECTIONS[side]);
                }
                let edge = &self.edges[cursors[side] as usize];
                cursors[side] = edge.next(DIRECTIONS[side]);
                if self.search.reach(edge.end(DIRECTIONS[side]), side) {
                    return true;
                }
            }
        }
    }
}

impl Search {
    fn begin(&mut self) {
        self.queues.iter_mut().for_each(Vec::clear);
        self.number = self.number.wrapping_add(1);
        if self.number == 0 {
            self.visited.fill(0);
            self.number = 1;
        }
    }

    fn is_visited(&self, index: u32) -> bool {
        self.visited[index as usize] == self.number
    }

    /// Visits a state, unless it or the one without its restriction was visited before.
    fn visit(&mut self, state: State, via: u32) {
        let free = State {
            is_restricted: false,
            ..state
        };
        if self.is_visited(state.index()) || self.is_visited(free.index()) {
            return;
        }
        self.visited[state.index() as usize] = self.number;
        self.via[state.index() as usize] = via;
        self.queues[0].push(state.index());
    }

    /// Visits a class from one side; says whether the other side has been there.
    fn reach(&mut self, class: ClassId, side: usize) -> bool {
        let index = class.index() * 2;
        let own = index + side as u32;
        if !self.is_visited(own) {
            self.visited[own as usize] = self.number;
            self.queues[side].push(class.index());
        }
        self.is_visited(index + 1 - side as u32)
    }
}
