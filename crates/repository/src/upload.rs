//! A file that is being uploaded to the repository. It becomes a version in
//! [`super::Repository::import`].

use charlstm_model::model_file::{MAX_FILE_BYTES, ModelFileError};
use charlstm_model::torch_checkpoint;

use super::RepositoryError;
use super::storage::Staged;

/// Bytes by which the kind of a file is recognised.
const FIRST_BYTES: usize = 4;

/// A file that is being uploaded. If it is dropped, nothing is left of it.
#[derive(Debug)]
pub struct Upload {
    pub(super) staged: Staged,
    pub(super) bytes: u64,
    /// The first bytes, as far as they have arrived.
    pub(super) first: Vec<u8>,
}

impl Upload {
    /// Appends bytes. Blocks on the disk.
    ///
    /// # Errors
    /// `Io`, and `NotAModel` as soon as there are more bytes than any model
    /// has, so that an upload cannot fill the disk without limit.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_FILE_BYTES {
            return Err(RepositoryError::NotAModel(ModelFileError::Length {
                expected: MAX_FILE_BYTES,
                actual: self.bytes,
            }));
        }
        let missing = FIRST_BYTES.saturating_sub(self.first.len());
        self.first.extend(bytes.iter().take(missing));
        self.staged.append(bytes)
    }

    /// Returns true if it begins as a PyTorch checkpoint does. A model file
    /// begins with a length that no such checkpoint begins with.
    pub fn is_torch_checkpoint(&self) -> bool {
        torch_checkpoint::recognises(&self.first)
    }
}
