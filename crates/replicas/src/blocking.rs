//! Waits for futures on threads that may block: models and trainings are used
//! there.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::block_in_place;

/// The runtime on which the futures run.
#[derive(Clone, Debug)]
pub(crate) struct Blocking {
    runtime: Handle,
}

impl Blocking {
    /// The runtime of the caller, which must have several threads.
    pub(crate) fn current() -> Self {
        Self {
            runtime: Handle::current(),
        }
    }

    /// Blocks until a future completes.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        block_in_place(|| self.runtime.block_on(future))
    }
}
