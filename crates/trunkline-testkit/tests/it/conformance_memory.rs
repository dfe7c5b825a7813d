//! The `in_memory` backend keeps every guarantee of its column.

use std::sync::Arc;

use trunkline::backend::Backend;
use trunkline::backend::memory::{Hub, HubOptions, MemoryBackend};

use trunkline_testkit::conformance::{Column, Harness};

/// Connections to one hub stand for processes on one bus.
fn in_memory() -> Harness {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    Harness::new(Column::InMemory, move || {
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::connect_to(&hub));
        std::future::ready(backend)
    })
}

trunkline_testkit::conformance!(in_memory());
