//! Opening a session for a call.

use std::sync::Arc;
use std::time::Duration;

use charlstm_store::session::{
    ARITHMETIC_REVISION, HeldSession, LeaseState, OpenRequest, OpenedSession, ReleaseLease,
    SessionError, SessionIdentity, SessionLease, SessionRecord, SessionStart, StartPoint,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::cache::Cached;
use super::counters::Counters;
use super::rows::{eviction_reason, identity, rejected, to_i64, to_uuid, u64_of};
use super::{LEASE, Shared};
use crate::database::DatabaseError;

/// How long to wait for a lease of this process that is ending.
const ENDING_WAIT: Duration = Duration::from_secs(1);

/// Opens a session, see `SessionStorage::open`.
pub(super) async fn open(
    shared: Arc<Shared>,
    request: OpenRequest,
) -> Result<OpenedSession, SessionError> {
    shared.check_open()?;
    shared.availability.check()?;
    shared.wait_for_own_call(&request).await?;
    let lease = LeaseState::of_call(request.key.clone());
    let cached = shared.cache().get(&request.key);
    let row = match shared.take(&lease, &request, cached.as_ref()).await {
        Ok(row) => row,
        Err(error) => {
            // It may have been taken all the same.
            shared.release(&lease);
            return shared.observe(Err(error));
        }
    };
    shared.availability.observe(&Ok::<_, DatabaseError>(()));
    let opened = shared.opened(&lease, &request, &row, cached);
    opened.unwrap_or_else(|error| {
        // The lease may have been taken.
        shared.release(&lease);
        Err(rejected(error))
    })
}

impl Shared {
    /// Rejects a call whose session another call of this process uses.
    async fn wait_for_own_call(&self, request: &OpenRequest) -> Result<(), SessionError> {
        let free = self.held.wait_if_ending(&request.key);
        match tokio::time::timeout(ENDING_WAIT, free).await {
            Ok(None) => Ok(()),
            Ok(Some(holder)) => Err(busy_here(holder.is_leaving())),
            Err(_) => Err(busy_here(true)),
        }
    }

    /// Sends the statement, twice if the first connection turns out to be
    /// broken: the token makes the second one harmless.
    async fn take(
        &self,
        lease: &LeaseState,
        request: &OpenRequest,
        cached: Option<&Cached>,
    ) -> Result<PgRow, DatabaseError> {
        match self.try_take(lease, request, cached).await {
            Err(DatabaseError::Unavailable(_)) => self.try_take(lease, request, cached).await,
            other => other,
        }
    }

    async fn try_take(
        &self,
        lease: &LeaseState,
        request: &OpenRequest,
        cached: Option<&Cached>,
    ) -> Result<PgRow, DatabaseError> {
        let (key, create) = (&request.key, request.create.as_ref());
        let statement = sqlx::query(
            "SELECT * FROM session_open($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
             $14, $15)",
        )
        .bind(key.owner.as_str())
        .bind(key.id.as_str())
        .bind(to_uuid(lease.token()))
        .bind(self.settings.registry.process())
        .bind(&*self.settings.registry.info().name)
        .bind(LEASE)
        .bind(request.expected_position.map(to_i64))
        .bind(cached.map(|cached| cached.commit_id))
        .bind(self.max_idle_ms())
        .bind(to_i64(self.settings.limits.max_sessions))
        .bind(request.owner_limit.map(to_i64))
        .bind(i32::from(ARITHMETIC_REVISION))
        .bind(create.map(|create| &*create.model.name))
        .bind(create.map(|create| to_i64(create.model.version)))
        .bind(create.map(|create| i32::from(create.revision)));
        lease.expire_at(Self::lease_end());
        self.database.fetch_one(statement).await
    }

    /// Returns what the row means. The outer error is one of the row itself.
    fn opened(
        self: &Arc<Self>,
        lease: &Arc<LeaseState>,
        request: &OpenRequest,
        row: &PgRow,
        cached: Option<Cached>,
    ) -> Result<Result<OpenedSession, SessionError>, sqlx::Error> {
        let outcome: &str = row.try_get("o_outcome")?;
        Ok(match outcome {
            "new" => {
                let Some(create) = request.create.clone() else {
                    return Err(sqlx::Error::RowNotFound);
                };
                let held = HeldSession {
                    identity: create,
                    created_unix_ms: None,
                    position: 0,
                    last_call_position: 0,
                };
                self.held.insert(Arc::clone(lease), held);
                let lease = self.lease(lease, None);
                Ok(OpenedSession { lease, start: None })
            }
            "held" => return self.existing(lease, request, row, cached),
            "busy" => Err(self.busy(row)?),
            "evicted" => {
                let reason: i16 = row.try_get("o_reason")?;
                self.cache().remove(&request.key);
                Err(SessionError::Evicted(eviction_reason(reason)?))
            }
            "unknown" => Err(SessionError::Unknown),
            "revision" => {
                let revision: i32 = row.try_get("o_revision")?;
                let revision = u16::try_from(revision).unwrap_or(u16::MAX);
                Err(SessionError::UnknownRevision(revision))
            }
            "position" => Err(SessionError::PositionMismatch {
                expected: request.expected_position.unwrap_or(0),
                position: u64_of(row, "o_position")?,
                last_call_position: u64_of(row, "o_last_call_position")?,
            }),
            other => Err(not_admitted(
                other,
                request.create.as_ref(),
                request.owner_limit,
            )?),
        })
    }

    /// A session that exists, whose lease was taken.
    fn existing(
        self: &Arc<Self>,
        lease: &Arc<LeaseState>,
        request: &OpenRequest,
        row: &PgRow,
        cached: Option<Cached>,
    ) -> Result<Result<OpenedSession, SessionError>, sqlx::Error> {
        let identity = identity(row, "o_")?;
        let commit_id: Uuid = row.try_get("o_commit_id")?;
        let held = HeldSession {
            identity: identity.clone(),
            created_unix_ms: Some(u64_of(row, "o_created_ms")?),
            position: u64_of(row, "o_position")?,
            last_call_position: u64_of(row, "o_last_call_position")?,
        };
        let (position, begin) = (held.position, held.last_call_position);
        self.held.insert(Arc::clone(lease), held);
        let record = match row.try_get::<Option<Vec<u8>>, _>("o_record")? {
            Some(bytes) => {
                Counters::add(&self.counters.cache_misses);
                match SessionRecord::decode(&bytes.into()) {
                    Ok(record) => Arc::new(record),
                    Err(error) => {
                        self.release(lease);
                        return Ok(Err(error.into()));
                    }
                }
            }
            None => {
                Counters::add(&self.counters.cache_hits);
                let Some(cached) = cached else {
                    return Err(sqlx::Error::RowNotFound);
                };
                cached.record
            }
        };
        self.cache().insert(commit_id, Arc::clone(&record));
        let expected = request.expected_position;
        let is_rewind = expected.is_some_and(|expected| expected != position);
        let (position, state) = if is_rewind {
            (begin, record.begin.clone())
        } else {
            (position, record.end.clone())
        };
        let start = StartPoint {
            position,
            is_rewind,
            parameters: record.last_call.parameters,
        };
        Ok(Ok(OpenedSession {
            lease: self.lease(lease, Some(start)),
            start: Some(SessionStart {
                identity,
                state,
                is_rewind,
            }),
        }))
    }

    fn busy(&self, row: &PgRow) -> Result<SessionError, sqlx::Error> {
        let process: Uuid = row.try_get("o_process")?;
        let replica: String = row.try_get("o_replica")?;
        let is_other = process != self.settings.registry.process();
        if is_other {
            Counters::add(&self.counters.conflicts);
        }
        Ok(SessionError::Busy {
            leaving: false,
            replica: is_other.then(|| replica.into()),
        })
    }

    fn lease(self: &Arc<Self>, state: &Arc<LeaseState>, start: Option<StartPoint>) -> SessionLease {
        let owner = Arc::clone(self) as Arc<dyn ReleaseLease>;
        SessionLease::new(Arc::clone(state), start, owner)
    }
}

/// The error of a session that another call of this process uses.
pub(super) fn busy_here(leaving: bool) -> SessionError {
    SessionError::Busy {
        leaving,
        replica: None,
    }
}

/// Why a session was not created.
pub(super) fn not_admitted(
    outcome: &str,
    identity: Option<&SessionIdentity>,
    owner_limit: Option<u64>,
) -> Result<SessionError, sqlx::Error> {
    match (outcome, identity, owner_limit) {
        ("retired", Some(identity), _) => Ok(SessionError::ModelRetired(identity.model.clone())),
        ("owner_limit", _, Some(limit)) => Ok(SessionError::OwnerLimit { limit }),
        ("full", _, _) => Ok(SessionError::Full),
        ("exists", _, _) => Ok(SessionError::Exists),
        // No version of the functions returns it.
        _ => Err(sqlx::Error::RowNotFound),
    }
}
