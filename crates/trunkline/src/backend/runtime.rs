//! A thread of a backend's own, where the caller's runtime has only one.

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

/// A runtime with one worker thread, ended without waiting when it is dropped: its owner has stopped the tasks by then.
pub(super) struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    /// Starts one when the caller's runtime runs on the thread it was called on. A handler that blocks that thread, as
    /// `publish_blocking` does, would otherwise block the connection that it waits for.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn where_needed(name: &str) -> std::io::Result<Option<Self>> {
        if Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread {
            return Ok(None);
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?;
        Ok(Some(Self(Some(runtime))))
    }

    /// Where to spawn.
    pub(super) fn handle(&self) -> Handle {
        self.0.as_ref().expect("taken only when it is dropped").handle().clone()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
