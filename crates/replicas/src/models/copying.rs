//! Copies the models of a data folder, once or again.

use charlstm_repository::{ModelId, UsedName, VersionCopy};
use charlstm_store::hex;
use sha2::{Digest, Sha256};

use super::rows::KnownVersion;
use super::{ReplicaModels, manifest_key, model_key};
use crate::copying::{Copied, CopyError};
use crate::object_store::ObjectStoreError;

impl ReplicaModels {
    /// Takes over a name, with its owner and its highest version number.
    ///
    /// # Errors
    /// `Conflict` if the name belongs to another principal here, `Unavailable`.
    pub async fn copy_name(&self, used: &UsedName) -> Result<(), CopyError> {
        let owner = self.rows.take_over_name(used).await?;
        if owner == used.owner {
            return Ok(());
        }
        Err(CopyError::Conflict(format!(
            "the name {} belongs to {owner} in the database, and to {} in the folder",
            used.name, used.owner
        )))
    }

    /// Copies a version under its own number, unless it was copied before.
    ///
    /// # Errors
    /// `Conflict` if there is another version of this number, `Unavailable`.
    pub async fn copy_version(
        &self,
        id: &ModelId,
        copy: &VersionCopy,
    ) -> Result<Copied, CopyError> {
        let conflict = |what: &str| {
            let digest = hex::encode(&copy.digest);
            CopyError::Conflict(format!(
                "{what} another {id} than that of the folder ({digest})"
            ))
        };
        match self.rows.known(id).await? {
            Some(KnownVersion::Removed) => return Ok(Copied::Before),
            Some(KnownVersion::Published(digest)) if digest == copy.digest => {
                return Ok(Copied::Before);
            }
            Some(KnownVersion::Published(_) | KnownVersion::Reserved) => {
                return Err(conflict("the database has"));
            }
            None => {}
        }
        let key = model_key(id);
        match self.objects.create_from_file(&key, &copy.file).await {
            Err(ObjectStoreError::Exists { .. }) => {
                let stored = self.objects.read(&key).await?;
                if <[u8; 32]>::from(Sha256::digest(&stored)) != copy.digest {
                    return Err(conflict("the object store has"));
                }
            }
            created => created?,
        }
        let manifest = copy.manifest.clone();
        match self.objects.create(&manifest_key(id), manifest).await {
            Ok(()) | Err(ObjectStoreError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match self.rows.insert_copy(id, copy).await? {
            true => Ok(Copied::Now),
            false => Err(conflict("the database has")),
        }
    }
}
