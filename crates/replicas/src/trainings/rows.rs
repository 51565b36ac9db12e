//! The rows of trainings and of their events: what each request reads and
//! changes.

use std::sync::Arc;

use charlstm_training::copying::TrainingCopy;
use charlstm_training::events::{Event, EventKind};
use charlstm_training::shared::{
    Claim, NewTraining, QueueLimits, SavedCheckpoint, SharedState, SharedTrainingsError,
    TrainingChanges,
};

use super::Outcome;
use super::change::Change;
use super::values::{get, number, signed, training, unreadable};
use crate::database::Database;

#[derive(Debug)]
pub(super) struct TrainingRows {
    database: Database,
}

impl TrainingRows {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Returns what has changed after a revision.
    pub(super) async fn changes(&self, since: u64) -> Outcome<TrainingChanges> {
        // Before the rows: everything up to it is visible to them.
        let select = sqlx::query("SELECT revision FROM training_revision");
        let revision = number(&self.database.fetch_one(select).await?, "revision")?;
        let mut changes = TrainingChanges {
            revision,
            ..TrainingChanges::default()
        };
        if revision == since {
            return Ok(changes);
        }
        let select = sqlx::query(
            "SELECT id, metadata, state, checkpoint_step FROM trainings
             WHERE revision > $1 ORDER BY revision",
        )
        .bind(signed(since));
        for row in self.database.fetch_all(select).await? {
            changes.trainings.push(training(&row)?);
        }
        let select = sqlx::query(
            "SELECT training, sequence, event FROM training_events
             WHERE revision > $1 ORDER BY training, sequence",
        )
        .bind(signed(since));
        for row in self.database.fetch_all(select).await? {
            let text: &str = get(&row, "event")?;
            let event = Event {
                sequence: number(&row, "sequence")?,
                event: serde_json::from_str(text).map_err(unreadable)?,
            };
            changes.events.push((get(&row, "training")?, event));
        }
        Ok(changes)
    }

    pub(super) async fn insert(&self, training: &NewTraining<'_>) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        change.check_limits(training.limits).await?;
        let insert = sqlx::query(
            "INSERT INTO trainings (id, owner, metadata, state, revision)
             VALUES ($1, $2, $3, 'queued', $4)",
        )
        .bind(training.id)
        .bind(training.limits.owner.to_string())
        .bind(training.metadata)
        .bind(change.revision);
        change.transaction.fetch_all(insert).await?;
        change.add_event(training.id, &training.accepted).await?;
        change.commit().await
    }

    /// Whether there is or was a training of this id.
    pub(super) async fn exists(&self, id: &str) -> Outcome<bool> {
        let select = sqlx::query("SELECT FROM trainings WHERE id = $1").bind(id);
        Ok(!self.database.fetch_all(select).await?.is_empty())
    }

    /// Adds a training that was copied and has ended. Returns false if there is
    /// one.
    pub(super) async fn insert_copy(
        &self,
        training: &TrainingCopy,
        [checkpoint, previous]: &[Option<String>; 2],
    ) -> Outcome<bool> {
        let mut change = Change::begin(&self.database).await?;
        let insert = sqlx::query(
            "INSERT INTO trainings (id, owner, metadata, state, checkpoint, checkpoint_step,
                 previous_checkpoint, revision)
             VALUES ($1, $2, $3, 'ended', $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(&training.id)
        .bind(training.owner.to_string())
        .bind(&training.metadata)
        .bind(checkpoint)
        .bind(training.checkpoint_step.map(signed))
        .bind(previous)
        .bind(change.revision);
        let is_new = !change.transaction.fetch_all(insert).await?.is_empty();
        if is_new {
            change.add_events(&training.id, &training.events).await?;
        }
        change.commit().await?;
        Ok(is_new)
    }

    pub(super) async fn claim(&self, replica: &str) -> Outcome<Option<Claim>> {
        // Without a change, as long as there is nothing to claim.
        let select = sqlx::query(
            "SELECT EXISTS (SELECT FROM trainings WHERE state = 'queued'
                 OR (state = 'running' AND lease_until < clock_timestamp())) AS any",
        );
        if !get::<bool>(&self.database.fetch_one(select).await?, "any")? {
            return Ok(None);
        }
        let mut change = Change::begin(&self.database).await?;
        let claim = sqlx::query(
            "UPDATE trainings SET state = 'running', epoch = epoch + 1, replica = $1,
                 lease_until = clock_timestamp() + interval '10 s', revision = $2
             WHERE id = (
                 SELECT id FROM trainings WHERE state = 'queued'
                     OR (state = 'running' AND lease_until < clock_timestamp())
                 ORDER BY queued_at LIMIT 1 FOR UPDATE SKIP LOCKED
             )
             RETURNING id, epoch",
        )
        .bind(replica)
        .bind(change.revision);
        let rows = change.transaction.fetch_all(claim).await?;
        let claim = rows.first().map(|row| {
            Ok::<_, SharedTrainingsError>(Claim {
                id: get(row, "id")?,
                epoch: number(row, "epoch")?,
            })
        });
        change.commit().await?;
        claim.transpose()
    }

    pub(super) async fn renew(&self, claim: &Claim) -> Outcome<bool> {
        let renew = sqlx::query(
            "UPDATE trainings SET lease_until = clock_timestamp() + interval '10 s'
             WHERE id = $1 AND epoch = $2 AND state = 'running' RETURNING cancel_requested",
        )
        .bind(&claim.id)
        .bind(signed(claim.epoch));
        let rows = self.database.fetch_all(renew).await?;
        let row = rows.first().ok_or(SharedTrainingsError::Fenced)?;
        get(row, "cancel_requested")
    }

    pub(super) async fn release(&self, claim: &Claim) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        let release = sqlx::query(
            "UPDATE trainings SET state = 'queued', replica = NULL, lease_until = NULL,
                 revision = $3
             WHERE id = $1 AND epoch = $2 AND state = 'running' RETURNING id",
        )
        .bind(&claim.id)
        .bind(signed(claim.epoch))
        .bind(change.revision);
        change
            .require(release, SharedTrainingsError::Fenced)
            .await?;
        change.commit().await
    }

    pub(super) async fn append(&self, claim: &Claim, events: &[Arc<Event>]) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        let select = sqlx::query(
            "SELECT state FROM trainings
             WHERE id = $1 AND epoch = $2 AND state IN ('running', 'ended') FOR UPDATE",
        )
        .bind(&claim.id)
        .bind(signed(claim.epoch));
        let row = change.require(select, SharedTrainingsError::Fenced).await?;
        let has_ended = get::<&str>(&row, "state")? == "ended";
        let ends = events
            .last()
            .is_some_and(|last| matches!(last.event, EventKind::Finished(_)));
        if has_ended {
            // By an earlier attempt of this claim, whose outcome was not known.
            return match ends {
                true => Ok(()),
                false => Err(SharedTrainingsError::Fenced),
            };
        }
        change
            .add_events(&claim.id, events.iter().map(AsRef::as_ref))
            .await?;
        if ends {
            change.end(&claim.id).await?;
        }
        change.commit().await
    }

    pub(super) async fn keep_only(&self, claim: &Claim, kept: &[u64]) -> Outcome<()> {
        let kept: Vec<i64> = kept.iter().copied().map(signed).collect();
        let delete = sqlx::query(
            "DELETE FROM training_events USING trainings
             WHERE training = id AND id = $1 AND epoch = $2 AND state = 'running'
                 AND sequence <> ALL ($3)",
        )
        .bind(&claim.id)
        .bind(signed(claim.epoch))
        .bind(kept);
        self.database.fetch_all(delete).await?;
        Ok(())
    }

    /// Points to a new checkpoint. Returns the key of the one that is not needed
    /// any more.
    pub(super) async fn move_pointer(
        &self,
        claim: &Claim,
        key: &str,
        checkpoint: &SavedCheckpoint<'_>,
    ) -> Outcome<Option<String>> {
        let mut change = Change::begin(&self.database).await?;
        let select = sqlx::query(
            "SELECT checkpoint, previous_checkpoint FROM trainings
             WHERE id = $1 AND epoch = $2 AND state = 'running' FOR UPDATE",
        )
        .bind(&claim.id)
        .bind(signed(claim.epoch));
        let row = change.require(select, SharedTrainingsError::Fenced).await?;
        let newest: Option<String> = get(&row, "checkpoint")?;
        let previous: Option<String> = get(&row, "previous_checkpoint")?;
        let (previous, obsolete) = match checkpoint.replaces {
            true => (previous, newest),
            false => (newest, previous),
        };
        let update = sqlx::query(
            "UPDATE trainings SET checkpoint = $2, checkpoint_step = $3,
                 previous_checkpoint = $4, revision = $5 WHERE id = $1",
        )
        .bind(&claim.id)
        .bind(key)
        .bind(signed(checkpoint.step))
        .bind(previous)
        .bind(change.revision);
        change.transaction.fetch_all(update).await?;
        change.commit().await?;
        Ok(obsolete)
    }

    /// Returns the keys of the newest checkpoint and of the previous one.
    pub(super) async fn checkpoints(&self, id: &str) -> Outcome<[Option<String>; 2]> {
        let select =
            sqlx::query("SELECT checkpoint, previous_checkpoint FROM trainings WHERE id = $1")
                .bind(id);
        let rows = self.database.fetch_all(select).await?;
        let row = rows.first().ok_or(SharedTrainingsError::NotFound)?;
        Ok([get(row, "checkpoint")?, get(row, "previous_checkpoint")?])
    }

    /// Forgets the checkpoints of a training that has ended.
    pub(super) async fn forget_checkpoints(&self, id: &str) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        let forget = sqlx::query(
            "UPDATE trainings SET checkpoint = NULL, checkpoint_step = NULL,
                 previous_checkpoint = NULL, revision = $2
             WHERE id = $1 AND state = 'ended'",
        )
        .bind(id)
        .bind(change.revision);
        change.transaction.fetch_all(forget).await?;
        change.commit().await
    }

    pub(super) async fn cancel(&self, id: &str, finished: &EventKind) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        match change.lock(id).await? {
            SharedState::Queued => {
                change.add_event(id, finished).await?;
                change.end(id).await?;
            }
            SharedState::Running => {
                let request = sqlx::query(
                    "UPDATE trainings SET cancel_requested = true, revision = $2 WHERE id = $1",
                )
                .bind(id)
                .bind(change.revision);
                change.transaction.fetch_all(request).await?;
            }
            SharedState::Ended => {}
            SharedState::Deleted => return Err(SharedTrainingsError::NotFound),
        }
        change.commit().await
    }

    pub(super) async fn resume(
        &self,
        id: &str,
        resumed: &EventKind,
        limits: QueueLimits<'_>,
    ) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        change.require_ended(id).await?;
        change.check_limits(limits).await?;
        let resume = sqlx::query(
            "UPDATE trainings SET state = 'queued', queued_at = clock_timestamp(),
                 cancel_requested = false, revision = $2 WHERE id = $1",
        )
        .bind(id)
        .bind(change.revision);
        change.transaction.fetch_all(resume).await?;
        change.add_event(id, resumed).await?;
        change.commit().await
    }

    pub(super) async fn delete(&self, id: &str) -> Outcome<()> {
        let mut change = Change::begin(&self.database).await?;
        change.require_ended(id).await?;
        let deletions = [
            sqlx::query("DELETE FROM training_events WHERE training = $1").bind(id),
            sqlx::query(
                "UPDATE trainings SET state = 'deleted', metadata = '', checkpoint = NULL,
                     checkpoint_step = NULL, previous_checkpoint = NULL, revision = $2,
                     changed_at = clock_timestamp() WHERE id = $1",
            )
            .bind(id)
            .bind(change.revision),
            // All replicas have seen these deletions long ago.
            sqlx::query(
                "DELETE FROM trainings WHERE state = 'deleted'
                     AND changed_at < clock_timestamp() - interval '1 day'",
            ),
        ];
        for deletion in deletions {
            change.transaction.fetch_all(deletion).await?;
        }
        change.commit().await
    }
}
