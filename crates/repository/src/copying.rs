//! Everything of a repository, for a copy of it to a place that replicas share.

use std::io;
use std::path::PathBuf;

use charlstm_model::model_file::Contents;
use charlstm_store::session::Owner;

use super::{ModelId, Quantisation, Repository, RepositoryError, manifest};

/// A name that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedName {
    /// The name.
    pub name: String,
    /// Its owner.
    pub owner: Owner,
    /// The highest version number that was ever used.
    pub last_version: u64,
}

/// A version, to be copied.
#[derive(Debug)]
pub struct VersionCopy {
    /// SHA-256 of its file.
    pub digest: [u8; 32],
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its manifest, as text.
    pub manifest: String,
    /// What int8 costs it, as text, if that is known.
    pub quantisation: Option<String>,
    /// The training that it comes from; empty if it was imported.
    pub training_id: String,
}

impl Repository {
    /// Returns every name that was ever used, in their order.
    ///
    /// # Errors
    /// `VersionsUnknown`.
    pub fn used_names(&self) -> Result<Vec<UsedName>, RepositoryError> {
        let names = self.index().names()?.into_iter();
        let used = names.map(|(name, owner, last_version)| UsedName {
            name,
            owner,
            last_version,
        });
        Ok(used.collect())
    }

    /// Reads a version to copy it, after checking every byte.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    pub fn copy_of(&self, id: &ModelId) -> Result<VersionCopy, RepositoryError> {
        let (file, description) = self.open_file(id)?;
        let path = self.shared.storage.model_path(id);
        let io = |error| RepositoryError::io(&path, error);
        let damaged = |reason: String| RepositoryError::Damaged {
            id: id.clone(),
            reason,
        };
        let contents = Contents::read_from(file, description.bytes, None)
            .map_err(|error| damaged(error.to_string()))?;
        if contents.sha256 != description.digest {
            return Err(damaged("its bytes are not those that were stored".into()));
        }
        let contents = Contents {
            metadata: description.metadata.clone(),
            ..contents
        };
        let text = |text: Result<Vec<u8>, serde_json::Error>| {
            let text = text.map_err(io::Error::from);
            text.and_then(|text| String::from_utf8(text).map_err(io::Error::other))
                .map_err(io)
        };
        let quantisation = description.quantisation.as_ref();
        Ok(VersionCopy {
            digest: contents.sha256,
            bytes: contents.bytes,
            manifest: text(manifest::to_text(&contents))?,
            quantisation: quantisation
                .map(Quantisation::to_text)
                .map(text)
                .transpose()?,
            training_id: contents.metadata.training_id,
            file: path.clone(),
        })
    }
}
