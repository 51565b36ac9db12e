//! Watches the thread of a worker.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::inbox::Inbox;

/// Watches the thread of a worker. If the thread ends unexpectedly, its
/// commands are dropped, so that their calls end with an error, and the engine
/// is reported as failed.
pub(crate) struct WorkerGuard {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) failed: CancellationToken,
    /// Counted until the thread has ended.
    pub(crate) _alive: TaskTrackerToken,
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a generation worker ended unexpectedly");
            self.failed.cancel();
        }
        self.inbox.abandon();
    }
}
