//! The rows of model names and versions.

use charlstm_repository::shared::{NewVersion, SharedChanges, SharedModelsError, SharedVersion};
use charlstm_repository::{ModelId, UsedName, VersionCopy};
use charlstm_store::session::Owner;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::database::{Database, DatabaseError, Transaction};

/// SQLSTATE of a row that would break a unique index.
const UNIQUE_VIOLATION: &str = "23505";

#[derive(Debug)]
pub(super) struct ModelRows {
    database: Database,
}

/// A version that has a row.
pub(super) enum KnownVersion {
    Reserved,
    /// With the SHA-256 of its file.
    Published([u8; 32]),
    Removed,
}

/// What the last step of a publication has found.
pub(super) enum Publication {
    Published,
    /// The training has published this version before.
    Before(u64),
}

impl ModelRows {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Reserves the next number of a name.
    pub(super) async fn reserve(
        &self,
        version: &NewVersion<'_>,
    ) -> Result<ModelId, SharedModelsError> {
        let reserved = sqlx::query(
            "WITH reserved AS (
                 INSERT INTO model_names AS known (name, last_version) VALUES ($1, 1)
                 ON CONFLICT (name) DO UPDATE SET last_version = known.last_version + 1
                 WHERE known.owner IS NULL OR known.owner = $2 OR $3
                 RETURNING last_version
             )
             INSERT INTO model_versions (name, version, state)
             SELECT $1, last_version, 'reserved' FROM reserved
             RETURNING version",
        )
        .bind(version.name)
        .bind(version.publisher.owner.to_string())
        .bind(version.publisher.is_admin);
        let rows = self.database.fetch_all(reserved).await?;
        match rows.first() {
            Some(row) => Ok(ModelId {
                name: version.name.to_owned(),
                version: number(row, "version")?,
            }),
            None => Err(self.other_owner(version.name).await?),
        }
    }

    async fn other_owner(&self, name: &str) -> Result<SharedModelsError, SharedModelsError> {
        let select = sqlx::query("SELECT owner FROM model_names WHERE name = $1").bind(name);
        let row = self.database.fetch_one(select).await?;
        Ok(SharedModelsError::OtherOwner(owner(&row)?))
    }

    /// Makes a reserved version visible, unless it is visible already.
    pub(super) async fn publish(
        &self,
        id: &ModelId,
        version: &NewVersion<'_>,
    ) -> Result<Publication, SharedModelsError> {
        match self.try_publish(id, version).await {
            Err(PublishError::TrainingHasPublished) => {
                let select =
                    sqlx::query("SELECT version FROM model_versions WHERE training_id = $1 AND state <> 'reserved'")
                        .bind(version.training_id);
                let row = self.database.fetch_one(select).await?;
                let earlier = number(&row, "version")?;
                Ok(match earlier == id.version {
                    // By an attempt whose outcome was not known.
                    true => Publication::Published,
                    false => Publication::Before(earlier),
                })
            }
            Err(PublishError::Other(error)) => Err(error),
            Ok(()) => Ok(Publication::Published),
        }
    }

    async fn try_publish(
        &self,
        id: &ModelId,
        version: &NewVersion<'_>,
    ) -> Result<(), PublishError> {
        let mut transaction = self.database.begin().await?;
        let revision = next_revision(&mut transaction).await?;
        let owned = sqlx::query(
            "UPDATE model_names SET owner = COALESCE(owner, $2)
             WHERE name = $1 AND (owner IS NULL OR owner = $2 OR $3) RETURNING name",
        )
        .bind(&id.name)
        .bind(version.publisher.owner.to_string())
        .bind(version.publisher.is_admin);
        if transaction.fetch_all(owned).await?.is_empty() {
            drop(transaction);
            return Err(PublishError::Other(self.other_owner(&id.name).await?));
        }
        let published = sqlx::query(
            "UPDATE model_versions
             SET state = 'published', revision = $3, sha256 = $4, bytes = $5, manifest = $6,
                 quantisation = $7, training_id = NULLIF($8, '')
             WHERE name = $1 AND version = $2 AND state = 'reserved' RETURNING version",
        )
        .bind(&id.name)
        .bind(signed(id.version))
        .bind(revision)
        .bind(version.digest.as_slice())
        .bind(signed(version.bytes))
        .bind(version.manifest)
        .bind(version.quantisation)
        .bind(version.training_id);
        if transaction.fetch_all(published).await?.is_empty() {
            drop(transaction);
            return Ok(self.check_published(id).await?);
        }
        Ok(transaction.commit().await?)
    }

    /// Checks that a version that is not reserved any more was published by an
    /// earlier attempt.
    async fn check_published(&self, id: &ModelId) -> Result<(), SharedModelsError> {
        let select =
            sqlx::query("SELECT state FROM model_versions WHERE name = $1 AND version = $2")
                .bind(&id.name)
                .bind(signed(id.version));
        let row = self.database.fetch_one(select).await?;
        let state: &str = row.try_get("state").map_err(DatabaseError::from)?;
        match state {
            "published" => Ok(()),
            _ => Err(SharedModelsError::Unavailable(format!(
                "the reservation of {id} has expired"
            ))),
        }
    }

    /// Returns the versions that have changed after a revision.
    pub(super) async fn changes(&self, revision: u64) -> Result<SharedChanges, SharedModelsError> {
        let select = sqlx::query(
            "SELECT name, version, state, revision, manifest, quantisation, owner
             FROM model_versions JOIN model_names USING (name)
             WHERE revision > $1 AND state <> 'reserved' ORDER BY revision",
        )
        .bind(signed(revision));
        let rows = self.database.fetch_all(select).await?;
        let mut changes = SharedChanges {
            revision,
            versions: Vec::with_capacity(rows.len()),
        };
        for row in &rows {
            changes.revision = number(row, "revision")?;
            changes.versions.push(version(row)?);
        }
        Ok(changes)
    }

    /// Marks a version as removed.
    pub(super) async fn remove(&self, id: &ModelId) -> Result<(), SharedModelsError> {
        let mut transaction = self.database.begin().await?;
        let revision = next_revision(&mut transaction).await?;
        let removed = sqlx::query(
            "UPDATE model_versions
             SET state = 'removed', revision = $3, manifest = NULL, quantisation = NULL
             WHERE name = $1 AND version = $2 AND state = 'published' RETURNING version",
        )
        .bind(&id.name)
        .bind(signed(id.version))
        .bind(revision);
        if transaction.fetch_all(removed).await?.is_empty() {
            return Err(SharedModelsError::NotFound);
        }
        Ok(transaction.commit().await?)
    }

    /// Stores what int8 costs a version, unless that is known.
    pub(super) async fn record_quantisation(
        &self,
        id: &ModelId,
        text: &str,
    ) -> Result<(), SharedModelsError> {
        let mut transaction = self.database.begin().await?;
        let revision = next_revision(&mut transaction).await?;
        let record = sqlx::query(
            "UPDATE model_versions SET quantisation = $3, revision = $4
             WHERE name = $1 AND version = $2 AND state = 'published'
                 AND quantisation IS DISTINCT FROM $3",
        )
        .bind(&id.name)
        .bind(signed(id.version))
        .bind(text)
        .bind(revision);
        transaction.fetch_all(record).await?;
        Ok(transaction.commit().await?)
    }

    /// Creates a name or raises its highest version number. Returns its owner.
    pub(super) async fn take_over_name(&self, used: &UsedName) -> Result<Owner, SharedModelsError> {
        let insert = sqlx::query(
            "INSERT INTO model_names AS known (name, owner, last_version) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE
             SET last_version = GREATEST(known.last_version, $3),
                 owner = COALESCE(known.owner, $2)
             RETURNING owner",
        )
        .bind(&used.name)
        .bind(used.owner.to_string())
        .bind(signed(used.last_version));
        owner(&self.database.fetch_one(insert).await?)
    }

    /// Returns what is known of a version.
    pub(super) async fn known(
        &self,
        id: &ModelId,
    ) -> Result<Option<KnownVersion>, SharedModelsError> {
        let select = sqlx::query(
            "SELECT state, sha256 FROM model_versions WHERE name = $1 AND version = $2",
        )
        .bind(&id.name)
        .bind(signed(id.version));
        let rows = self.database.fetch_all(select).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let state: &str = row.try_get("state").map_err(DatabaseError::from)?;
        Ok(Some(match state {
            "published" => {
                KnownVersion::Published(row.try_get("sha256").map_err(DatabaseError::from)?)
            }
            "removed" => KnownVersion::Removed,
            _ => KnownVersion::Reserved,
        }))
    }

    /// Adds a version that was copied. Returns false if there is one.
    pub(super) async fn insert_copy(
        &self,
        id: &ModelId,
        copy: &VersionCopy,
    ) -> Result<bool, SharedModelsError> {
        let mut transaction = self.database.begin().await?;
        let revision = next_revision(&mut transaction).await?;
        let insert = sqlx::query(
            "INSERT INTO model_versions (name, version, state, revision, sha256, bytes,
                 manifest, quantisation, training_id)
             VALUES ($1, $2, 'published', $3, $4, $5, $6, $7, NULLIF($8, ''))
             ON CONFLICT DO NOTHING RETURNING version",
        )
        .bind(&id.name)
        .bind(signed(id.version))
        .bind(revision)
        .bind(copy.digest.as_slice())
        .bind(signed(copy.bytes))
        .bind(&copy.manifest)
        .bind(&copy.quantisation)
        .bind(&copy.training_id);
        let is_new = !transaction.fetch_all(insert).await?.is_empty();
        transaction.commit().await?;
        Ok(is_new)
    }

    /// Returns the versions whose files nobody needs: removed ones, and
    /// publications that began a day ago and did not end.
    pub(super) async fn unneeded(&self) -> Result<Vec<ModelId>, SharedModelsError> {
        let select = sqlx::query(
            "UPDATE model_versions SET state = 'removed'
             WHERE has_files AND (state = 'removed' OR (state = 'reserved'
                 AND reserved_at < clock_timestamp() - interval '1 day'))
             RETURNING name, version",
        );
        let rows = self.database.fetch_all(select).await?;
        rows.iter().map(id).collect()
    }

    /// Records that the files of a version are gone.
    pub(super) async fn record_files_deleted(&self, id: &ModelId) -> Result<(), SharedModelsError> {
        let record = sqlx::query(
            "UPDATE model_versions SET has_files = false
             WHERE name = $1 AND version = $2 AND state <> 'published'",
        )
        .bind(&id.name)
        .bind(signed(id.version));
        self.database.fetch_all(record).await?;
        Ok(())
    }
}

/// Why a version could not be published.
enum PublishError {
    TrainingHasPublished,
    Other(SharedModelsError),
}

impl From<DatabaseError> for PublishError {
    fn from(error: DatabaseError) -> Self {
        let code = match &error {
            DatabaseError::Statement(sqlx::Error::Database(error)) => error.code(),
            _ => None,
        };
        match code.as_deref() {
            Some(UNIQUE_VIOLATION) => Self::TrainingHasPublished,
            _ => Self::Other(error.into()),
        }
    }
}

impl From<SharedModelsError> for PublishError {
    fn from(error: SharedModelsError) -> Self {
        Self::Other(error)
    }
}

/// Counts a change, and locks the counter until the transaction ends.
async fn next_revision(transaction: &mut Transaction) -> Result<i64, DatabaseError> {
    let count = sqlx::query("UPDATE model_revision SET revision = revision + 1 RETURNING revision");
    let rows = transaction.fetch_all(count).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(row.try_get("revision")?)
}

fn version(row: &PgRow) -> Result<SharedVersion, SharedModelsError> {
    let state: &str = row.try_get("state").map_err(DatabaseError::from)?;
    let manifest: Option<String> = row.try_get("manifest").map_err(DatabaseError::from)?;
    let quantisation = row.try_get("quantisation").map_err(DatabaseError::from)?;
    Ok(SharedVersion {
        id: id(row)?,
        owner: owner(row)?,
        texts: manifest
            .filter(|_| state == "published")
            .map(|manifest| (manifest, quantisation)),
    })
}

fn id(row: &PgRow) -> Result<ModelId, SharedModelsError> {
    Ok(ModelId {
        name: row.try_get("name").map_err(DatabaseError::from)?,
        version: number(row, "version")?,
    })
}

/// Returns the owner of a name; a version that is not published has none yet.
fn owner(row: &PgRow) -> Result<Owner, SharedModelsError> {
    let owner: Option<&str> = row.try_get("owner").map_err(DatabaseError::from)?;
    match owner {
        None => Ok(Owner::admin()),
        Some(owner) => {
            Owner::new(owner).map_err(|error| SharedModelsError::Unavailable(error.to_string()))
        }
    }
}

fn number(row: &PgRow, column: &str) -> Result<u64, SharedModelsError> {
    let value: i64 = row.try_get(column).map_err(DatabaseError::from)?;
    u64::try_from(value).map_err(|error| SharedModelsError::Unavailable(error.to_string()))
}

/// Numbers above the range of the column do not occur; if one did, it would
/// match no row.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
