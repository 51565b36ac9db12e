//! A transaction that changes trainings. It locks the revision first and a training
//! after that, so two never wait for each other.

use charlstm_training::events::{Event, EventKind};
use charlstm_training::shared::{QueueLimits, SharedState, SharedTrainingsError};
use sqlx::postgres::PgRow;

use super::Outcome;
use super::values::{get, number, signed, state, unreadable};
use crate::database::{Database, Statement, Transaction};

/// A transaction that counts as one change.
pub(super) struct Change {
    pub(super) transaction: Transaction,
    pub(super) revision: i64,
}

impl Change {
    /// Begins a change. Blocks others until the transaction ends.
    pub(super) async fn begin(database: &Database) -> Outcome<Self> {
        let mut transaction = database.begin().await?;
        let count =
            sqlx::query("UPDATE training_revision SET revision = revision + 1 RETURNING revision");
        let rows = transaction.fetch_all(count).await?;
        let row = rows.first().ok_or(SharedTrainingsError::NotFound)?;
        let revision = get(row, "revision")?;
        Ok(Self {
            transaction,
            revision,
        })
    }

    /// Runs a statement that must return a row.
    pub(super) async fn require(
        &mut self,
        statement: Statement<'_>,
        otherwise: SharedTrainingsError,
    ) -> Outcome<PgRow> {
        let mut rows = self.transaction.fetch_all(statement).await?;
        match rows.is_empty() {
            true => Err(otherwise),
            false => Ok(rows.remove(0)),
        }
    }

    /// Locks a training until the end of the transaction.
    pub(super) async fn lock(&mut self, id: &str) -> Outcome<SharedState> {
        let select = sqlx::query("SELECT state FROM trainings WHERE id = $1 FOR UPDATE").bind(id);
        let row = self.require(select, SharedTrainingsError::NotFound).await?;
        state(&row)
    }

    pub(super) async fn require_ended(&mut self, id: &str) -> Outcome<()> {
        match self.lock(id).await? {
            SharedState::Ended => Ok(()),
            SharedState::Queued | SharedState::Running => Err(SharedTrainingsError::NotEnded),
            SharedState::Deleted => Err(SharedTrainingsError::NotFound),
        }
    }

    /// Checks that one more training may wait. The revision is locked, so the
    /// numbers do not change before the end of the transaction.
    pub(super) async fn check_limits(&mut self, limits: QueueLimits<'_>) -> Outcome<()> {
        let count = sqlx::query(
            "SELECT count(*) FILTER (WHERE state = 'queued') AS queued,
                 count(*) FILTER (WHERE owner = $1) AS of_owner
             FROM trainings WHERE state IN ('queued', 'running')",
        )
        .bind(limits.owner.to_string());
        let row = self.require(count, SharedTrainingsError::NotFound).await?;
        if number(&row, "queued")? >= limits.max_queued as u64 {
            return Err(SharedTrainingsError::QueueFull);
        }
        let of_owner = number(&row, "of_owner")?;
        match limits.max_of_owner {
            Some(limit) if of_owner >= limit => Err(SharedTrainingsError::Quota),
            _ => Ok(()),
        }
    }

    /// Adds events with their sequence numbers, unless they are there already.
    pub(super) async fn add_events<'e>(
        &mut self,
        id: &str,
        events: impl IntoIterator<Item = &'e Event>,
    ) -> Outcome<()> {
        let (mut sequences, mut texts) = (Vec::new(), Vec::new());
        for event in events {
            sequences.push(signed(event.sequence));
            texts.push(serde_json::to_string(&event.event).map_err(unreadable)?);
        }
        let insert = sqlx::query(
            "INSERT INTO training_events (training, sequence, event, revision)
             SELECT $1, sequence, event, $4 FROM unnest($2, $3) AS new (sequence, event)
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(sequences)
        .bind(texts)
        .bind(self.revision);
        self.transaction.fetch_all(insert).await?;
        Ok(())
    }

    /// Adds the next event of a training that no replica runs.
    pub(super) async fn add_event(&mut self, id: &str, event: &EventKind) -> Outcome<()> {
        let text = serde_json::to_string(event).map_err(unreadable)?;
        let insert = sqlx::query(
            "INSERT INTO training_events (training, sequence, event, revision)
             SELECT $1, COALESCE(max(sequence) + 1, 0), $2, $3
             FROM training_events WHERE training = $1",
        )
        .bind(id)
        .bind(text)
        .bind(self.revision);
        self.transaction.fetch_all(insert).await?;
        Ok(())
    }

    pub(super) async fn end(&mut self, id: &str) -> Outcome<()> {
        let end = sqlx::query(
            "UPDATE trainings SET state = 'ended', replica = NULL, lease_until = NULL,
                 cancel_requested = false, revision = $2 WHERE id = $1",
        )
        .bind(id)
        .bind(self.revision);
        self.transaction.fetch_all(end).await?;
        Ok(())
    }

    pub(super) async fn commit(self) -> Outcome<()> {
        Ok(self.transaction.commit().await?)
    }
}
