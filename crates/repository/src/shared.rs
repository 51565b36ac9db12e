//! Versions that several replicas share: what the repository needs of the
//! database and the object store that hold them.

use std::fmt;
use std::io;
use std::path::Path;

use charlstm_store::session::Owner;
use thiserror::Error;

use super::{ModelId, Publisher};

/// The authoritative store of versions that several replicas share. All methods
/// block on the network.
pub trait SharedModels: fmt::Debug + Send + Sync {
    /// Returns every version that has changed after `revision`, and the
    /// revision that they lead to. Revision 0 is before every change.
    ///
    /// # Errors
    /// `Unavailable`.
    fn changes(&self, revision: u64) -> Result<SharedChanges, SharedModelsError>;

    /// Stores a checked file as the next version of its name. Nobody sees it
    /// before it is complete.
    ///
    /// # Errors
    /// `OtherOwner`, `PublishedBefore`, `Unavailable`, `Local`. Nobody sees
    /// anything of it then.
    fn publish(&self, version: &NewVersion<'_>) -> Result<ModelId, SharedModelsError>;

    /// Writes the file of a version to `path`.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Local`; then the file may be incomplete.
    fn fetch(&self, id: &ModelId, path: &Path) -> Result<(), SharedModelsError>;

    /// Removes a version for all replicas. Its number is never used again.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    fn remove(&self, id: &ModelId) -> Result<(), SharedModelsError>;

    /// Stores what int8 costs a version, unless that is stored already.
    ///
    /// # Errors
    /// `Unavailable`.
    fn record_quantisation(&self, id: &ModelId, text: &str) -> Result<(), SharedModelsError>;
}

/// A checked file that is to become a version.
#[derive(Debug)]
pub struct NewVersion<'a> {
    /// Who publishes it.
    pub publisher: &'a Publisher,
    /// The name.
    pub name: &'a str,
    /// The model file.
    pub file: &'a Path,
    /// SHA-256 of the file.
    pub digest: [u8; 32],
    /// Its length in bytes.
    pub bytes: u64,
    /// Its manifest, as text.
    pub manifest: &'a str,
    /// What int8 costs it, as text, if that is known.
    pub quantisation: Option<&'a str>,
    /// The training that it comes from; empty if it was imported. A training
    /// publishes at most one version.
    pub training_id: &'a str,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct SharedChanges {
    /// The revision now.
    pub revision: u64,
    /// The versions that have changed.
    pub versions: Vec<SharedVersion>,
}

/// A version as it is now.
#[derive(Debug)]
pub struct SharedVersion {
    /// Name and version.
    pub id: ModelId,
    /// Owner of the name.
    pub owner: Owner,
    /// Manifest and, if it is known, what int8 costs; `None` if the version was
    /// removed.
    pub texts: Option<(String, Option<String>)>,
}

/// The shared versions cannot be read or changed.
#[derive(Debug, Error)]
pub enum SharedModelsError {
    /// The database or the object store is not available; the text says which
    /// and why, for the log.
    #[error("{0}")]
    Unavailable(String),
    /// There is no such version.
    #[error("there is no such version")]
    NotFound,
    /// The name belongs to this principal.
    #[error("the name belongs to the principal {0}")]
    OtherOwner(Owner),
    /// The training has published this version already.
    #[error("the training has published version {0}")]
    PublishedBefore(u64),
    /// A file of this machine could not be read or written.
    #[error("{0}")]
    Local(io::Error),
}
