//! The data of a training that never changes, and its file.

use std::io;

use charlstm_model::tokens::Width;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::Publisher;
use charlstm_store::checksummed_json;
use serde::{Deserialize, Serialize};

use super::invalid;
use crate::events::Accepted;
use crate::spec::ResolvedSpec;

/// Its file in the folder of the training.
pub(super) const METADATA: &str = "job.json";

/// Version of the folder's layout, and the only one that is read.
pub(super) const FORMAT: u32 = 1;

/// The data of a training that never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobMetadata {
    pub(super) format: u32,
    /// Id of the training.
    pub id: String,
    /// Time at which it was accepted, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// Who started it; before there were principals, an administrator.
    #[serde(default = "Publisher::admin")]
    pub publisher: Publisher,
    /// What to train and how.
    pub spec: ResolvedSpec,
    /// The characters in the order of their token ids.
    pub(super) vocabulary: String,
    /// SHA-256 of the corpus, in hexadecimal.
    pub corpus_sha256: String,
    /// Number of characters in the corpus, after `skip_chars`.
    pub corpus_chars: usize,
    /// The most frequent character of the corpus.
    #[serde(default)]
    pub most_frequent: Option<char>,
    /// Number of those to train on; the rest is held out.
    pub training_chars: usize,
    /// SHA-256 of the file of token ids, in hexadecimal.
    pub(super) tokens_sha256: String,
    /// Width of the token ids in that file.
    #[serde(default = "first_width")]
    pub(super) tokens_width: Width,
}

/// The first development version always wrote two bytes.
fn first_width() -> Width {
    Width::Two
}

impl JobMetadata {
    /// Reads the content of the file.
    ///
    /// # Errors
    /// It is damaged, or has a format that this version does not read.
    pub(super) fn parse(text: &[u8]) -> io::Result<Self> {
        let metadata: Self =
            checksummed_json::from_slice(text).map_err(|error| invalid(error.to_string()))?;
        if metadata.format != FORMAT {
            let found = metadata.format;
            let text = format!("it has format {found}, and this server reads format {FORMAT}");
            return Err(invalid(text));
        }
        Ok(metadata)
    }

    /// Returns the first event of the training.
    pub(super) fn accepted(&self, vocabulary: &Vocabulary, device: String) -> Accepted {
        let spec = &self.spec;
        let batch_chars = spec.batch_size as usize * spec.sequence_length as usize;
        let steps_per_epoch = (self.training_chars / batch_chars.max(1)) as u64;
        Accepted {
            corpus_chars: self.corpus_chars as u64,
            vocabulary_size: u32::try_from(vocabulary.len()).unwrap_or(u32::MAX),
            steps_per_epoch,
            total_steps: steps_per_epoch * u64::from(spec.epochs),
            parameters: spec.architecture(vocabulary.len()).parameter_count() as u64,
            device,
        }
    }
}
