//! The `in_memory` backend: everything in this process, nothing past it.
