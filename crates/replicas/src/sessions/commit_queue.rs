//! Commits and releases on their way to the database: what waits is sent
//! together, so that many calls share a transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use charlstm_store::session::{
    LeaseState, LeaseStatus, SessionError, SessionRecord, StorageUnavailable,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::Shared;
use super::availability::unavailable;
use super::counters::Counters;
use super::held::HeldCalls;
use super::rows::{precision_code, to_i64, to_uuid};
use crate::database::DatabaseError;

/// Maximum number of commits in a transaction: about a megabyte.
const MAX_BATCH: usize = 64;

/// Number of transactions at a time. While they run, the next batch collects.
const TRANSACTIONS: usize = 2;

/// How long a commit waits for a database that is not available: as long as a
/// lease. Then its call fails.
const COMMIT_WAIT: Duration = super::LEASE;

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// How often the release of leases is attempted: they end by themselves.
const RELEASE_ATTEMPTS: usize = 3;

/// The commits and releases that wait. Its length is bounded by the number of
/// calls.
#[derive(Debug)]
pub(super) struct CommitQueue {
    sender: mpsc::UnboundedSender<Work>,
    /// Number of those that were submitted and not carried out yet.
    pending: AtomicUsize,
    empty: Notify,
}

/// The end of a call.
#[derive(Debug)]
pub(super) enum Work {
    Commit(Box<Submission>),
    Release(Arc<LeaseState>),
}

/// A commit.
#[derive(Debug)]
pub(super) struct Submission {
    lease: Arc<LeaseState>,
    commit_id: Uuid,
    record: Arc<SessionRecord>,
    encoded: Bytes,
    give_up: Instant,
    outcome: oneshot::Sender<Result<(), SessionError>>,
}

impl CommitQueue {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Work>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queue = Self {
            sender,
            pending: AtomicUsize::new(0),
            empty: Notify::new(),
        };
        (queue, receiver)
    }

    /// Submits a commit. It is carried out whether or not the caller waits for
    /// the outcome.
    pub(super) fn submit(
        &self,
        lease: Arc<LeaseState>,
        record: SessionRecord,
        encoded: Bytes,
    ) -> oneshot::Receiver<Result<(), SessionError>> {
        let (outcome, receiver) = oneshot::channel();
        let submission = Submission {
            lease,
            commit_id: Uuid::new_v4(),
            record: Arc::new(record),
            encoded,
            give_up: Instant::now() + COMMIT_WAIT,
            outcome,
        };
        self.pending.fetch_add(1, Ordering::AcqRel);
        let work = Work::Commit(Box::new(submission));
        if self.sender.send(work).is_err() {
            self.done(1);
        }
        receiver
    }

    /// Submits a lease that ends without a commit.
    pub(super) fn release(&self, lease: Arc<LeaseState>, held: &HeldCalls) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        if self.sender.send(Work::Release(Arc::clone(&lease))).is_err() {
            self.done(1);
            held.end(&lease);
        }
    }

    /// Completes once everything that was submitted is carried out.
    pub(super) async fn wait_until_empty(&self) {
        loop {
            let empty = self.empty.notified();
            tokio::pin!(empty);
            empty.as_mut().enable();
            if self.sender.is_closed() || self.pending.load(Ordering::Acquire) == 0 {
                return;
            }
            empty.await;
        }
    }

    fn done(&self, number: usize) {
        if self.pending.fetch_sub(number, Ordering::AcqRel) == number {
            self.empty.notify_waiters();
        }
    }
}

/// Carries out what is submitted.
pub(super) async fn run(shared: Arc<Shared>, mut waiting: mpsc::UnboundedReceiver<Work>) {
    let transactions = Arc::new(Semaphore::new(TRANSACTIONS));
    let mut batch = Vec::new();
    loop {
        // The permit first: whatever comes in meanwhile joins the batch.
        let Ok(permit) = Arc::clone(&transactions).acquire_owned().await else {
            return;
        };
        if waiting.recv_many(&mut batch, MAX_BATCH).await == 0 {
            return;
        }
        let (shared, batch) = (Arc::clone(&shared), std::mem::take(&mut batch));
        tokio::spawn(async move {
            let number = batch.len();
            shared.carry_out(batch).await;
            drop(permit);
            shared.commits.done(number);
        });
    }
}

impl Shared {
    async fn carry_out(&self, batch: Vec<Work>) {
        let mut commits = Vec::new();
        let mut releases = Vec::new();
        for work in batch {
            match work {
                Work::Commit(submission) => commits.push(*submission),
                Work::Release(lease) => releases.push(lease),
            }
        }
        tokio::join!(self.commit_all(commits), self.end_without_commit(releases));
    }

    async fn commit_all(&self, mut batch: Vec<Submission>) {
        // An earlier attempt may have been carried out.
        let mut is_repeat = false;
        while !batch.is_empty() {
            let result = self.send_commits(&batch).await;
            self.availability.observe(&result);
            let error = match result {
                Ok(rows) => return self.finish_all(batch, &rows, is_repeat),
                Err(error) => error,
            };
            if !error.is_unavailable() {
                tracing::error!(%error, "the database rejected commits of sessions");
                let cause = unavailable(&error.to_string());
                return self.give_up(batch, is_repeat, &cause);
            }
            is_repeat |= error.is_outcome_unknown();
            let now = Instant::now();
            let (over, rest): (Vec<_>, Vec<_>) =
                batch.into_iter().partition(|commit| commit.give_up <= now);
            self.give_up(over, is_repeat, &unavailable(&error.to_string()));
            batch = rest;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn send_commits(&self, batch: &[Submission]) -> Result<Vec<PgRow>, DatabaseError> {
        let records = || batch.iter().map(|commit| &commit.record);
        let positions = |position: fn(&SessionRecord) -> u64| -> Vec<i64> {
            records().map(|record| to_i64(position(record))).collect()
        };
        let bytes = |commit: &Submission| {
            let bytes = SessionRecord::stored_bytes(commit.encoded.len());
            i32::try_from(bytes).unwrap_or(i32::MAX)
        };
        let owners: Vec<&str> = records().map(|r| r.key.owner.as_str()).collect();
        let ids: Vec<&str> = records().map(|r| r.key.id.as_str()).collect();
        let models: Vec<&str> = records().map(|r| &*r.identity.model.name).collect();
        let digests: Vec<&[u8]> = records().map(|r| r.identity.digest.as_slice()).collect();
        let precisions: Vec<i16> = records()
            .map(|r| precision_code(r.identity.precision))
            .collect();
        let revisions: Vec<i32> = records().map(|r| i32::from(r.identity.revision)).collect();
        let tokens = batch.iter().map(|commit| to_uuid(commit.lease.token()));
        let statement = sqlx::query(
            "SELECT * FROM session_commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
             $14)",
        )
        .bind(owners)
        .bind(ids)
        .bind(tokens.collect::<Vec<_>>())
        .bind(batch.iter().map(|c| c.commit_id).collect::<Vec<_>>())
        .bind(models)
        .bind(positions(|record| record.identity.model.version))
        .bind(digests)
        .bind(precisions)
        .bind(revisions)
        .bind(positions(|record| record.end.position))
        .bind(positions(|record| record.begin.position))
        .bind(positions(|record| record.created_unix_ms))
        .bind(batch.iter().map(bytes).collect::<Vec<_>>())
        .bind(batch.iter().map(|c| &*c.encoded).collect::<Vec<_>>());
        self.database.fetch_all(statement).await
    }

    fn finish_all(&self, batch: Vec<Submission>, rows: &[PgRow], is_repeat: bool) {
        let outcomes: HashMap<Uuid, &PgRow> = rows
            .iter()
            .filter_map(|row| Some((row.try_get("o_token").ok()?, row)))
            .collect();
        for commit in batch {
            let row = outcomes.get(&to_uuid(commit.lease.token()));
            let outcome = row.map_or_else(
                || Err(unavailable("a commit has no outcome").into()),
                |row| self.outcome(&commit, row, is_repeat),
            );
            self.end(commit, outcome);
        }
    }

    /// Returns the outcome of a commit that was sent. `is_repeat`: an earlier
    /// attempt may have been carried out.
    fn outcome(
        &self,
        commit: &Submission,
        row: &PgRow,
        is_repeat: bool,
    ) -> Result<(), SessionError> {
        let outcome: &str = row.try_get("o_outcome").unwrap_or_default();
        match outcome {
            "committed" => {
                let record = Arc::clone(&commit.record);
                self.cache().insert(commit.commit_id, record);
                Ok(())
            }
            "deleted" => Err(SessionError::Deleted),
            // The first attempt may have been carried out, and another call
            // may have committed since.
            _ if is_repeat => Err(SessionError::CommitUnknown),
            _ => {
                let replica: Option<String> = row.try_get("o_replica").unwrap_or_default();
                let replica: Option<Arc<str>> = replica.map(Into::into);
                Counters::add(&self.counters.fenced);
                commit.lease.revoke(LeaseStatus::Fenced {
                    replica: replica.clone(),
                });
                Err(SessionError::Fenced { replica })
            }
        }
    }

    /// Ends commits that are not sent again. `is_repeat`: an earlier attempt may
    /// have been carried out.
    fn give_up(&self, batch: Vec<Submission>, is_repeat: bool, cause: &StorageUnavailable) {
        for commit in batch {
            let error = if is_repeat {
                SessionError::CommitUnknown
            } else {
                cause.clone().into()
            };
            self.end(commit, Err(error));
        }
    }

    fn end(&self, commit: Submission, outcome: Result<(), SessionError>) {
        if outcome.is_err() {
            // The record in memory may be older than the database's.
            self.cache().remove(commit.lease.key());
        }
        // The session is free before its call learns of it.
        self.held.end(&commit.lease);
        let _ = commit.outcome.send(outcome);
    }

    /// Ends leases without a commit.
    pub(super) async fn end_without_commit(&self, leases: Vec<Arc<LeaseState>>) {
        let tokens: Vec<Uuid> = leases.iter().map(|lease| to_uuid(lease.token())).collect();
        for attempt in 1..=RELEASE_ATTEMPTS {
            if tokens.is_empty() {
                break;
            }
            let statement = sqlx::query("DELETE FROM session_leases WHERE token = ANY ($1)");
            let result = self.database.fetch_all(statement.bind(&tokens)).await;
            self.availability.observe(&result);
            match result {
                Err(error) if error.is_unavailable() && attempt < RELEASE_ATTEMPTS => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "leases could not be released; they end by themselves");
                    break;
                }
                Ok(_) => break,
            }
        }
        for lease in leases {
            self.held.end(&lease);
        }
    }

    /// Ends all leases, so that other replicas need not wait until they expire.
    pub(super) async fn release_all(&self) {
        self.end_without_commit(self.held.take_all()).await;
    }
}
