//! How a recorded conversation looks: as a page in a terminal, as a Mermaid diagram, as a line of a list.
//!
//! All of it are functions of what the admin API has answered. Nothing here asks a server, and nothing prints.

mod line;
mod list;
mod live;
mod mermaid;
mod page;
mod rows;
mod span;
mod story;
mod timeline;
mod tree;
mod words;

#[cfg(test)]
mod tests;

pub(crate) use line::is_steering;
pub(crate) use list::list;
pub(crate) use live::live;
pub(crate) use mermaid::mermaid;
pub(crate) use page::{PageOptions, page};
