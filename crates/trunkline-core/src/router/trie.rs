//! The trie of tokens under the routing table.

use bytestring::ByteString;
use hashbrown::HashMap;

use super::{Role, SubscriptionId};
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
    literal: Option<Box<HashMap<ByteString, Node<T>, foldhash::fast::RandomState>>>,
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

/// The entries of one pattern, in no particular order.
struct Entries<T> {
    list: Vec<Entry<T>>,
    /// Where in `list` each entry is, once there are so many that a search would be slow: a hundred thousand that leave
    /// one after the other must not each look at all the others.
    index: Option<Box<Index>>,
}

type Index = HashMap<SubscriptionId, usize, foldhash::fast::RandomState>;

impl<T> Entries<T> {
    const fn new() -> Self {
        Self { list: Vec::new(), index: None }
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn push(&mut self, entry: Entry<T>) {
        let at = self.list.len();
        if let Some(index) = &mut self.index {
            index.insert(entry.id, at);
        }
        if at == 0 {
            // Most patterns have one entry, and a list that grows by itself begins with room for four.
            self.list.reserve_exact(1);
        }
        self.list.push(entry);
        if at == SEARCHED_ENTRIES {
            let places = self.list.iter().enumerate().map(|(at, entry)| (entry.id, at));
            self.index = Some(Box::new(places.collect()));
        }
    }

    fn take(&mut self, id: SubscriptionId) -> Option<Entry<T>> {
        let at = match &mut self.index {
            Some(index) => index.remove(&id)?,
            None => self.list.iter().position(|entry| entry.id == id)?,
        };
        let entry = self.list.swap_remove(at);
        if self.list.len() <= SEARCHED_ENTRIES / 2 {
            self.index = None;
        } else if let (Some(index), Some(moved)) = (&mut self.index, self.list.get(at)) {
            index.insert(moved.id, at);
        }
        if self.list.capacity() > SEARCHED_ENTRIES && self.list.len() < self.list.capacity() / 4 {
            self.list.shrink_to(self.list.len() * 2);
            if let Some(index) = &mut self.index {
                index.shrink_to(self.list.len() * 2);
            }
        }
        Some(entry)
    }
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
                    if !children.contains_key(literal) {
                        self.nodes_bytes += token_bytes(children.len(), literal);
                        children.insert(literal.into(), Node::new());
                    }
                    children.get_mut(literal).expect("inserted above when missing")
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

    /// Calls `found` with every entry whose pattern matches the literal subject.
    pub(super) fn collect<'t>(&'t self, subject: &[u8], found: &mut impl FnMut(&'t Entry<T>)) {
        // Subjects are UTF-8; bytes that are not match nothing but wildcards would, so they match nothing at all.
        // And as on nats-server nobody gets what has an empty token: no pattern could ask for it, but wildcards would
        // hand it to readers that count on subjects to be subjects.
        if let Ok(subject) = std::str::from_utf8(subject)
            && !subject.split('.').any(str::is_empty)
        {
            walk(&self.root, Some(subject), found);
        }
    }
}

/// Recursion is as deep as the subject has tokens, at most half of `SUBJECT_BYTES_MAX`.
fn walk<'t, T>(node: &'t Node<T>, rest: Option<&str>, found: &mut impl FnMut(&'t Entry<T>)) {
    let Some(rest) = rest else {
        return node.here.list.iter().for_each(found);
    };
    node.tail.list.iter().for_each(&mut *found);
    let (token, rest) = match rest.split_once('.') {
        Some((token, rest)) => (token, Some(rest)),
        None => (rest, None),
    };
    if let Some(child) = node.literal.as_ref().and_then(|children| children.get(token)) {
        walk(child, rest, found);
    }
    if let Some(star) = &node.star {
        walk(star, rest, found);
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
            let child = children.get_mut(literal)?;
            let removed = remove_below(child, tokens, id, freed);
            if child.is_empty() {
                children.remove(literal);
                *freed += token_bytes(children.len(), literal);
                if children.is_empty() {
                    node.literal = None;
                } else if children.capacity() > SEARCHED_ENTRIES && children.len() < children.capacity() / 4 {
                    children.shrink_to(children.len() * 2);
                }
            }
            removed
        }
    }
}
