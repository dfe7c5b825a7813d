//! In which order entries are drawn, and which of them share a row.

use std::collections::HashMap;

use super::story::{Cause, Kind, Story};

/// From so many on, messages that are alike and caused nothing share a row: the words of a model, one by one.
const ALIKE_MIN: usize = 3;
/// Levels that are drawn by lines; deeper ones are numbered.
pub(super) const LEVELS_MAX: usize = 8;

/// What shares a row of the drawing.
#[derive(Debug)]
pub(super) struct Row {
    /// At least one entry, in the order of time.
    pub(super) entries: Vec<usize>,
    /// Causes above it.
    pub(super) depth: usize,
    /// Whether a sibling follows, of the row at the last of these places and of those above it.
    rails: [bool; LEVELS_MAX],
    /// Whether something hangs below it.
    pub(super) has_children: bool,
}

/// All rows, every cause before what it caused. With `all` each entry has one of its own.
pub(super) fn rows(story: &Story<'_>, all: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    // Not by recursion: a chain may be longer than a stack.
    let mut open: Vec<Row> = below(story, &story.roots, None, all).into_iter().rev().collect();
    while let Some(row) = open.pop() {
        let children = &story.entries[row.entries[0]].children;
        open.extend(below(story, children, Some(&row), all).into_iter().rev());
        rows.push(row);
    }
    rows
}

fn below(story: &Story<'_>, siblings: &[usize], parent: Option<&Row>, all: bool) -> Vec<Row> {
    let groups = group(story, siblings, all);
    let depth = parent.map_or(0, |parent| parent.depth + 1);
    let count = groups.len();
    let row = |(index, entries): (usize, Vec<usize>)| {
        let mut rails = parent.map_or([false; LEVELS_MAX], |parent| parent.rails);
        if (1..=LEVELS_MAX).contains(&depth) {
            rails[depth - 1] = index + 1 < count;
        }
        let has_children = !story.entries[entries[0]].children.is_empty();
        Row { entries, depth, rails, has_children }
    };
    groups.into_iter().enumerate().map(row).collect()
}

/// Puts together what is alike; a group stands where its first member does.
fn group(story: &Story<'_>, siblings: &[usize], all: bool) -> Vec<Vec<usize>> {
    let alike = |index: usize| {
        let entry = &story.entries[index];
        let is_plain = entry.kind == Kind::Message && entry.children.is_empty() && !entry.has_trouble();
        let is_answer = matches!(entry.cause, Cause::Answer(_));
        let kind = entry.seen().and_then(|seen| seen.kind.as_deref());
        (is_plain && !all).then(|| (entry.subject, kind, entry.sender(), is_answer))
    };
    let mut members: HashMap<_, Vec<usize>> = HashMap::new();
    for index in siblings {
        if let Some(key) = alike(*index) {
            members.entry(key).or_default().push(*index);
        }
    }
    let mut groups = Vec::new();
    for index in siblings {
        match alike(*index).and_then(|key| members.get(&key)).filter(|group| group.len() >= ALIKE_MIN) {
            Some(group) if group[0] == *index => groups.push(group.clone()),
            Some(_) => {}
            None => groups.push(vec![*index]),
        }
    }
    groups
}

impl Row {
    /// What stands before the row itself: the lines from its causes to it.
    pub(super) fn branch(&self) -> String {
        if self.depth == 0 {
            return String::new();
        }
        let drawn = self.depth.min(LEVELS_MAX);
        let mut text = self.rails_text(drawn - 1);
        match self.depth > LEVELS_MAX {
            true => text.push_str(&format!("└({}) ", self.depth)),
            false if self.rails[drawn - 1] => text.push_str("├─ "),
            false => text.push_str("└─ "),
        }
        text
    }

    /// What stands before further lines of the row.
    pub(super) fn margin(&self) -> String {
        let drawn = self.depth.min(LEVELS_MAX);
        let own = if self.has_children && self.depth < LEVELS_MAX { "│    " } else { "     " };
        format!("{}{own}", self.rails_text(drawn))
    }

    fn rails_text(&self, levels: usize) -> String {
        self.rails[..levels].iter().map(|goes_on| if *goes_on { "│  " } else { "   " }).collect()
    }
}
