//! Whether the database works, as far as this replica knows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use charlstm_store::session::StorageUnavailable;

use crate::database::DatabaseError;

/// When it is worth trying again: the database is probed twice in that time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The outcome of the last statement.
#[derive(Debug, Default)]
pub(super) struct Availability(Mutex<Option<StorageUnavailable>>);

impl Availability {
    /// Records the outcome of a statement. The first failure and the recovery
    /// are logged.
    pub(super) fn observe<T>(&self, result: &Result<T, DatabaseError>) {
        let mut last = self.lock();
        match result {
            Err(error) if error.is_unavailable() => {
                if last.is_none() {
                    tracing::error!(%error, "sessions cannot be changed until the database is back");
                }
                *last = Some(unavailable(&error.to_string()));
            }
            _ => {
                if last.take().is_some() {
                    tracing::info!("the database is back");
                }
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), StorageUnavailable> {
        self.lock().clone().map_or(Ok(()), Err)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<StorageUnavailable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn unavailable(cause: &str) -> StorageUnavailable {
    StorageUnavailable {
        retry_after: RETRY_AFTER,
        cause: cause.into(),
    }
}
