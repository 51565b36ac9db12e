//! Sessions in PostgreSQL, which any replica can continue.
//!
//! A call costs two statements: `session_open` reads the session and takes its
//! lease, `session_commit` stores it and ends the lease; commits of several
//! calls share one. The heartbeat of the replica prolongs the leases of all calls
//! that run. The statements are functions of the database
//! (`migrations/`), so that each is one round trip.
//!
//! A lease is a random token. A call without the token of the row cannot commit:
//! its replica was suspended or cut off, or its session was deleted and created
//! again.

mod availability;
mod cache;
mod commit_queue;
mod counters;
mod held;
mod opening;
mod queries;
mod renewal;
mod rows;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use charlstm_store::session::{
    AllowedSessions, BootTime, CommitOutcome, CommitPlan, ForkRequest, ImportRequest, LeaseState,
    LeaseStatus, ListRequest, ModelVersion, OpenRequest, OpenedSession, ReleaseLease,
    SessionCommit, SessionError, SessionInfo, SessionKey, SessionLease, SessionLimits, SessionPage,
    SessionRecord, SessionStats, SessionStorage, StorageFuture, StorageUnavailable,
};
use charlstm_store::unix_time::now_ms;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use self::counters::LeaseCounters;

use self::availability::Availability;
use self::cache::RecordCache;
use self::commit_queue::CommitQueue;
use self::counters::Counters;
use self::held::HeldCalls;
use crate::database::{Database, DatabaseError};
use crate::registry::Registry;

/// How long a lease lasts without being renewed.
pub const LEASE: Duration = Duration::from_secs(10);

/// How much earlier than in the database a lease ends for the call itself: what
/// it sends until then reaches its client in time.
const MARGIN: Duration = Duration::from_millis(500);

/// Maximum number of sessions that are evicted in one transaction.
const MAX_EVICTIONS: i32 = 256;

/// How sessions are stored.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    /// When sessions are evicted. All replicas should have the same limits.
    pub limits: SessionLimits,
    /// Memory for recently used states.
    pub cache_bytes: u64,
    /// This process among the replicas: its leases are renewed with its heartbeats,
    /// and its name is in the errors of others.
    pub registry: Registry,
}

/// Session storage in a database that several replicas share.
pub struct PostgresSessions {
    shared: Arc<Shared>,
    /// Heartbeats, evictions, commits and releases; aborted when this is dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// What the calls and the background tasks share.
#[derive(Debug)]
struct Shared {
    database: Database,
    settings: PostgresSettings,
    held: HeldCalls,
    cache: Mutex<RecordCache>,
    commits: CommitQueue,
    availability: Availability,
    counters: Counters,
    maintenance_due: Notify,
    is_closed: AtomicBool,
}

impl PostgresSessions {
    /// Starts to use a database. Must be called in a runtime.
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn start(
        database: Database,
        settings: PostgresSettings,
    ) -> Result<Self, DatabaseError> {
        let (commits, waiting) = CommitQueue::new();
        let shared = Arc::new(Shared {
            database,
            held: HeldCalls::default(),
            cache: Mutex::new(RecordCache::new(settings.cache_bytes)),
            commits,
            availability: Availability::default(),
            counters: Counters::default(),
            maintenance_due: Notify::new(),
            is_closed: AtomicBool::new(false),
            settings,
        });
        shared.refresh_stats().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(commit_queue::run(Arc::clone(&shared), waiting));
        tasks.spawn(renewal::run(Arc::clone(&shared)));
        tasks.spawn(renewal::maintain_regularly(Arc::clone(&shared)));
        Ok(Self {
            shared,
            tasks: Mutex::new(tasks),
        })
    }

    /// Counters about leases, for metrics.
    pub fn lease_counters(&self) -> LeaseCounters {
        self.shared.counters.snapshot()
    }
}

impl fmt::Debug for PostgresSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.shared.database.url();
        f.debug_struct("PostgresSessions")
            .field("database", database)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), SessionError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(SessionError::Stopping);
        }
        Ok(())
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, RecordCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when a lease ends for its call if a statement that is sent now takes
    /// or renews it.
    fn lease_end() -> BootTime {
        BootTime::now().after(LEASE.saturating_sub(MARGIN))
    }

    /// Records whether the database works, and returns what callers get of an
    /// error.
    fn observe<T>(&self, result: Result<T, DatabaseError>) -> Result<T, SessionError> {
        self.availability.observe(&result);
        result.map_err(|error| {
            if !error.is_unavailable() {
                tracing::error!(%error, "the database rejected a statement about sessions");
            }
            availability::unavailable(&error.to_string()).into()
        })
    }

    /// Returns the limit on idle time in milliseconds.
    fn max_idle_ms(&self) -> i64 {
        let max_idle = self.settings.limits.max_idle.as_millis();
        i64::try_from(max_idle).unwrap_or(i64::MAX)
    }

    /// Returns the outcome of a commit, and its record with the bytes that are
    /// stored; `None` if the session stays as it is.
    fn plan(
        &self,
        lease: &SessionLease,
        commit: SessionCommit,
    ) -> Result<(CommitOutcome, Option<(SessionRecord, Bytes)>), SessionError> {
        self.check_open()?;
        match lease.status() {
            // The database decides whether another replica took the session over.
            LeaseStatus::Held | LeaseStatus::Expired => {}
            LeaseStatus::Deleted => return Err(SessionError::Deleted),
            LeaseStatus::Fenced { replica } => return Err(SessionError::Fenced { replica }),
        }
        let held = self.held.session(lease.state());
        let held = held.ok_or(SessionError::Deleted)?;
        Ok(match CommitPlan::new(lease, &held, commit, now_ms())? {
            CommitPlan::Unchanged(outcome) => (outcome, None),
            CommitPlan::Put(record, outcome) => {
                let encoded = record.encode()?;
                (outcome, Some((*record, encoded)))
            }
        })
    }
}

impl ReleaseLease for Shared {
    fn release(&self, lease: &Arc<LeaseState>) {
        if self.is_closed.load(Ordering::Acquire) {
            // Its row is gone, or goes with those of all calls.
            self.held.end(lease);
            return;
        }
        self.held.begin_ending(lease);
        self.commits.release(Arc::clone(lease), &self.held);
    }
}

impl SessionStorage for PostgresSessions {
    fn open(&self, request: OpenRequest) -> StorageFuture<'_, Result<OpenedSession, SessionError>> {
        let opening = opening::open(Arc::clone(&self.shared), request);
        Box::pin(async move {
            // A task of its own: if the caller leaves half-way, the lease that
            // was taken is released when its result is dropped.
            let opened = tokio::spawn(opening).await;
            opened.unwrap_or(Err(SessionError::Stopping))
        })
    }

    fn commit(
        &self,
        lease: SessionLease,
        commit: SessionCommit,
    ) -> StorageFuture<'static, Result<CommitOutcome, SessionError>> {
        let state = Arc::clone(lease.state());
        let unchanged = match self.shared.plan(&lease, commit) {
            Ok((outcome, Some((record, encoded)))) => {
                self.shared.held.begin_ending(&lease.into_state());
                let committed = self.shared.commits.submit(state, record, encoded);
                return Box::pin(async move {
                    committed.await.unwrap_or(Err(SessionError::Stopping))?;
                    Ok(outcome)
                });
            }
            Ok((outcome, None)) => Ok(outcome),
            Err(error) => Err(error),
        };
        drop(lease);
        Box::pin(async move {
            state.wait_until_ended().await;
            unchanged
        })
    }

    fn released(&self, key: &SessionKey) -> StorageFuture<'static, ()> {
        let holder = self.shared.held.holder(key);
        Box::pin(async move {
            if let Some(holder) = holder {
                holder.wait_until_ended().await;
            }
        })
    }

    fn get(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        let key = key.clone();
        Box::pin(async move { self.shared.info(&key).await })
    }

    fn list(&self, request: ListRequest) -> StorageFuture<'_, Result<SessionPage, SessionError>> {
        Box::pin(async move { self.shared.page(&request).await })
    }

    fn fork(&self, request: ForkRequest) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        Box::pin(async move {
            self.shared.check_open()?;
            let source = self.shared.idle_record(&request.key).await?;
            let record = SessionRecord {
                key: SessionKey::new(request.key.owner, request.new_id),
                ..source
            };
            self.shared.create(record, request.owner_limit).await
        })
    }

    fn delete(&self, key: &SessionKey) -> StorageFuture<'_, Result<(), SessionError>> {
        let key = key.clone();
        Box::pin(async move { self.shared.delete(&key).await })
    }

    fn export(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionRecord, SessionError>> {
        let key = key.clone();
        Box::pin(async move { self.shared.idle_record(&key).await })
    }

    fn import(
        &self,
        request: ImportRequest,
    ) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        Box::pin(async move {
            self.shared
                .create(request.record, request.owner_limit)
                .await
        })
    }

    fn count_by_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<u64, SessionError>> {
        let model = model.clone();
        Box::pin(async move { self.shared.count_by_model(&model).await })
    }

    fn retire_model(
        &self,
        model: &ModelVersion,
        allowed: AllowedSessions,
    ) -> StorageFuture<'_, Result<(), SessionError>> {
        let model = model.clone();
        Box::pin(async move { self.shared.retire_model(&model, &allowed).await })
    }

    fn reinstate_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<(), SessionError>> {
        let model = model.clone();
        Box::pin(async move { self.shared.reinstate_model(&model).await })
    }

    fn evict_model_sessions(
        &self,
        model: &ModelVersion,
    ) -> StorageFuture<'_, Result<u64, SessionError>> {
        let model = model.clone();
        Box::pin(async move { self.shared.evict_model(&model).await })
    }

    fn check_available(&self) -> Result<(), StorageUnavailable> {
        self.shared.availability.check()
    }

    fn stats(&self) -> SessionStats {
        SessionStats {
            cached_bytes: self.shared.cache().bytes(),
            available: self.shared.availability.check().is_ok(),
            ..self.shared.counters.stats()
        }
    }

    fn backup(&self, _folder: &Path) -> StorageFuture<'_, Result<(), SessionError>> {
        let cause = "sessions are in the database: use pg_dump, see docs/replicas.md";
        let error = availability::unavailable(cause);
        Box::pin(std::future::ready(Err(error.into())))
    }

    fn shutdown(&self) -> StorageFuture<'_, Result<(), SessionError>> {
        self.shared.is_closed.store(true, Ordering::Release);
        Box::pin(async move {
            self.shared.commits.wait_until_empty().await;
            self.shared.release_all().await;
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.abort_all();
            Ok(())
        })
    }
}
