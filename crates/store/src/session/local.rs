//! What the backends of a single process share: the index in memory, the
//! cache of hot states, and the order in which a change is planned, made
//! durable and applied.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::cache::RecordCache;
use super::clock::RunningClock;
use super::commit_plan::CommitPlan;
use super::error::{EvictionReason, RecordError, SessionError, StorageUnavailable};
use super::identity::{ModelVersion, SessionIdentity};
use super::index::{Applied, Change, Index, OpenStep, Plan, RecordVersion, stored_bytes};
use super::lease::{LeaseState, ReleaseLease, SessionLease, StartPoint};
use super::name::SessionKey;
use super::record::{SessionRecord, SessionState};
use super::storage::{
    AllowedSessions, CommitOutcome, Durability, ForkRequest, ImportRequest, ListRequest,
    OpenRequest, OpenedSession, SessionCommit, SessionInfo, SessionPage, SessionStart,
    SessionStats, SessionStorage, StorageFuture,
};
use crate::unix_time::now_ms;

/// Maximum number of evictions in one change, so that it stays a matter of
/// milliseconds.
const MAX_EVICTIONS: usize = 256;

/// Makes changes durable and reads records. Nothing here knows what a change
/// means.
pub(super) trait Backing: fmt::Debug + Send + Sync + 'static {
    /// Queues a change, without blocking: called under the lock of the index,
    /// in the order in which changes must be applied. Calls `done` from
    /// another thread, or returns it with the outcome.
    fn submit(&self, change: Change, done: Done) -> Submitted;

    /// Reads the record of a session that exists.
    fn read(&self, key: &SessionKey) -> StorageFuture<'static, Result<Bytes, ReadError>>;

    /// Whether changes can be accepted.
    fn check(&self) -> Result<(), StorageUnavailable>;

    /// Records moved aside because they were damaged, over all runs.
    fn damaged(&self) -> u64;

    /// Memory that the backing takes, in bytes.
    fn memory_bytes(&self) -> u64;

    /// Copies everything to a folder.
    fn backup(&self, folder: &Path) -> StorageFuture<'static, Result<(), SessionError>>;

    /// Waits until all that was queued is durable, and closes.
    fn shutdown(&self) -> StorageFuture<'static, Result<(), SessionError>>;
}

/// Is called with the outcome of a change.
pub(super) type Done = Box<dyn FnOnce(Result<(), StorageUnavailable>) + Send>;

/// What became of a change that was submitted.
pub(super) enum Submitted {
    /// `done` will be called.
    Queued,
    /// The outcome is known; the caller calls `done`.
    Now(Done, Result<(), StorageUnavailable>),
}

/// Why a record could not be read.
#[derive(Clone, Debug)]
pub(super) enum ReadError {
    /// The record is missing or cannot be decoded.
    Damaged(RecordError),
    /// The disk reports an error, which may pass.
    Unavailable(StorageUnavailable),
}

/// Sessions of one process on some backing.
#[derive(Debug)]
pub(super) struct LocalSessions {
    index: Mutex<Index>,
    cache: Mutex<RecordCache>,
    backing: Arc<dyn Backing>,
    clock: Arc<RunningClock>,
    durability: Durability,
}

/// What `open` does next.
enum Opening {
    New(SessionLease),
    Existing(SessionLease, SessionIdentity, RecordVersion),
    /// The store itself uses the session: try again after this lease.
    Wait(Arc<LeaseState>),
    /// A change comes first: try again once it is durable.
    Settle(Outcome),
}

/// A part of the eviction of a model's sessions.
struct ModelEviction {
    sessions: u64,
    outcome: Outcome,
    /// The slot at which to continue.
    next: u32,
}

type Outcome = oneshot::Receiver<Result<(), SessionError>>;

impl LocalSessions {
    pub(super) fn new(
        index: Index,
        cache: RecordCache,
        backing: Arc<dyn Backing>,
        clock: Arc<RunningClock>,
        durability: Durability,
    ) -> Arc<Self> {
        Arc::new(Self {
            index: Mutex::new(index),
            cache: Mutex::new(cache),
            backing,
            clock,
            durability,
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, RecordCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a planned change, under the lock with which it was planned.
    fn submit(self: &Arc<Self>, mut index: MutexGuard<'_, Index>, mut plan: Plan) -> Outcome {
        let (sender, outcome) = oneshot::channel();
        let change = std::mem::take(&mut plan.change);
        if self.durability == Durability::Relaxed {
            // Applied in the order in which it is queued; the backing repeats
            // what it could not write, as long as the process lives.
            let result = match self.backing.submit(change, Box::new(|_| ())) {
                Submitted::Queued => Ok(()),
                Submitted::Now(_, result) => result,
            };
            let applied = match &result {
                Ok(()) => index.apply(plan),
                Err(_) => index.roll_back(plan),
            };
            drop(index);
            self.finish(applied);
            let _ = sender.send(result.map_err(SessionError::from));
            return outcome;
        }
        let sessions = Arc::clone(self);
        let done: Done = Box::new(move |result| {
            let applied = match &result {
                Ok(()) => sessions.index().apply(plan),
                Err(_) => sessions.index().roll_back(plan),
            };
            sessions.finish(applied);
            // Nobody waits if the caller's future was dropped.
            let _ = sender.send(result.map_err(SessionError::from));
        });
        let submitted = self.backing.submit(change, done);
        drop(index);
        if let Submitted::Now(done, result) = submitted {
            done(result);
        }
        outcome
    }

    /// Does what follows from a change outside of the index.
    fn finish(&self, applied: Applied) {
        let mut cache = self.cache();
        cache.reserve(self.backing.memory_bytes() + applied.index_bytes);
        for mark in applied.dropped {
            cache.remove(mark);
        }
        for (mark, record) in applied.records {
            cache.insert(mark, record);
        }
        drop(cache);
        for lease in applied.ended {
            lease.end();
        }
    }

    /// Evicts sessions that were idle for too long. Called regularly.
    pub(super) fn evict_expired(self: &Arc<Self>) {
        let now_ms = self.clock.now_ms();
        let mut index = self.index();
        if index.is_closed || self.backing.check().is_err() {
            return;
        }
        let plan = index.plan_expiry(now_ms, MAX_EVICTIONS);
        if !plan.is_empty() {
            // Nobody waits: the outcome is in the counters.
            drop(self.submit(index, plan));
        }
    }

    fn lease(self: &Arc<Self>, state: Arc<LeaseState>, start: Option<StartPoint>) -> SessionLease {
        SessionLease::new(state, start, Arc::clone(self) as Arc<dyn ReleaseLease>)
    }

    async fn open(self: Arc<Self>, request: OpenRequest) -> Result<OpenedSession, SessionError> {
        self.index().check_open()?;
        self.backing.check()?;
        self.evict_expired();
        loop {
            match self.try_open(&request)? {
                Opening::New(lease) => {
                    return Ok(OpenedSession { lease, start: None });
                }
                Opening::Existing(lease, identity, version) => {
                    return self.start(lease, identity, version).await;
                }
                Opening::Wait(holder) => holder.wait_until_ended().await,
                Opening::Settle(outcome) => settled(outcome).await?,
            }
        }
    }

    fn try_open(self: &Arc<Self>, request: &OpenRequest) -> Result<Opening, SessionError> {
        let now_ms = self.clock.now_ms();
        let mut index = self.index();
        Ok(match index.open(request, now_ms)? {
            OpenStep::Reserved(lease) => Opening::New(self.lease(lease, None)),
            OpenStep::Leased {
                lease,
                start,
                identity,
                version,
            } => {
                let lease = self.lease(lease, Some(start));
                Opening::Existing(lease, identity, version)
            }
            OpenStep::Wait(holder) => Opening::Wait(holder),
            OpenStep::Expired(plan) => Opening::Settle(self.submit(index, plan)),
        })
    }

    /// Reads the session that was leased.
    async fn start(
        self: Arc<Self>,
        mut lease: SessionLease,
        identity: SessionIdentity,
        version: RecordVersion,
    ) -> Result<OpenedSession, SessionError> {
        let record = self.read(lease.key(), version, Some(&lease.state)).await?;
        // Only a deletion takes a session from under its lease.
        let record = record.ok_or(SessionError::Unknown)?;
        self.cache().insert(version.mark, Arc::clone(&record));
        let is_rewind = match &mut lease.start {
            Some(start) => {
                start.parameters = record.last_call.parameters;
                start.is_rewind
            }
            None => false,
        };
        let state: &SessionState = if is_rewind {
            &record.begin
        } else {
            &record.end
        };
        let start = SessionStart {
            identity,
            state: state.clone(),
            is_rewind,
        };
        Ok(OpenedSession {
            lease,
            start: Some(start),
        })
    }

    /// Reads a record, and moves it aside if it is damaged.
    /// `None` if it was deleted or replaced meanwhile.
    async fn read(
        self: &Arc<Self>,
        key: &SessionKey,
        version: RecordVersion,
        lease: Option<&Arc<LeaseState>>,
    ) -> Result<Option<Arc<SessionRecord>>, SessionError> {
        if let Some(record) = self.cache().get(version.mark) {
            return Ok(Some(record));
        }
        let error = match self.backing.read(key).await {
            Ok(bytes) => match SessionRecord::decode(&bytes) {
                Ok(record) if record.key != *key => {
                    RecordError::Content("it is the record of another session")
                }
                Ok(record) if !version.is(&record) => {
                    RecordError::Content("it is another record of the session than the last one")
                }
                Ok(record) => return Ok(Some(Arc::new(record))),
                Err(error) => error,
            },
            Err(ReadError::Unavailable(error)) => return Err(error.into()),
            Err(ReadError::Damaged(error)) => error,
        };
        if let RecordError::Format(_) = error {
            // Not damaged: written by another version.
            return Err(error.into());
        }
        let Some(outcome) = self.move_aside(key, version.mark, lease) else {
            return Ok(None);
        };
        tracing::error!(session = %key, %error, "the record of a session is damaged and is moved aside");
        settled(outcome).await?;
        Err(SessionError::Evicted(EvictionReason::Damaged))
    }

    /// Moves a damaged record aside, unless it was deleted or replaced since
    /// it was read.
    fn move_aside(
        self: &Arc<Self>,
        key: &SessionKey,
        mark: u64,
        lease: Option<&Arc<LeaseState>>,
    ) -> Option<Outcome> {
        let mut index = self.index();
        let plan = index.plan_damaged(key, mark, lease)?;
        Some(self.submit(index, plan))
    }

    /// Plans and submits a commit.
    fn begin_commit(
        self: &Arc<Self>,
        lease: SessionLease,
        commit: SessionCommit,
    ) -> Result<(CommitOutcome, Option<Outcome>), SessionError> {
        let held = self.index().held_session(&lease.state);
        let held = held.ok_or(SessionError::Deleted)?;
        match CommitPlan::new(&lease, &held, commit, now_ms())? {
            CommitPlan::Unchanged(outcome) => Ok((outcome, None)),
            CommitPlan::Put(record, outcome) => {
                let last_used_ms = self.clock.now_ms();
                let record = SessionRecord {
                    last_used_ms,
                    ..*record
                };
                // Outside of the lock: the checksum takes longer than the plan.
                let encoded = record.encode()?;
                Ok((outcome, Some(self.put(lease, record, encoded)?)))
            }
        }
    }

    /// Submits the record of a leased session, and its encoding.
    fn put(
        self: &Arc<Self>,
        lease: SessionLease,
        record: SessionRecord,
        encoded: Bytes,
    ) -> Result<Outcome, SessionError> {
        let mut plan = Plan::default();
        let mut index = self.index();
        let planned = index.plan_put(&lease.state, Arc::new(record), encoded, &mut plan);
        if let Err(error) = planned {
            // Its release takes the lock.
            drop(index);
            return Err(error);
        }
        // The lease ends with the outcome of the change.
        lease.into_state();
        Ok(self.submit(index, plan))
    }

    /// Creates a session that no call has made.
    async fn create(
        self: Arc<Self>,
        record: SessionRecord,
        owner_limit: Option<u64>,
    ) -> Result<SessionInfo, SessionError> {
        record.check()?;
        self.index().check_open()?;
        self.backing.check()?;
        self.evict_expired();
        let key = record.key.clone();
        let lease = LeaseState::internal(key.clone());
        let reserve = |lease: &Arc<LeaseState>| {
            let mut index = self.index();
            if let Some(holder) = index.internal_holder(&key) {
                return Ok(Some(holder));
            }
            index.reserve(&key, &record.identity, owner_limit, lease)?;
            Ok::<_, SessionError>(None)
        };
        while let Some(holder) = reserve(&lease)? {
            holder.wait_until_ended().await;
        }
        let lease = self.lease(lease, None);
        let record = SessionRecord {
            created_unix_ms: now_ms(),
            last_used_ms: self.clock.now_ms(),
            ..record
        };
        let encoded = record.encode()?;
        // Not read from the index: it may be evicted as soon as it is stored.
        let info = SessionInfo {
            key,
            identity: record.identity.clone(),
            position: record.end.position,
            last_call_position: record.begin.position,
            busy: false,
            idle: Duration::ZERO,
            bytes: stored_bytes(encoded.len()).into(),
            created_unix_ms: record.created_unix_ms,
        };
        settled(self.put(lease, record, encoded)?).await?;
        Ok(info)
    }

    /// The record of a session that nobody uses.
    async fn idle_record(
        self: &Arc<Self>,
        key: &SessionKey,
    ) -> Result<Arc<SessionRecord>, SessionError> {
        loop {
            match self.idle_version(key)? {
                Ok(version) => {
                    if let Some(record) = self.read(key, version, None).await? {
                        return Ok(record);
                    }
                }
                Err(holder) => holder.wait_until_ended().await,
            }
        }
    }

    fn idle_version(
        &self,
        key: &SessionKey,
    ) -> Result<Result<RecordVersion, Arc<LeaseState>>, SessionError> {
        let index = self.index();
        Ok(match index.internal_holder(key) {
            Some(holder) => Err(holder),
            None => Ok(index.idle(key, self.clock.now_ms())?),
        })
    }

    async fn delete(self: Arc<Self>, key: SessionKey) -> Result<(), SessionError> {
        self.index().check_open()?;
        self.backing.check()?;
        loop {
            match self.try_delete(&key)? {
                Ok(outcome) => return settled(outcome).await,
                Err(holder) => holder.wait_until_ended().await,
            }
        }
    }

    fn try_delete(
        self: &Arc<Self>,
        key: &SessionKey,
    ) -> Result<Result<Outcome, Arc<LeaseState>>, SessionError> {
        let mut index = self.index();
        if let Some(holder) = index.internal_holder(key) {
            return Ok(Err(holder));
        }
        let plan = index.plan_delete(key)?;
        Ok(Ok(self.submit(index, plan)))
    }

    async fn evict_model(self: Arc<Self>, model: ModelVersion) -> Result<u64, SessionError> {
        let mut evicted = 0;
        let mut from = 0;
        while let Some(part) = self.begin_model_eviction(&model, from)? {
            settled(part.outcome).await?;
            evicted += part.sessions;
            from = part.next;
        }
        Ok(evicted)
    }

    /// Evicts some sessions from slot `from` on; `None` if there are no more.
    fn begin_model_eviction(
        self: &Arc<Self>,
        model: &ModelVersion,
        from: u32,
    ) -> Result<Option<ModelEviction>, SessionError> {
        self.backing.check()?;
        let mut index = self.index();
        index.check_open()?;
        let (plan, next) = index.plan_model_eviction(model, from, MAX_EVICTIONS);
        if plan.is_empty() {
            return Ok(None);
        }
        Ok(Some(ModelEviction {
            sessions: plan.change.deletes.len() as u64,
            outcome: self.submit(index, plan),
            next,
        }))
    }
}

impl ReleaseLease for LocalSessions {
    fn release(&self, lease: &Arc<LeaseState>) {
        self.index().release(lease);
        lease.end();
    }
}

async fn settled(outcome: Outcome) -> Result<(), SessionError> {
    // The sender is only dropped without an answer if the writer panicked.
    outcome.await.unwrap_or(Err(SessionError::Stopping))
}

/// A backend that is [`LocalSessions`] on some backing.
pub(super) trait OnLocalSessions: fmt::Debug + Send + Sync + 'static {
    fn local(&self) -> &Arc<LocalSessions>;
}

impl<T: OnLocalSessions> SessionStorage for T {
    fn open(&self, request: OpenRequest) -> StorageFuture<'_, Result<OpenedSession, SessionError>> {
        Box::pin(Arc::clone(self.local()).open(request))
    }

    fn commit(
        &self,
        lease: SessionLease,
        commit: SessionCommit,
    ) -> StorageFuture<'static, Result<CommitOutcome, SessionError>> {
        let submitted = self.local().begin_commit(lease, commit);
        Box::pin(async move {
            let (outcome, waiting) = submitted?;
            if let Some(waiting) = waiting {
                settled(waiting).await?;
            }
            Ok(outcome)
        })
    }

    fn released(&self, key: &SessionKey) -> StorageFuture<'static, ()> {
        let holder = self.local().index().holder(key);
        Box::pin(async move {
            if let Some(holder) = holder {
                holder.wait_until_ended().await;
            }
        })
    }

    fn get(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        let info = self.local().index().info(key, self.local().clock.now_ms());
        Box::pin(std::future::ready(info))
    }

    fn list(&self, request: ListRequest) -> StorageFuture<'_, Result<SessionPage, SessionError>> {
        let page = self
            .local()
            .index()
            .list(&request, self.local().clock.now_ms());
        Box::pin(std::future::ready(Ok(page)))
    }

    fn fork(&self, request: ForkRequest) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        let sessions = Arc::clone(self.local());
        Box::pin(async move {
            let source = sessions.idle_record(&request.key).await?;
            let record = SessionRecord {
                key: SessionKey::new(request.key.owner, request.new_id),
                ..SessionRecord::clone(&source)
            };
            sessions.create(record, request.owner_limit).await
        })
    }

    fn delete(&self, key: &SessionKey) -> StorageFuture<'_, Result<(), SessionError>> {
        Box::pin(Arc::clone(self.local()).delete(key.clone()))
    }

    fn export(&self, key: &SessionKey) -> StorageFuture<'_, Result<SessionRecord, SessionError>> {
        let sessions = Arc::clone(self.local());
        let key = key.clone();
        Box::pin(async move {
            let record = sessions.idle_record(&key).await?;
            Ok(SessionRecord::clone(&record))
        })
    }

    fn import(
        &self,
        request: ImportRequest,
    ) -> StorageFuture<'_, Result<SessionInfo, SessionError>> {
        let sessions = Arc::clone(self.local());
        Box::pin(sessions.create(request.record, request.owner_limit))
    }

    fn count_by_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<u64, SessionError>> {
        let count = self.local().index().count_by_model(model);
        Box::pin(std::future::ready(Ok(count)))
    }

    fn retire_model(
        &self,
        model: &ModelVersion,
        allowed: AllowedSessions,
    ) -> StorageFuture<'_, Result<(), SessionError>> {
        let retired = self.local().index().retire_model(model, &allowed);
        Box::pin(std::future::ready(retired))
    }

    fn reinstate_model(&self, model: &ModelVersion) -> StorageFuture<'_, Result<(), SessionError>> {
        let reinstated = self.local().index().reinstate_model(model);
        Box::pin(std::future::ready(reinstated))
    }

    fn evict_model_sessions(
        &self,
        model: &ModelVersion,
    ) -> StorageFuture<'_, Result<u64, SessionError>> {
        Box::pin(Arc::clone(self.local()).evict_model(model.clone()))
    }

    fn check_available(&self) -> Result<(), StorageUnavailable> {
        self.local().backing.check()
    }

    fn stats(&self) -> SessionStats {
        let stats = self.local().index().stats();
        SessionStats {
            cached_bytes: self.local().cache().bytes(),
            damaged: self.local().backing.damaged(),
            available: self.local().backing.check().is_ok(),
            ..stats
        }
    }

    fn backup(&self, folder: &Path) -> StorageFuture<'_, Result<(), SessionError>> {
        self.local().backing.backup(folder)
    }

    fn shutdown(&self) -> StorageFuture<'_, Result<(), SessionError>> {
        // Under the lock with which changes are planned: whatever was
        // accepted before is in the backing's queue.
        self.local().index().is_closed = true;
        self.local().backing.shutdown()
    }
}
