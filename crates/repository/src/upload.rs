//! A file on its way into the repository. What becomes of it when it is
//! complete is decided in `mod.rs`.

use super::RepositoryError;
use super::storage::Staged;
use charlstm_model::model_file::{CheckpointError, MAX_FILE_BYTES};
use charlstm_model::torch_checkpoint;

/// Bytes from which the kind of a file is found out.
const FIRST_BYTES: usize = 4;

/// A file on its way into the repository. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    pub(super) staged: Staged,
    pub(super) bytes: u64,
    /// Its first bytes, as far as they are there.
    pub(super) first: Vec<u8>,
}

impl Upload {
    /// Appends bytes.
    ///
    /// # Errors
    /// `Io`, and `NotAModel` as soon as there are more bytes than any model
    /// has: nobody fills the disk.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_FILE_BYTES {
            return Err(RepositoryError::NotAModel(CheckpointError::Length {
                expected: MAX_FILE_BYTES,
                actual: self.bytes,
            }));
        }
        let missing = FIRST_BYTES.saturating_sub(self.first.len());
        self.first.extend(bytes.iter().take(missing));
        self.staged.append(bytes)
    }

    /// True where it begins as a checkpoint of the notebook does. A model file
    /// does not: it begins with a length, which is no such number.
    pub fn looks_like_notebook(&self) -> bool {
        torch_checkpoint::recognises(&self.first)
    }
}
