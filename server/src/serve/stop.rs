//! The shutdown: ends what runs, and stores it, within a bounded time.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::ServeError;
use super::data::Data;
use charlstm_engine::Engine;
use charlstm_training::jobs::Jobs;

/// Maximum time that a shutdown waits for calls in flight and for the training.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Maximum time that a shutdown waits for the last commits of sessions: long
/// for a slow disk, and shorter than service managers wait (systemd: 90 s).
const SAVE_GRACE: Duration = Duration::from_secs(60);

/// Ends all generations and the training, and waits for the calls in flight and
/// for the task that serves connections. Ending the former ends their streams,
/// and with them the calls.
///
/// # Errors
/// [`ServeError::Sessions`].
pub(super) async fn stop(
    data: Data,
    calls: &TaskTracker,
    serving: JoinHandle<()>,
) -> Result<(), ServeError> {
    let (saved, (), ()) = tokio::join!(
        stop_engine(&data.engine),
        stop_jobs(data.jobs),
        drain(calls, serving),
    );
    saved
}

/// Ends all generations and commits their sessions.
async fn stop_engine(engine: &Engine) -> Result<(), ServeError> {
    let stopped = tokio::time::timeout(SAVE_GRACE, engine.stop()).await;
    let error = match stopped {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("they were not stored within {} s", SAVE_GRACE.as_secs()),
    };
    tracing::error!(error, "the sessions could not be saved");
    Err(ServeError::Sessions(error))
}

/// Ends the running training, and saves a checkpoint.
async fn stop_jobs(jobs: Jobs) {
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    // A thread of its own: those that may block may all be in use.
    std::thread::spawn(move || {
        // The receiver is there until this was sent.
        let _ = ended.send(jobs.stop(SHUTDOWN_GRACE));
    });
    if !has_ended.await.unwrap_or(false) {
        tracing::error!(
            "the training did not end in time; it can be resumed from its last checkpoint"
        );
    }
}

/// Waits until all calls have ended and their connections are closed, but not
/// for idle clients, and at most for the grace period.
async fn drain(calls: &TaskTracker, mut serving: JoinHandle<()>) {
    let calls_ended = async {
        if serving.is_finished() {
            return calls.wait().await;
        }
        tokio::select! {
            _ = &mut serving => return,
            () = calls.wait() => {}
        }
        // The last bytes of the responses may not have been sent yet; clients
        // that respond at all close their connections within this time.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE / 10, &mut serving).await;
    };
    if tokio::time::timeout(SHUTDOWN_GRACE, calls_ended)
        .await
        .is_err()
    {
        let calls = calls.len();
        tracing::warn!(calls, "calls that did not end in time are aborted");
    }
    serving.abort();
}
