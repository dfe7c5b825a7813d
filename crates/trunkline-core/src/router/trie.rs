//! The trie of tokens under the routing table.

use std::hash::BuildHasher;

use bytestring::ByteString;

use super::{Role, SubscriptionId, hash_of};
use crate::gradual::GradualTable;
use crate::subject::Pattern;

/// Up to so many entries of one pattern are searched one by one.
const SEARCHED_ENTRIES: usize = 64;
/// What a map of tokens takes with its first, and what each further token takes: nodes are kept in the map itself, of
/// which on average a quarter is empty.
const FIRST_TOKEN_BYTES: usize = 640;
const TOKEN_BYTES: usize = 224;
/// What an entry takes, in its list and in the index of a long one.
const ENTRY_BYTES: usize = 128;

pub(super) struct Entry<T> {
    pub(super) id: SubscriptionId,
    pub(super) role: Role,
    pub(super) target: T,
}

pub(super) struct Trie<T> {
    root: Node<T>,
    len: usize,
    /// Of `len`, those that listen.
    listeners: usize,
    /// About how many bytes of memory the nodes take.
    nodes_bytes: usize,
}

struct Node<T> {
    literal: Option<Box<Children<T>>>,
    star: Option<Box<Node<T>>>,
    /// Entries whose pattern ends here.
    here: Entries<T>,
    /// Entries whose pattern goes on with `>`.
    tail: Entries<T>,
}

impl<T> Node<T> {
    const fn new() -> Self {
        Self { literal: None, star: None, here: Entries::new(), tail: Entries::new() }
    }

    fn is_empty(&self) -> bool {
        self.literal.is_none() && self.star.is_none() && self.here.is_empty() && self.tail.is_empty()
    }
}

/// The nodes behind a literal token. Their table moves little at a time, as it does so under the lock of the routing table.
struct Children<T> {
    random: foldhash::fast::RandomState,
    table: GradualTable<(ByteString, Node<T>)>,
}

impl<T> Default for Children<T> {
    fn default() -> Self {
        Self { random: foldhash::fast::RandomState::default(), table: GradualTable::new() }
    }
}

impl<T> Children<T> {
    #[inline]
    fn get(&self, token: &str) -> Option<&Node<T>> {
        let found = self.table.find(self.random.hash_one(token), |(known, _)| *known == token);
        found.map(|(_, node)| node)
    }

    /// The node behind a token, made if there is none; `made` is called then, with how many others there are.
    fn get_or_make(&mut self, token: &str, made: impl FnOnce(usize)) -> &mut Node<T> {
        let hash = self.random.hash_one(token);
        if self.table.find(hash, |(known, _)| *known == token).is_none() {
            made(self.table.len());
            return &mut self.table.insert(hash, (token.into(), Node::new())).1;
        }
        let found = self.table.find_mut(hash, |(known, _)| *known == token);
        &mut found.expect("found right above").1
    }
}

/// The entries of one pattern, in no particular order.
enum Entries<T> {
    /// Searched one by one.
    Few(Vec<Entry<T>>),
    /// By id: a hundred thousand that leave one after the other must not each look at all the others, nor may adding one
    /// move all of them.
    Many(Box<GradualTable<Entry<T>>>),
}

impl<T> Entries<T> {
    const fn new() -> Self {
        Self::Few(Vec::new())
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Few(list) => list.is_empty(),
            Self::Many(table) => table.is_empty(),
        }
    }

    fn push(&mut self, entry: Entry<T>) {
        match self {
            Self::Few(list) if list.len() < SEARCHED_ENTRIES => {
                if list.is_empty() {
                    // Most patterns have one entry, and a list that grows by itself begins with room for four.
                    list.reserve_exact(1);
                }
                list.push(entry);
            }
            Self::Few(list) => {
                let mut table = GradualTable::new();
                for entry in std::mem::take(list).into_iter().chain([entry]) {
                    table.insert(hash_of_id(entry.id), entry);
                }
                *self = Self::Many(Box::new(table));
            }
            Self::Many(table) => {
                table.insert(hash_of_id(entry.id), entry);
            }
        }
    }

    fn take(&mut self, id: SubscriptionId) -> Option<Entry<T>> {
        let table = match self {
            Self::Few(list) => {
                let at = list.iter().position(|entry| entry.id == id)?;
                return Some(list.swap_remove(at));
            }
            Self::Many(table) => table,
        };
        let taken = table.remove(hash_of_id(id), |entry| entry.id == id)?;
        if table.len() <= SEARCHED_ENTRIES / 2 {
            *self = Self::Few(std::mem::take(&mut **table).into_iter().collect());
        }
        Some(taken)
    }

    #[inline]
    fn for_each<'t>(&'t self, found: &mut impl FnMut(&'t Entry<T>)) {
        match self {
            Self::Few(list) => list.iter().for_each(found),
            Self::Many(table) => table.for_each(found),
        }
    }
}

fn hash_of_id(id: SubscriptionId) -> u64 {
    hash_of(&id.0.to_ne_bytes())
}

impl<T> Trie<T> {
    pub(super) const fn new() -> Self {
        Self { root: Node::new(), len: 0, listeners: 0, nodes_bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// About how many bytes of memory it takes: what has to be kept within bounds is right to a few tens of percent.
    pub(super) fn held_bytes(&self) -> usize {
        self.nodes_bytes + self.len * ENTRY_BYTES
    }

    /// Subscribers and members of queue groups.
    pub(super) fn listeners(&self) -> usize {
        self.listeners
    }

    pub(super) fn insert(&mut self, pattern: &Pattern, entry: Entry<T>) {
        let mut node = &mut self.root;
        self.len += 1;
        self.listeners += usize::from(entry.role.listens());
        for token in pattern.tokens() {
            node = match token {
                ">" => return node.tail.push(entry),
                "*" => node.star.get_or_insert_with(|| {
                    self.nodes_bytes += TOKEN_BYTES;
                    Box::new(Node::new())
                }),
                literal => {
                    let children = node.literal.get_or_insert_with(Default::default);
                    children.get_or_make(literal, |others| self.nodes_bytes += token_bytes(others, literal))
                }
            };
        }
        node.here.push(entry);
    }

    pub(super) fn remove(&mut self, pattern: &Pattern, id: SubscriptionId) -> Option<Entry<T>> {
        let mut freed = 0;
        let removed = remove_below(&mut self.root, &mut pattern.tokens(), id, &mut freed);
        self.nodes_bytes -= freed;
        if let Some(entry) = &removed {
            self.len -= 1;
            self.listeners -= usize::from(entry.role.listens());
        }
        removed
    }

    /// Calls `found` with every entry whose pattern matches the literal subject. Says whether another token in place of the
    /// last one would have changed that; a subject that nothing could match always says so.
    pub(super) fn collect<'t>(&'t self, subject: &[u8], found: &mut impl FnMut(&'t Entry<T>)) -> Ending {
        // Subjects are UTF-8; bytes that are not match nothing but wildcards would, so they match nothing at all.
        // And as on nats-server nobody gets what has an empty token: no pattern could ask for it, but wildcards would
        // hand it to readers that count on subjects to be subjects.
        if let Ok(subject) = std::str::from_utf8(subject)
            && !subject.split('.').any(str::is_empty)
        {
            let mut ending = Ending::Any;
            walk(&self.root, Some(subject), found, &mut ending);
            return ending;
        }
        Ending::This
    }
}

/// What the last token of a subject has to be for the subject to match what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Any,
    This,
}

/// Recursion is as deep as the subject has tokens, at most half of `SUBJECT_BYTES_MAX`.
fn walk<'t, T>(
    node: &'t Node<T>,
    rest: Option<&str>,
    found: &mut impl FnMut(&'t Entry<T>),
    ending: &mut Ending,
) {
    let Some(rest) = rest else {
        return node.here.for_each(found);
    };
    node.tail.for_each(found);
    let (token, rest) = match rest.split_once('.') {
        Some((token, rest)) => (token, Some(rest)),
        None => (rest, None),
    };
    if rest.is_none() && node.literal.is_some() {
        *ending = Ending::This;
    }
    if let Some(child) = node.literal.as_ref().and_then(|children| children.get(token)) {
        walk(child, rest, found, ending);
    }
    if let Some(star) = &node.star {
        walk(star, rest, found, ending);
    }
}

/// What a token takes in a map that has so many others.
fn token_bytes(others: usize, token: &str) -> usize {
    token.len() + if others == 0 { FIRST_TOKEN_BYTES } else { TOKEN_BYTES }
}

/// Adds the memory of nodes that are gone to `freed`.
fn remove_below<'a, T>(
    node: &mut Node<T>,
    tokens: &mut impl Iterator<Item = &'a str>,
    id: SubscriptionId,
    freed: &mut usize,
) -> Option<Entry<T>> {
    match tokens.next() {
        None => node.here.take(id),
        Some(">") => node.tail.take(id),
        Some("*") => {
            let star = node.star.as_mut()?;
            let removed = remove_below(star, tokens, id, freed);
            if star.is_empty() {
                *freed += TOKEN_BYTES;
                node.star = None;
            }
            removed
        }
        Some(literal) => {
            let children = node.literal.as_mut()?;
            let hash = children.random.hash_one(literal);
            let (_, child) = children.table.find_mut(hash, |(known, _)| *known == literal)?;
            let removed = remove_below(child, tokens, id, freed);
            if child.is_empty() {
                children.table.remove(hash, |(known, _)| *known == literal);
                *freed += token_bytes(children.table.len(), literal);
                if children.table.is_empty() {
                    node.literal = None;
                }
            }
            removed
        }
    }
}
