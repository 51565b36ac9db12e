//! How values of this program are written in rows.

use charlstm_store::session::{
    EvictionReason, LeaseToken, ModelVersion, Precision, SessionError, SessionIdentity,
    SessionStats,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::availability::unavailable;

/// Positions and limits: what does not fit is unlimited.
pub(super) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn to_uuid(token: LeaseToken) -> Uuid {
    Uuid::from_u128(token.0)
}

pub(super) fn u64_of(row: &PgRow, column: &str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

pub(super) fn precision_code(precision: Precision) -> i16 {
    match precision {
        Precision::Float32 => 1,
        Precision::Int8 => 2,
    }
}

pub(super) fn eviction_reason(code: i16) -> Result<EvictionReason, sqlx::Error> {
    Ok(match code {
        1 => EvictionReason::Idle,
        2 => EvictionReason::Capacity,
        3 => EvictionReason::Restart,
        4 => EvictionReason::ModelGone,
        5 => EvictionReason::Damaged,
        _ => return Err(unexpected("an unknown reason of an eviction")),
    })
}

/// Reads an identity from columns that begin with `prefix`.
pub(super) fn identity(row: &PgRow, prefix: &str) -> Result<SessionIdentity, sqlx::Error> {
    let column = |name: &str| format!("{prefix}{name}");
    let name: String = row.try_get(&*column("model"))?;
    let digest: Vec<u8> = row.try_get(&*column("digest"))?;
    let precision: i16 = row.try_get(&*column("precision"))?;
    let revision: i32 = row.try_get(&*column("revision"))?;
    Ok(SessionIdentity {
        model: ModelVersion {
            name: name.into(),
            version: u64_of(row, &column("model_version"))?,
        },
        digest: digest
            .try_into()
            .map_err(|_| unexpected("a digest that is not 32 bytes long"))?,
        precision: match precision {
            1 => Precision::Float32,
            2 => Precision::Int8,
            _ => return Err(unexpected("an unknown precision")),
        },
        revision: u16::try_from(revision).unwrap_or(u16::MAX),
    })
}

/// Reads the result of `session_counts` from columns that begin with `prefix`.
pub(super) fn counts(row: &PgRow, prefix: &str) -> Result<SessionStats, sqlx::Error> {
    let count = |name: &str| u64_of(row, &format!("{prefix}{name}"));
    Ok(SessionStats {
        sessions: count("sessions")?,
        bytes: count("bytes")?,
        tombstones: count("tombstones")?,
        pending_creates: count("pending_creates")?,
        in_use: count("in_use")?,
        ..SessionStats::default()
    })
}

/// A row that no version of this program writes.
pub(super) fn unexpected(what: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the database contains {what}").into())
}

/// What callers get if a row cannot be read.
pub(super) fn rejected(error: sqlx::Error) -> SessionError {
    tracing::error!(%error, "a row about a session cannot be read");
    unavailable(&error.to_string()).into()
}
