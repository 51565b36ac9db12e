//! The connection on which notifications of the database arrive.

use std::time::Duration;

use super::{Changes, MODELS, TRAININGS};
use crate::database::{Database, DatabaseError};

/// The pause before the next attempt after a connection was lost.
const RETRY: Duration = Duration::from_secs(1);

/// The pause after a connection on which nothing can arrive, or nothing arrives.
const RETRY_SILENT: Duration = Duration::from_secs(60);

/// Why listening has ended.
enum Ended {
    Lost,
    Silent,
    Pooled,
}

/// Listens until it is aborted. Connects again whenever the connection is lost or
/// silent. Logs once that notifications do not arrive, and once that they do again.
pub(crate) async fn listen(database: Database, changes: Changes) {
    let mut has_failed = false;
    loop {
        let ended = listen_once(&database, &changes, &mut has_failed).await;
        changes.stop_listening();
        let (reason, pause) = match ended {
            Ok(Ended::Lost) => ("the connection was lost".to_owned(), RETRY),
            Ok(Ended::Silent) => ("none arrive".to_owned(), RETRY_SILENT),
            Ok(Ended::Pooled) => (
                "the connection goes through a pooler in transaction mode".to_owned(),
                RETRY_SILENT,
            ),
            Err(error) => (error.to_string(), RETRY),
        };
        if !std::mem::replace(&mut has_failed, true) {
            tracing::warn!(
                reason,
                "no notifications of the database: the replica polls every second"
            );
        }
        tokio::time::sleep(pause).await;
    }
}

async fn listen_once(
    database: &Database,
    changes: &Changes,
    has_failed: &mut bool,
) -> Result<Ended, DatabaseError> {
    let mut listener = database.listener().await?;
    if !database.has_own_process(&mut listener).await? {
        return Ok(Ended::Pooled);
    }
    let channels = [MODELS, TRAININGS, changes.channel()];
    listener.listen_all(channels).await?;
    changes.start_listening();
    loop {
        tokio::select! {
            () = changes.0.silent.notified() => return Ok(Ended::Silent),
            notification = listener.try_recv() => {
                let Some(notification) = notification? else {
                    return Ok(Ended::Lost);
                };
                if changes.receive(notification.channel(), notification.payload())
                    && std::mem::take(has_failed)
                {
                    tracing::info!("notifications of the database arrive");
                }
            }
        }
    }
}
