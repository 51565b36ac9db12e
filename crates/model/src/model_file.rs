//! The model file: one safetensors file with the tensors under PyTorch's
//! names, and vocabulary, architecture and training facts in its metadata.
//! Where such files are kept is the repository's business.
//!
//! What is read may come from anybody: everything is checked before anything
//! of that size is allocated.

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

/// Largest width of a layer.
pub const MAX_HIDDEN_SIZE: usize = 4096;
/// Most layers.
pub const MAX_LAYERS: usize = 8;
/// Most distinct characters.
pub const MAX_VOCABULARY: usize = 65_536;

/// No model has more bytes: those of its first and last matrix, and of two
/// square ones a layer, each with the gates' factor of four.
pub const MAX_FILE_BYTES: u64 = 4
    * (4 * MAX_HIDDEN_SIZE as u64)
    * (2 * MAX_VOCABULARY as u64 + 2 * (MAX_LAYERS * MAX_HIDDEN_SIZE) as u64);

/// Floats that are read or written at a time.
const CHUNK_FLOATS: usize = 64 * 1024;

/// How a model came to be. What is not known is zero, empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMetadata {
    /// Recipe of the training.
    pub recipe: String,
    /// Epochs that were trained.
    pub epochs: u32,
    /// Optimizer steps that were taken.
    pub steps: u64,
    /// Characters of the corpus.
    pub corpus_chars: u64,
    /// SHA-256 of the corpus, UTF-8, in hexadecimal.
    pub corpus_sha256: String,
    /// The training; empty for an imported model.
    pub training_id: String,
    /// Mean training loss of the last epoch, in nats per character.
    pub train_loss: Option<f64>,
    /// Loss on the held-out text, in nats per character.
    pub validation_loss: Option<f64>,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
}

/// Everything that a model file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    /// The weights.
    pub parameters: Parameters,
    /// The characters in the order of their numbers.
    pub vocabulary: Vocabulary,
    /// How it came to be.
    pub facts: ModelMetadata,
}

/// What a model file says about itself, without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The shape of the network.
    pub architecture: Architecture,
    /// The characters in the order of their numbers.
    pub vocabulary: Vocabulary,
    /// How it came to be.
    pub facts: ModelMetadata,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
    /// Length of the file in bytes.
    pub bytes: u64,
    /// False for a bare `state_dict`: all but the sizes came from elsewhere.
    pub has_metadata: bool,
}

/// A file is not a model, or could not be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The container is broken.
    #[error("not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The file is cut short, or something was added to it.
    #[error("the file has {actual} bytes where its header says {expected}")]
    Length {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// Something that a model needs is not in the metadata.
    #[error("its metadata has no {0}")]
    MetadataMissing(&'static str),
    /// Something in the metadata is not what it should be.
    #[error("its metadata is wrong at {key}: {reason}")]
    Metadata {
        /// Key in the metadata.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A size is beyond what this program handles.
    #[error("{what} is {actual}; it must be from 1 to {limit}")]
    Size {
        /// Which size.
        what: &'static str,
        /// Most that is allowed.
        limit: usize,
        /// What the file says.
        actual: usize,
    },
    /// A tensor of the network is missing.
    #[error("tensor {0} is missing")]
    TensorMissing(String),
    /// A tensor does not belong to the network.
    #[error("tensor {0:?} does not belong to this network")]
    TensorUnknown(String),
    /// A tensor has another shape.
    #[error("tensor {name} has the shape {actual:?}; {expected:?} is needed")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape that it should have.
        expected: Vec<usize>,
        /// Shape that it has.
        actual: Vec<usize>,
    },
    /// A tensor has another type of numbers.
    #[error("tensor {name} holds {actual}; F32 is needed")]
    Type {
        /// Name of the tensor.
        name: String,
        /// Type of its numbers.
        actual: String,
    },
    /// A weight is infinite or not a number.
    #[error("tensor {name} holds a number that is not finite, at index {index}")]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// Index within the tensor, row by row.
        index: usize,
    },
    /// A checkpoint of the notebook is not one.
    #[error("as a checkpoint of the notebook: {0}")]
    Notebook(#[source] TorchCheckpointError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ModelFile {
    /// Writes the file. The same model gives the same bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] from the writer, and what [`Self::read_from`]
    /// would refuse about vocabulary, sizes or finiteness.
    pub fn write_to(&self, mut writer: impl Write) -> Result<(), CheckpointError> {
        let header = Header::of(self)?;
        for tensor in header.tensors() {
            check_finite(
                &tensor.name,
                0,
                &self.parameters.values[tensor.range.clone()],
            )?;
        }
        writer.write_all(&header.to_bytes())?;
        let mut bytes = Vec::with_capacity(4 * CHUNK_FLOATS);
        for chunk in self.parameters.values.chunks(CHUNK_FLOATS) {
            bytes.clear();
            for value in chunk {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            writer.write_all(&bytes)?;
        }
        Ok(())
    }

    /// The file as bytes.
    ///
    /// # Errors
    /// As [`Self::write_to`], without IO.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Any [`CheckpointError`].
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Self::read_from(file, length, None).map(|(model, _)| model)
    }

    /// Reads and checks a file in memory.
    ///
    /// # Errors
    /// Any [`CheckpointError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        Self::read_from(bytes, bytes.len() as u64, None).map(|(model, _)| model)
    }

    /// Reads `length` bytes, checks them, and returns the SHA-256 of what was
    /// read. `vocabulary` is that of a bare `state_dict`, without metadata.
    ///
    /// # Errors
    /// Any [`CheckpointError`].
    pub fn read_from(
        reader: impl Read,
        length: u64,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<(Self, Contents), CheckpointError> {
        let mut values = Vec::new();
        let contents = read(reader, length, vocabulary, |header, chunk| {
            if values.is_empty() {
                // The length of the file was found right: as much is there.
                values.resize(header.architecture.parameter_count(), 0.0);
            }
            values[chunk.start..chunk.start + chunk.floats.len()].copy_from_slice(chunk.floats);
        })?;
        let model = Self {
            parameters: Parameters {
                architecture: contents.architecture,
                values,
            },
            vocabulary: contents.vocabulary.clone(),
            facts: contents.facts.clone(),
        };
        Ok((model, contents))
    }
}

impl Contents {
    /// Reads and checks a whole file as [`ModelFile::read_from`] does, in
    /// little memory, and keeps no weights.
    ///
    /// # Errors
    /// Any [`CheckpointError`].
    pub fn read_from(
        reader: impl Read,
        length: u64,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self, CheckpointError> {
        read(reader, length, vocabulary, |_, _| {})
    }
}

/// Some floats of the file, and where in the flat row they belong.
struct Chunk<'a> {
    start: usize,
    floats: &'a [f32],
}

fn read(
    reader: impl Read,
    length: u64,
    vocabulary: Option<&Vocabulary>,
    mut take: impl FnMut(&Header, Chunk<'_>),
) -> Result<Contents, CheckpointError> {
    let mut reader = Digesting {
        inner: reader,
        digest: Sha256::new(),
    };
    let header = Header::read_from(&mut reader, length, vocabulary)?;
    let mut bytes = vec![0; 4 * CHUNK_FLOATS];
    let mut floats = Vec::with_capacity(CHUNK_FLOATS);
    for tensor in header.tensors() {
        let mut start = tensor.range.start;
        while start < tensor.range.end {
            let count = (tensor.range.end - start).min(CHUNK_FLOATS);
            let bytes = &mut bytes[..4 * count];
            reader.read_exact(bytes)?;
            floats.clear();
            floats.extend(
                bytes
                    .chunks_exact(4)
                    .map(|four| f32::from_le_bytes(four.try_into().expect("chunks of four bytes"))),
            );
            check_finite(&tensor.name, start - tensor.range.start, &floats)?;
            take(
                &header,
                Chunk {
                    start,
                    floats: &floats,
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
        facts: header.facts,
    })
}

/// Refuses the first number that is not finite; `offset` is the index of the
/// first in the tensor.
pub(super) fn check_finite(
    name: &str,
    offset: usize,
    floats: &[f32],
) -> Result<(), CheckpointError> {
    match floats.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(CheckpointError::NotFinite {
            name: name.to_owned(),
            index: offset + index,
        }),
    }
}

/// Takes the digest of all that is read through it.
struct Digesting<R> {
    inner: R,
    digest: Sha256,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
