//! The trie of tokens under the routing table.

use bytestring::ByteString;
use hashbrown::HashMap;

use super::{Role, SubscriptionId};
use crate::subject::Pattern;

/// Up to so many entries of one pattern are searched one by one.
const SEARCHED_ENTRIES: usize = 64;

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
        Self { root: Node::new(), len: 0, listeners: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
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
                "*" => node.star.get_or_insert_with(|| Box::new(Node::new())),
                literal => {
                    let children = node.literal.get_or_insert_with(Default::default);
                    if !children.contains_key(literal) {
                        children.insert(literal.into(), Node::new());
                    }
                    children.get_mut(literal).expect("inserted above when missing")
                }
            };
        }
        node.here.push(entry);
    }

    pub(super) fn remove(&mut self, pattern: &Pattern, id: SubscriptionId) -> Option<Entry<T>> {
        let removed = remove_below(&mut self.root, &mut pattern.tokens(), id);
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

fn remove_below<'a, T>(
    node: &mut Node<T>,
    tokens: &mut impl Iterator<Item = &'a str>,
    id: SubscriptionId,
) -> Option<Entry<T>> {
    match tokens.next() {
        None => node.here.take(id),
        Some(">") => node.tail.take(id),
        Some("*") => {
            let star = node.star.as_mut()?;
            let removed = remove_below(star, tokens, id);
            if star.is_empty() {
                node.star = None;
            }
            removed
        }
        Some(literal) => {
            let children = node.literal.as_mut()?;
            let child = children.get_mut(literal)?;
            let removed = remove_below(child, tokens, id);
            if child.is_empty() {
                children.remove(literal);
                if children.is_empty() {
                    node.literal = None;
                }
            }
            removed
        }
    }
}
