//! What needs no lease: reading, listing, deleting and creating sessions, and
//! the models that they use.

use std::time::Duration;

use charlstm_store::session::{
    ARITHMETIC_REVISION, AllowedSessions, EvictionReason, ListRequest, ModelVersion, Owner,
    PageToken, SessionError, SessionId, SessionInfo, SessionKey, SessionPage, SessionRecord,
};
use charlstm_store::unix_time::now_ms;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::opening::{busy_here, not_admitted};
use super::rows::{
    counts, eviction_reason, identity, precision_code, rejected, to_i64, u64_of, unexpected,
};
use super::{MAX_EVICTIONS, Shared};
use crate::database::{DatabaseError, Statement};

/// The statement that reads what [`info`] needs, for sessions that meet a condition.
macro_rules! select_info {
    ($condition:literal) => {
        concat!(
            "SELECT s.owner, s.id, s.model, s.model_version, s.digest, s.precision, s.revision,
                s.position, s.last_call_position, s.created_ms, s.bytes, s.used_order,
                session_now_ms() - s.used_ms AS idle_ms,
                coalesce(l.until > clock_timestamp(), false) AS busy
            FROM sessions s LEFT JOIN session_leases l USING (owner, id)
            WHERE ",
            $condition
        )
    };
}

impl Shared {
    async fn query(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, SessionError> {
        self.observe(self.database.fetch_all(statement).await)
    }

    async fn query_one(&self, statement: Statement<'_>) -> Result<PgRow, SessionError> {
        self.observe(self.database.fetch_one(statement).await)
    }

    fn max_idle(&self) -> Duration {
        self.settings.limits.max_idle
    }

    /// Describes a session.
    pub(super) async fn info(&self, key: &SessionKey) -> Result<SessionInfo, SessionError> {
        let statement = sqlx::query(select_info!("s.owner = $1 AND s.id = $2"))
            .bind(key.owner.as_str())
            .bind(key.id.as_str());
        let rows = self.query(statement).await?;
        let Some(row) = rows.first() else {
            return Err(self.missing(key).await);
        };
        let info = info(row).map_err(rejected)?;
        if !info.busy && info.idle >= self.max_idle() {
            return Err(SessionError::Evicted(EvictionReason::Idle));
        }
        Ok(info)
    }

    /// Why there is no session.
    async fn missing(&self, key: &SessionKey) -> SessionError {
        let statement =
            sqlx::query("SELECT reason FROM session_tombstones WHERE owner = $1 AND id = $2")
                .bind(key.owner.as_str())
                .bind(key.id.as_str());
        let rows = match self.query(statement).await {
            Ok(rows) => rows,
            Err(error) => return error,
        };
        let Some(row) = rows.first() else {
            return SessionError::Unknown;
        };
        let reason = row.try_get("reason").and_then(eviction_reason);
        reason.map_or_else(rejected, SessionError::Evicted)
    }

    /// Returns a page of sessions.
    pub(super) async fn page(&self, request: &ListRequest) -> Result<SessionPage, SessionError> {
        let max = i64::try_from(request.max_sessions).unwrap_or(i64::MAX - 1);
        let owner = request.owner.as_ref().map(Owner::as_str);
        let before = request.after.map_or(i64::MAX, |token| to_i64(token.0));
        let statement = sqlx::query(select_info!(
            "($1::text IS NULL OR s.owner = $1) AND s.used_order < $2
                AND (session_now_ms() - s.used_ms < $3 OR l.until > clock_timestamp())
            ORDER BY s.used_order DESC LIMIT $4"
        ))
        .bind(owner)
        .bind(before)
        .bind(self.max_idle_ms())
        // One more, to learn whether there is another page.
        .bind(max.saturating_add(1));
        let rows = self.query(statement).await?;
        let total = self.total(owner).await?;
        page(&rows, request.max_sessions, total).map_err(rejected)
    }

    async fn total(&self, owner: Option<&str>) -> Result<u64, SessionError> {
        let statement = match owner {
            None => sqlx::query("SELECT sum(sessions)::bigint AS total FROM session_totals"),
            Some(owner) => {
                sqlx::query("SELECT count(*) AS total FROM sessions WHERE owner = $1").bind(owner)
            }
        };
        self.number(statement, "total").await
    }

    async fn number(&self, statement: Statement<'_>, column: &str) -> Result<u64, SessionError> {
        let row = self.query_one(statement).await?;
        u64_of(&row, column).map_err(rejected)
    }

    /// Reads the record of a session that nobody uses.
    pub(super) async fn idle_record(
        &self,
        key: &SessionKey,
    ) -> Result<SessionRecord, SessionError> {
        if let Some(holder) = self.held.wait_if_ending(key).await {
            return Err(busy_here(holder.is_leaving()));
        }
        let statement = sqlx::query(
            "SELECT s.record, s.revision, session_now_ms() - s.used_ms AS idle_ms, l.replica,
                l.process, coalesce(l.until > clock_timestamp(), false) AS busy
            FROM sessions s LEFT JOIN session_leases l USING (owner, id)
            WHERE s.owner = $1 AND s.id = $2",
        )
        .bind(key.owner.as_str())
        .bind(key.id.as_str());
        let rows = self.query(statement).await?;
        let Some(row) = rows.first() else {
            return Err(self.missing(key).await);
        };
        let record = self.record(row).map_err(rejected)?;
        let record = SessionRecord::decode(&record?.into())?;
        if record.key != *key {
            return Err(rejected(unexpected("the record of another session")));
        }
        Ok(record)
    }

    /// The outer error is one of the row itself.
    fn record(&self, row: &PgRow) -> Result<Result<Vec<u8>, SessionError>, sqlx::Error> {
        if row.try_get("busy")? {
            let process: Uuid = row.try_get("process")?;
            let replica: String = row.try_get("replica")?;
            let replica = (process != self.settings.registry.process()).then(|| replica.into());
            return Ok(Err(SessionError::Busy {
                leaving: false,
                replica,
            }));
        }
        if Duration::from_millis(u64_of(row, "idle_ms")?) >= self.max_idle() {
            return Ok(Err(SessionError::Evicted(EvictionReason::Idle)));
        }
        let revision: i32 = row.try_get("revision")?;
        if revision != i32::from(ARITHMETIC_REVISION) {
            let revision = u16::try_from(revision).unwrap_or(u16::MAX);
            return Ok(Err(SessionError::UnknownRevision(revision)));
        }
        Ok(Ok(row.try_get("record")?))
    }

    /// Creates a session that no call has made.
    pub(super) async fn create(
        &self,
        record: SessionRecord,
        owner_limit: Option<u64>,
    ) -> Result<SessionInfo, SessionError> {
        record.check()?;
        self.check_open()?;
        if record.identity.revision != ARITHMETIC_REVISION {
            return Err(SessionError::UnknownRevision(record.identity.revision));
        }
        self.held.wait_if_ending(&record.key).await;
        let record = SessionRecord {
            created_unix_ms: now_ms(),
            last_used_ms: 0,
            ..record
        };
        let encoded = record.encode()?;
        let bytes = SessionRecord::stored_bytes(encoded.len());
        let (key, identity) = (&record.key, &record.identity);
        let statement = sqlx::query(
            "SELECT session_create($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
             $15) AS outcome",
        )
        .bind(key.owner.as_str())
        .bind(key.id.as_str())
        .bind(Uuid::new_v4())
        .bind(&*identity.model.name)
        .bind(to_i64(identity.model.version))
        .bind(identity.digest.as_slice())
        .bind(precision_code(identity.precision))
        .bind(i32::from(identity.revision))
        .bind(to_i64(record.end.position))
        .bind(to_i64(record.begin.position))
        .bind(to_i64(record.created_unix_ms))
        .bind(i32::try_from(bytes).unwrap_or(i32::MAX))
        .bind(&*encoded)
        .bind(owner_limit.map(to_i64))
        .bind(to_i64(self.settings.limits.max_sessions));
        let row = self.query_one(statement).await?;
        match row.try_get("outcome").unwrap_or_default() {
            "created" => self.info(key).await,
            outcome => {
                let error = not_admitted(outcome, Some(identity), owner_limit);
                Err(error.unwrap_or_else(rejected))
            }
        }
    }

    /// Deletes a session, or its tombstone.
    pub(super) async fn delete(&self, key: &SessionKey) -> Result<(), SessionError> {
        self.check_open()?;
        self.held.wait_if_ending(key).await;
        self.held.delete(key);
        self.cache().remove(key);
        let statement = sqlx::query("SELECT session_delete($1, $2) AS existed")
            .bind(key.owner.as_str())
            .bind(key.id.as_str());
        let row = self.query_one(statement).await?;
        if row.try_get("existed").map_err(rejected)? {
            return Ok(());
        }
        Err(SessionError::Unknown)
    }

    /// Number of sessions of a model version.
    pub(super) async fn count_by_model(&self, model: &ModelVersion) -> Result<u64, SessionError> {
        let statement = sqlx::query(
            "SELECT (SELECT count(*) FROM sessions WHERE model = $1 AND model_version = $2)
                + (SELECT count(*) FROM session_leases WHERE is_new AND model = $1
                    AND model_version = $2 AND until > clock_timestamp()) AS sessions",
        )
        .bind(&*model.name)
        .bind(to_i64(model.version));
        self.number(statement, "sessions").await
    }

    /// Prevents new sessions on a model version.
    pub(super) async fn retire_model(
        &self,
        model: &ModelVersion,
        allowed: &AllowedSessions,
    ) -> Result<(), SessionError> {
        self.check_open()?;
        let (allowed, owner) = match allowed {
            AllowedSessions::None => ("none", None),
            AllowedSessions::OfOwner(owner) => ("owner", Some(owner.as_str())),
            AllowedSessions::All => ("all", None),
        };
        let statement = sqlx::query("SELECT session_retire_model($1, $2, $3, $4) AS others")
            .bind(&*model.name)
            .bind(to_i64(model.version))
            .bind(allowed)
            .bind(owner);
        match self.number(statement, "others").await? {
            0 => Ok(()),
            sessions => Err(SessionError::ModelInUse {
                model: model.clone(),
                sessions,
            }),
        }
    }

    /// Allows sessions on a model version again.
    pub(super) async fn reinstate_model(&self, model: &ModelVersion) -> Result<(), SessionError> {
        self.check_open()?;
        let statement = sqlx::query(
            "DELETE FROM session_retired_models WHERE model = $1 AND model_version = $2",
        )
        .bind(&*model.name)
        .bind(to_i64(model.version));
        self.query(statement).await?;
        Ok(())
    }

    /// Evicts the sessions of a model version that no call uses.
    pub(super) async fn evict_model(&self, model: &ModelVersion) -> Result<u64, SessionError> {
        self.check_open()?;
        let mut all = 0;
        loop {
            let statement = sqlx::query("SELECT session_evict_model($1, $2, $3) AS sessions")
                .bind(&*model.name)
                .bind(to_i64(model.version))
                .bind(MAX_EVICTIONS);
            let evicted = self.number(statement, "sessions").await?;
            if evicted == 0 {
                break;
            }
            all += evicted;
        }
        self.counters.add_evicted(EvictionReason::ModelGone, all);
        Ok(all)
    }

    /// Reads the counters.
    pub(super) async fn refresh_stats(&self) -> Result<(), DatabaseError> {
        let statement = sqlx::query("SELECT * FROM session_counts()");
        let row = self.database.fetch_one(statement).await?;
        self.counters.set_stats(counts(&row, "")?);
        Ok(())
    }
}

fn page(rows: &[PgRow], max_sessions: usize, total: u64) -> Result<SessionPage, sqlx::Error> {
    let on_page = &rows[..rows.len().min(max_sessions)];
    let next = match on_page.last() {
        Some(last) if rows.len() > max_sessions => Some(PageToken(u64_of(last, "used_order")?)),
        _ => None,
    };
    Ok(SessionPage {
        sessions: on_page.iter().map(info).collect::<Result<_, _>>()?,
        next,
        total,
    })
}

fn info(row: &PgRow) -> Result<SessionInfo, sqlx::Error> {
    let (owner, id): (String, String) = (row.try_get("owner")?, row.try_get("id")?);
    let name = |_| unexpected("a name that breaks the rules");
    let bytes: i32 = row.try_get("bytes")?;
    Ok(SessionInfo {
        key: SessionKey::new(
            Owner::new(&owner).map_err(name)?,
            SessionId::new(&id).map_err(name)?,
        ),
        identity: identity(row, "")?,
        position: u64_of(row, "position")?,
        last_call_position: u64_of(row, "last_call_position")?,
        busy: row.try_get("busy")?,
        idle: Duration::from_millis(u64_of(row, "idle_ms")?),
        bytes: u64::try_from(bytes).unwrap_or(0),
        created_unix_ms: u64_of(row, "created_ms")?,
    })
}
