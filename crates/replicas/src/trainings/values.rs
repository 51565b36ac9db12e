//! How values of this program are written in the rows of trainings.

use charlstm_training::shared::{SharedState, SharedTraining, SharedTrainingsError};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::Outcome;
use crate::database::DatabaseError;

pub(super) fn training(row: &PgRow) -> Outcome<SharedTraining> {
    let step: Option<i64> = get(row, "checkpoint_step")?;
    Ok(SharedTraining {
        id: get(row, "id")?,
        metadata: get(row, "metadata")?,
        state: state(row)?,
        checkpoint_step: step.and_then(|step| u64::try_from(step).ok()),
    })
}

pub(super) fn state(row: &PgRow) -> Outcome<SharedState> {
    match get(row, "state")? {
        "queued" => Ok(SharedState::Queued),
        "running" => Ok(SharedState::Running),
        "ended" => Ok(SharedState::Ended),
        "deleted" => Ok(SharedState::Deleted),
        other => Err(SharedTrainingsError::Unavailable(format!(
            "a training has the state {other:?}, which this version does not know"
        ))),
    }
}

pub(super) fn get<'r, T>(row: &'r PgRow, column: &str) -> Outcome<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(row.try_get(column).map_err(DatabaseError::from)?)
}

pub(super) fn number(row: &PgRow, column: &str) -> Outcome<u64> {
    let value: i64 = get(row, column)?;
    u64::try_from(value).map_err(unreadable)
}

pub(super) fn unreadable(error: impl std::error::Error) -> SharedTrainingsError {
    SharedTrainingsError::Unavailable(format!("a row cannot be read or written: {error}"))
}

/// Numbers above the range of the column do not occur; if one did, it would
/// match no row.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
