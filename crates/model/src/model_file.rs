//! The model file: a safetensors file that has the tensors under PyTorch's
//! names, and vocabulary, architecture and training metadata in its header. The
//! folders of model files are in `charlstm-repository`.
//!
//! Files are untrusted: everything is checked before memory of its size is
//! allocated.

pub(crate) mod foreign;
mod header;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use self::header::Header;
pub(super) use self::header::check_sizes;
use super::architecture::Architecture;
use super::parameters::Parameters;
use super::torch_checkpoint::TorchCheckpointError;
use super::vocabulary::Vocabulary;

/// Maximum width of a layer. A limit lets a bad file be rejected by its header
/// alone; with [`MAX_LAYERS`], it allows networks of a billion parameters.
pub const MAX_HIDDEN_SIZE: usize = 4096;
/// Maximum number of LSTM layers.
pub const MAX_LAYERS: usize = 8;
/// Maximum number of distinct characters: token ids have two bytes in a corpus
/// file.
pub const MAX_VOCABULARY: usize = 65_536;

/// Maximum size of a model file in bytes, a little more than any model takes:
/// the first and the last matrix, and two square matrices per layer, all with
/// the factor of four of the gates.
pub const MAX_FILE_BYTES: u64 = 4
    * (4 * MAX_HIDDEN_SIZE as u64)
    * (2 * MAX_VOCABULARY as u64 + 2 * (MAX_LAYERS * MAX_HIDDEN_SIZE) as u64);

/// Number of values that are read or written at a time.
const CHUNK_VALUES: usize = 64 * 1024;

/// Maximum number of characters of a text from a file in an error.
const MAX_SHOWN_CHARS: usize = 100;

/// Describes how a model was made. Unknown values are zero, empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMetadata {
    /// Preset of the training.
    pub recipe: String,
    /// Epochs trained.
    pub epochs: u32,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Characters of the corpus.
    pub corpus_chars: u64,
    /// SHA-256 of the corpus in UTF-8, in hexadecimal.
    pub corpus_sha256: String,
    /// The most frequent character of the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_frequent: Option<char>,
    /// Id of the training; empty for an imported model.
    pub training_id: String,
    /// Mean training loss of the last epoch, in nats per character.
    pub train_loss: Option<f64>,
    /// Loss on the held-out set, in nats per character.
    pub validation_loss: Option<f64>,
    /// Type of the inputs of all products of the training; empty for a model of
    /// version 0.1 or an imported one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub precision: String,
    /// Time of creation, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
}

/// The content of a model file.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    /// The weights.
    pub parameters: Parameters,
    /// The characters in the order of their token ids.
    pub vocabulary: Vocabulary,
    /// How the model was made.
    pub metadata: ModelMetadata,
}

/// The content of a model file without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The shape of the network.
    pub architecture: Architecture,
    /// The characters in the order of their token ids.
    pub vocabulary: Vocabulary,
    /// How the model was made.
    pub metadata: ModelMetadata,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
    /// Length of the file in bytes.
    pub bytes: u64,
    /// False for a bare `state_dict`: everything but the sizes came from
    /// elsewhere.
    pub has_metadata: bool,
}

/// A file is not a valid model, or could not be read or written.
#[derive(Debug, Error)]
pub enum ModelFileError {
    /// The container format is invalid.
    #[error("not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The file is truncated, or something was appended to it.
    #[error("the file has {actual} bytes, but its header requires {expected}")]
    Length {
        /// Length that the header requires, in bytes.
        expected: u64,
        /// Length of the file, in bytes.
        actual: u64,
    },
    /// A required entry of the metadata is missing.
    #[error("its metadata has no {0}")]
    MetadataMissing(&'static str),
    /// An entry of the metadata is invalid.
    #[error("its metadata has an invalid {key}: {reason}")]
    Metadata {
        /// Key of the entry.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A size is outside the limits of this program.
    #[error("{what} is {actual}; it must be from 1 to {limit}")]
    Size {
        /// Name of the size.
        what: &'static str,
        /// Maximum.
        limit: usize,
        /// The size in the file.
        actual: usize,
    },
    /// A tensor of the network is missing.
    #[error("tensor {0} is missing")]
    TensorMissing(String),
    /// A tensor does not belong to the network.
    #[error("tensor {0:?} does not belong to this network")]
    TensorUnknown(String),
    /// A tensor has another shape.
    #[error("tensor {name} has the shape {actual:?}; it must be {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Required shape.
        expected: Vec<usize>,
        /// Shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor has another element type.
    #[error("tensor {name} has elements of type {actual}; they must be F32")]
    Type {
        /// Name of the tensor.
        name: String,
        /// Element type in the file.
        actual: String,
    },
    /// A weight is infinite or not a number.
    #[error("tensor {name} has a value that is not finite, at index {index}")]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// Index within the tensor, row by row.
        index: usize,
    },
    /// A file written by `torch.save` is not a valid checkpoint.
    #[error("invalid PyTorch checkpoint: {0}")]
    TorchCheckpoint(#[source] TorchCheckpointError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ModelFileError {
    /// Returns true if the file can be read only together with a vocabulary, or
    /// with another one: it contains none, or none that fits its network.
    pub fn needs_vocabulary(&self) -> bool {
        match self {
            Self::MetadataMissing(key) => *key == header::VOCABULARY_KEY,
            Self::TorchCheckpoint(error) => matches!(
                error,
                TorchCheckpointError::NoVocabulary
                    | TorchCheckpointError::Characters { .. }
                    | TorchCheckpointError::VocabularySize { .. }
            ),
            _ => false,
        }
    }
}

impl ModelFile {
    /// Writes the file. The same model always gives the same bytes.
    ///
    /// # Errors
    /// The writer failed, or vocabulary, sizes or values are invalid.
    ///
    /// # Panics
    /// If the number of values does not match the architecture.
    pub fn write_to(&self, mut writer: impl Write) -> Result<(), ModelFileError> {
        let header = Header::of(self)?;
        for tensor in header.tensors() {
            check_finite(
                &tensor.name,
                0,
                &self.parameters.values[tensor.range.clone()],
            )?;
        }
        writer.write_all(&header.to_bytes())?;
        let mut bytes = Vec::with_capacity(4 * CHUNK_VALUES);
        for chunk in self.parameters.values.chunks(CHUNK_VALUES) {
            bytes.clear();
            for value in chunk {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            writer.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Returns the file as bytes.
    ///
    /// # Errors
    /// As [`Self::write_to`], except I/O errors.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelFileError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Any [`ModelFileError`].
    pub fn read(path: &Path) -> Result<Self, ModelFileError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Self::read_from(file, length, None).map(|(model, _)| model)
    }

    /// Reads and checks a file in memory.
    ///
    /// # Errors
    /// Any [`ModelFileError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelFileError> {
        Self::read_from(bytes, bytes.len() as u64, None).map(|(model, _)| model)
    }

    /// Reads and checks a file of `length` bytes; the returned [`Contents`] have
    /// its SHA-256. `vocabulary` is used for a bare `state_dict`, which has no
    /// metadata.
    ///
    /// # Errors
    /// Any [`ModelFileError`].
    pub fn read_from(
        reader: impl Read,
        length: u64,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<(Self, Contents), ModelFileError> {
        let mut values = Vec::new();
        let contents = read(reader, length, vocabulary, |header, chunk| {
            if values.is_empty() {
                // The length of the file has been checked: this much follows.
                values.resize(header.architecture.parameter_count(), 0.0);
            }
            values[chunk.start..chunk.start + chunk.values.len()].copy_from_slice(chunk.values);
        })?;
        let model = Self {
            parameters: Parameters {
                architecture: contents.architecture,
                values,
            },
            vocabulary: contents.vocabulary.clone(),
            metadata: contents.metadata.clone(),
        };
        Ok((model, contents))
    }
}

impl Contents {
    /// Reads and checks a whole file as [`ModelFile::read_from`] does, but with
    /// little memory: the weights are not kept.
    ///
    /// # Errors
    /// Any [`ModelFileError`].
    pub fn read_from(
        reader: impl Read,
        length: u64,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self, ModelFileError> {
        read(reader, length, vocabulary, |_, _| {})
    }
}

/// Some values of the file.
struct ValueChunk<'a> {
    /// Index of the first one within `Parameters::values`.
    start: usize,
    values: &'a [f32],
}

/// Reads and checks a file of `length` bytes, and passes its values to `take`.
fn read(
    reader: impl Read,
    length: u64,
    vocabulary: Option<&Vocabulary>,
    mut take: impl FnMut(&Header, ValueChunk<'_>),
) -> Result<Contents, ModelFileError> {
    let mut reader = DigestingReader {
        inner: reader,
        digest: Sha256::new(),
    };
    let header = Header::read_from(&mut reader, length, vocabulary)?;
    let mut bytes = vec![0; 4 * CHUNK_VALUES];
    let mut values = Vec::with_capacity(CHUNK_VALUES);
    for tensor in header.tensors() {
        let mut start = tensor.range.start;
        while start < tensor.range.end {
            let count = (tensor.range.end - start).min(CHUNK_VALUES);
            let bytes = &mut bytes[..4 * count];
            reader.read_exact(bytes)?;
            values.clear();
            values.extend(
                bytes.chunks_exact(4).map(|bytes| {
                    f32::from_le_bytes(bytes.try_into().expect("chunks of four bytes"))
                }),
            );
            check_finite(&tensor.name, start - tensor.range.start, &values)?;
            take(
                &header,
                ValueChunk {
                    start,
                    values: &values,
                },
            );
            start += count;
        }
    }
    Ok(Contents {
        sha256: reader.digest.finalize().into(),
        bytes: length,
        has_metadata: header.has_metadata,
        architecture: header.architecture,
        vocabulary: header.vocabulary,
        metadata: header.metadata,
    })
}

/// Rejects values that are not finite. `offset` is the index of the first value
/// within the tensor.
pub(super) fn check_finite(
    name: &str,
    offset: usize,
    values: &[f32],
) -> Result<(), ModelFileError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(ModelFileError::NotFinite {
            name: name.to_owned(),
            index: offset + index,
        }),
    }
}

/// Returns the error for a tensor that does not belong to the network.
pub(super) fn unknown_tensor(name: &str) -> ModelFileError {
    ModelFileError::TensorUnknown(shortened(name))
}

/// Returns a text from a file as an error shows it: its beginning, if it is
/// long.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Computes the SHA-256 of everything that is read through it.
struct DigestingReader<R> {
    inner: R,
    digest: Sha256,
}

impl<R: Read> Read for DigestingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
