//! Ways to a bus.

use std::sync::Arc;

use super::{Bus, BusOptions};
use crate::backend::memory::{Hub, HubOptions, MemoryBackend};

impl Bus {
    /// A bus within this process, with default settings and a hub of its own. Nothing outlives it.
    pub fn in_memory() -> Self {
        Self::on_hub(&Arc::new(Hub::new(HubOptions::default())), BusOptions::default())
    }

    /// A bus within this process on a hub that others are on too, such as the embedded server.
    ///
    /// # Panics
    /// As [`Bus::with_backend`].
    pub fn on_hub(hub: &Arc<Hub>, options: BusOptions) -> Self {
        Self::with_backend(Arc::new(MemoryBackend::connect_to(hub)), options)
    }
}
