//! Which intervals share an address with a range: a B-tree of which every version can be kept.
//!
//! Each subtree is marked with its highest end, so a search leaves out whatever ends before the
//! range. Intervals may overlap, nest and be equal. A search that finds one interval among `n`
//! takes time logarithmic in `n`; it allocates nothing and changes nothing.
//!
//! A clone is one reference. A change copies the nodes on its way that another version still uses,
//! and no others: whoever holds a version goes on seeing what he saw.
//!
//! Linux counterpart: include/linux/interval_tree_generic.h

use super::node::{FANOUT, Key, NR_MIN, Node, Spans};
use core::ops::ControlFlow;
use std::sync::Arc;

/// Intervals, each with something that belongs to it.
pub(super) struct Tree<T> {
    root: Arc<Branch<T>>,
    /// Nodes between the root and a leaf, with the root.
    height: u32,
    nr: usize,
}

/// The way from the root to an interval in one version of a tree.
#[derive(Clone, Copy)]
pub(super) struct Path(u64);

/// A [`Path`] or none, in one word.
#[derive(Clone, Copy)]
pub(super) struct Only(u64);

impl Only {
    /// No path: it would be too long for one.
    pub(super) const NOBODY: Self = Self(u64::MAX);

    #[inline]
    pub(super) fn new(path: Path) -> Self {
        Self(path.0)
    }

    #[inline]
    pub(super) fn get(self) -> Option<Path> {
        (self.0 != Self::NOBODY.0).then_some(Path(self.0))
    }
}

/// Bits that say which way to go at a node.
const STEP_BITS: u32 = FANOUT.trailing_zeros();

impl Path {
    const ROOT: Self = Self(0);

    /// The way goes on to the slot at `at` of a node. All ways are equally long, and shorter than
    /// thirteen steps: a tree that is deeper has more intervals than there is memory for.
    #[inline]
    fn then(self, at: usize) -> Self {
        Self(self.0 << STEP_BITS | at as u64)
    }

    /// Which slot to take when `left` steps come after it.
    #[inline]
    fn step(self, left: u32) -> usize {
        (self.0 >> (STEP_BITS * left)) as usize % FANOUT
    }
}

/// A subtree. All leaves are equally deep.
enum Branch<T> {
    Leaf(Node<T>),
    Inner(Node<Self>),
}

impl<T> Clone for Branch<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(node) => Self::Leaf(node.clone()),
            Self::Inner(node) => Self::Inner(node.clone()),
        }
    }
}

impl<T> Clone for Tree<T> {
    fn clone(&self) -> Self {
        Self {
            root: Arc::clone(&self.root),
            height: self.height,
            nr: self.nr,
        }
    }
}

impl<T: Spans> Tree<T> {
    /// No intervals.
    pub(super) fn new() -> Self {
        Self {
            root: Arc::new(Branch::Leaf(Node::new())),
            height: 0,
            nr: 0,
        }
    }

    /// How many intervals there are.
    pub(super) fn len(&self) -> usize {
        self.nr
    }

    /// Calls `visit` for the item of each interval that shares an address with `start..end`, in
    /// the order of their starts, until it breaks; also says how to find it again.
    #[inline]
    pub(super) fn visit<'a, B>(
        &'a self,
        start: u64,
        end: u64,
        visit: &mut impl FnMut(&'a Arc<T>, Path) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if self.nr == 0 {
            return ControlFlow::Continue(());
        }
        self.root.visit(start, end, Path::ROOT, visit)
    }

    /// What was found on this way; the tree is the same version.
    #[inline]
    pub(super) fn at(&self, path: Path) -> Option<&Arc<T>> {
        let mut left = self.height;
        let mut branch = &*self.root;
        loop {
            match branch {
                Branch::Leaf(node) => return node.item(path.step(0)),
                Branch::Inner(node) => branch = node.item(path.step(left))?,
            }
            left -= 1;
        }
    }

    /// Adds an interval. Its key is not in the tree.
    pub(super) fn insert(&mut self, item: Arc<T>) {
        self.nr += 1;
        let Some(right) = Arc::make_mut(&mut self.root).insert(item) else {
            return;
        };
        let mut root = Node::new();
        root.insert(0, Arc::clone(&self.root));
        root.insert(1, right);
        self.root = Arc::new(Branch::Inner(root));
        self.height += 1;
    }

    /// Takes the interval with this key out, if it is there.
    pub(super) fn remove(&mut self, key: Key) -> Option<Arc<T>> {
        let removed = Arc::make_mut(&mut self.root).remove(key)?;
        self.nr -= 1;
        while let Branch::Inner(node) = &*self.root
            && node.len() == 1
            && let Some(only) = node.item(0)
        {
            self.root = Arc::clone(only);
            self.height -= 1;
        }
        Some(removed)
    }
}

impl<T: Spans> Branch<T> {
    fn visit<'a, B>(
        &'a self,
        start: u64,
        end: u64,
        mut path: Path,
        visit: &mut impl FnMut(&'a Arc<T>, Path) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut branch = self;
        // Mostly there is one way down.
        while let Self::Inner(node) = branch {
            let mut found = node.overlapping(start, end);
            loop {
                let Some((at, child)) = found.next() else {
                    return ControlFlow::Continue(());
                };
                if found.is_over() {
                    (branch, path) = (child, path.then(at));
                    break;
                }
                child.visit(start, end, path.then(at), visit)?;
            }
        }
        let Self::Leaf(node) = branch else {
            return ControlFlow::Continue(());
        };
        let mut found = node.overlapping(start, end);
        found.try_for_each(|(at, item)| visit(item, path.then(at)))
    }

    /// Returns the right half, if the subtree became too big.
    fn insert(&mut self, item: Arc<T>) -> Option<Arc<Self>> {
        match self {
            Self::Leaf(node) => {
                let right = insert_into(node, item)?;
                Some(Arc::new(Self::Leaf(right)))
            }
            Self::Inner(node) => {
                // Whatever is lower than all goes to the first.
                let at = node.rank(item.key()).saturating_sub(1);
                let split = change_child(node, at, |child| child.insert(item))?;
                let right = insert_into(node, split)?;
                Some(Arc::new(Self::Inner(right)))
            }
        }
    }

    fn remove(&mut self, key: Key) -> Option<Arc<T>> {
        match self {
            Self::Leaf(node) => {
                let at = node.rank(key).checked_sub(1)?;
                if node.item(at)?.key() != key {
                    return None;
                }
                node.remove(at)
            }
            Self::Inner(node) => {
                let at = node.rank(key).checked_sub(1)?;
                let removed = change_child(node, at, |child| child.remove(key))?;
                if node.item(at)?.len() < NR_MIN {
                    mend(node, at);
                }
                Some(removed)
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(node) => node.len(),
            Self::Inner(node) => node.len(),
        }
    }

    /// Moves slots of `right` over; see [`Node::join`].
    fn join(&mut self, right: &mut Self) -> bool {
        match (self, right) {
            (Self::Leaf(left), Self::Leaf(right)) => left.join(right),
            (Self::Inner(left), Self::Inner(right)) => left.join(right),
            _ => unreachable!("neighbours are equally deep"),
        }
    }
}

impl<T: Spans> Spans for Branch<T> {
    fn key(&self) -> Key {
        match self {
            Self::Leaf(node) => node.key(),
            Self::Inner(node) => node.key(),
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Leaf(node) => node.end(),
            Self::Inner(node) => node.end(),
        }
    }
}

/// Changes the subtree at `at`, which is there, and what its node knows of it.
fn change_child<T: Spans, R>(
    node: &mut Node<Branch<T>>,
    at: usize,
    change: impl FnOnce(&mut Branch<T>) -> R,
) -> R {
    let child = node.item_mut(at).expect("an inner node has subtrees");
    let child = Arc::make_mut(child);
    let spanned = (child.key(), child.end());
    let answer = change(child);
    if (child.key(), child.end()) != spanned {
        node.sift();
    }
    answer
}

/// Puts `item` in its place; returns the right half of the node if it was full.
fn insert_into<U: Spans>(node: &mut Node<U>, item: Arc<U>) -> Option<Node<U>> {
    let at = node.rank(item.key());
    if !node.is_full() {
        node.insert(at, item);
        return None;
    }
    // Ascending keys fill nodes to the end: a map of neighbours is packed.
    let middle = if at == FANOUT { FANOUT - 1 } else { FANOUT / 2 };
    let mut right = node.split_off(middle);
    if at <= middle {
        node.insert(at, item);
    } else {
        right.insert(at - middle, item);
    }
    Some(right)
}

/// Joins the subtree at `at`, which has become small, with a neighbour.
fn mend<T: Spans>(node: &mut Node<Branch<T>>, at: usize) {
    if node.len() < 2 {
        return;
    }
    let left = at.min(node.len() - 2);
    let Some(mut right) = node.remove(left + 1) else {
        return;
    };
    let join = |child: &mut Branch<T>| child.join(Arc::make_mut(&mut right));
    if !change_child(node, left, join) {
        node.insert(left + 1, right);
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::Interval;
    use super::*;
    use core::ops::Range;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        Insert { start: u64, len: u64 },
        Remove { nth: usize },
        Keep,
    }

    /// How many changes are tried. In Miri fewer: just as many as make more than one level.
    const SHORT: usize = if cfg!(miri) { 40 } else { 400 };
    const LONG: Range<usize> = if cfg!(miri) { 120..160 } else { 600..1200 };

    /// A tree, and what is in it.
    type Version = (Tree<Interval>, Vec<Interval>);

    /// Addresses close together, and so far apart that nodes sift them in steps of many bytes.
    fn address() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0..400_u64,
            2 => (0..400_u64).prop_map(|nth| nth << 40),
            2 => (0..400_u64, 0..400_u64).prop_map(|(nth, at)| (nth << 50) + at),
            1 => (0..400_u64).prop_map(|at| u64::MAX - 1000 + at),
        ]
    }

    fn change() -> impl Strategy<Value = Change> {
        let len = prop_oneof![4 => 1..60_u64, 1 => (1..60_u64).prop_map(|nth| nth << 44)];
        prop_oneof![
            4 => (address(), len).prop_map(|(start, len)| Change::Insert { start, len }),
            3 => (0..10_000_usize).prop_map(|nth| Change::Remove { nth }),
            1 => Just(Change::Keep),
        ]
    }

    fn found(tree: &Tree<Interval>, start: u64, end: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let flow: ControlFlow<()> = tree.visit(start, end, &mut |item, path| {
            let again = Only::new(path).get().and_then(|path| tree.at(path));
            assert!(again.is_some_and(|at| Arc::ptr_eq(at, item)));
            found.push(item.key.id);
            ControlFlow::Continue(())
        });
        assert_eq!(flow, ControlFlow::Continue(()));
        found
    }

    /// Every version finds what a list finds that is looked through from end to end.
    fn check(versions: &[Version]) {
        for (tree, listed) in versions {
            assert_eq!(tree.len(), listed.len());
            for start in (0..460).step_by(23) {
                check_range(tree, listed, start, start + 1);
                check_range(tree, listed, start << 40, (start + 10) << 40);
                check_range(tree, listed, start, u64::MAX);
            }
            // Just before, at and just after where each one begins and ends.
            for interval in listed {
                for edge in [interval.key.start, interval.end] {
                    for at in edge.saturating_sub(2)..=edge.saturating_add(1) {
                        check_range(tree, listed, at, at.saturating_add(1).max(1));
                    }
                }
            }
        }
    }

    fn check_range(tree: &Tree<Interval>, listed: &[Interval], start: u64, end: u64) {
        if start >= end {
            return;
        }
        let is_met = |one: &&Interval| one.key.start < end && start < one.end;
        let mut expected: Vec<&Interval> = listed.iter().filter(is_met).collect();
        expected.sort();
        let expected: Vec<u64> = expected.iter().map(|one| one.key.id).collect();
        assert_eq!(found(tree, start, end), expected, "{start}..{end}");
    }

    /// The versions that were kept, and the last one, after these changes of none.
    fn replay(changes: Vec<Change>) -> Vec<Version> {
        let mut versions: Vec<Version> = vec![(Tree::new(), Vec::new())];
        for (id, change) in (0..).zip(changes) {
            let (tree, listed) = versions.last_mut().expect("one is never removed");
            match change {
                Change::Insert { start, len } => {
                    let key = Key { start, id };
                    let end = start.saturating_add(len);
                    tree.insert(Arc::new(Interval { key, end }));
                    listed.push(Interval { key, end });
                }
                Change::Remove { nth } if !listed.is_empty() => {
                    let one = listed.swap_remove(nth % listed.len());
                    assert_eq!(tree.remove(one.key).as_deref(), Some(&one));
                    assert!(tree.remove(one.key).is_none());
                }
                Change::Remove { .. } => {}
                Change::Keep => {
                    let kept = (tree.clone(), listed.clone());
                    versions.push(kept);
                }
            }
        }
        versions
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 60 }))]

        #[test]
        fn finds_what_a_list_finds(changes in prop::collection::vec(change(), 1..SHORT)) {
            check(&replay(changes));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 8 }))]

        /// So many that nodes split, and are joined again, on every level.
        #[test]
        fn finds_what_a_long_list_finds(
            added in prop::collection::vec((0..4000_u64, 1..200_u64), LONG),
            changes in prop::collection::vec(change(), LONG),
        ) {
            let added = added.into_iter().map(|(start, len)| Change::Insert { start, len });
            let changes = changes.into_iter().filter(|change| !matches!(change, Change::Keep));
            check(&replay(added.chain(changes).collect()));
        }
    }

    /// Only their numbers tell equal ones apart, and of those there are more than a node holds.
    #[test]
    fn equal_ones_and_those_over_everything_are_told_apart() {
        const NR: usize = if cfg!(miri) { 40 } else { 200 };
        let changes = (0..NR).flat_map(|nth| {
            let (equal, all) = (
                Change::Insert { start: 5, len: 7 },
                Change::Insert {
                    start: 0,
                    len: u64::MAX,
                },
            );
            [equal, all, Change::Remove { nth: nth * 7 }]
        });
        check(&replay(changes.collect()));
    }

    /// An interval that begins there, of one byte.
    fn byte(start: u64) -> Arc<Interval> {
        let key = Key { start, id: 0 };
        let end = start + 1;
        Arc::new(Interval { key, end })
    }

    /// A tree of leaves with so many slots each. Intervals begin at 1, 3, 5 and so on.
    fn tree_of(slots: &[usize]) -> Tree<Interval> {
        let mut odd = (1..).step_by(2);
        let mut root = Node::new();
        for (at, &nr) in slots.iter().enumerate() {
            let mut leaf = Node::new();
            for (at, start) in odd.by_ref().take(nr).enumerate() {
                leaf.insert(at, byte(start));
            }
            root.insert(at, Arc::new(Branch::Leaf(leaf)));
        }
        Tree {
            root: Arc::new(Branch::Inner(root)),
            height: 1,
            nr: slots.iter().sum(),
        }
    }

    /// How many slots each leaf has; the tree is at most two levels.
    fn slots_of(tree: &Tree<Interval>) -> Vec<usize> {
        match &*tree.root {
            Branch::Leaf(leaf) => vec![leaf.len()],
            Branch::Inner(node) => (0..node.len())
                .filter_map(|at| Some(node.item(at)?.len()))
                .collect(),
        }
    }

    /// After the change of a tree whose leaves have so many slots each they have as many as that.
    #[track_caller]
    fn check_slots(before: &[usize], change: fn(&mut Tree<Interval>), after: &[usize]) {
        let mut tree = tree_of(before);
        change(&mut tree);
        assert_eq!(slots_of(&tree), after);
        let nr = after.iter().sum();
        assert_eq!((tree.len(), found(&tree, 0, u64::MAX).len()), (nr, nr));
    }

    /// Nor is a way taken for none that leads to the last slot of a full node.
    #[test]
    fn no_way_leads_to_nobody() {
        assert!(Only::NOBODY.get().is_none());
        let tree = tree_of(&[FANOUT; FANOUT]);
        assert_eq!(found(&tree, 0, u64::MAX).len(), FANOUT * FANOUT);
    }

    /// A full leaf is halved, but for one that grows at its end, which stays all but full.
    #[test]
    fn a_full_leaf_is_split() {
        check_slots(&[31, 9], |tree| tree.insert(byte(0)), &[32, 9]);
        check_slots(&[31, 9], |tree| tree.insert(byte(62)), &[32, 9]);
        check_slots(&[32, 9], |tree| tree.insert(byte(0)), &[17, 16, 9]);
        check_slots(&[32, 9], |tree| tree.insert(byte(32)), &[17, 16, 9]);
        check_slots(&[32, 9], |tree| tree.insert(byte(34)), &[16, 17, 9]);
        check_slots(&[32, 9], |tree| tree.insert(byte(62)), &[16, 17, 9]);
        check_slots(&[32, 9], |tree| tree.insert(byte(64)), &[31, 2, 9]);
        check_slots(&[9, 32], |tree| tree.insert(byte(82)), &[9, 31, 2]);
    }

    /// A leaf that has become small is joined with a neighbour, or takes of it what is too much.
    #[test]
    fn a_small_leaf_is_joined() {
        fn first(tree: &mut Tree<Interval>) {
            tree.remove(byte(1).key).expect("one begins there");
        }
        fn last(tree: &mut Tree<Interval>) {
            let start = 2 * tree.len() as u64 - 1;
            tree.remove(byte(start).key).expect("one begins there");
        }
        check_slots(&[9, 9], first, &[8, 9]);
        check_slots(&[9, 9], last, &[9, 8]);
        check_slots(&[8, 9], first, &[16]);
        check_slots(&[9, 8], last, &[16]);
        check_slots(&[8, 25], first, &[32]);
        check_slots(&[8, 26], first, &[16, 17]);
        check_slots(&[26, 8], last, &[16, 17]);
        check_slots(&[8, 9, 9], first, &[16, 9]);
        check_slots(&[9, 9, 8], last, &[9, 16]);
        check_slots(&[2, 32, 8], first, &[16, 17, 8]);
    }

    #[test]
    fn many_are_added_and_taken_out_in_either_order() {
        const NR: u64 = if cfg!(miri) { 300 } else { 20_000 };
        let one = |id: u64| Interval {
            key: Key { start: id * 4, id },
            end: id * 4 + 4,
        };
        for is_ascending in [true, false] {
            let order = |nr: u64| if is_ascending { nr } else { NR - 1 - nr };
            let mut tree = Tree::new();
            for id in (0..NR).map(order) {
                tree.insert(Arc::new(one(id)));
            }
            assert_eq!(found(&tree, 401, 412), [100, 101, 102]);
            for id in (0..NR).map(order) {
                assert_eq!(tree.remove(one(id).key).as_deref(), Some(&one(id)));
            }
            assert_eq!((tree.len(), found(&tree, 0, u64::MAX).len()), (0, 0));
        }
    }
}
