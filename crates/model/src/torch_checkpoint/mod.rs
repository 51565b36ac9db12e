//! Reads checkpoints of the notebook's network that were saved with
//! `torch.save`: a dict of `n_hidden`, `n_layers`, `state_dict` and usually
//! `tokens`, its characters; a `state_dict` alone; or a dict of a training
//! program that contains one somewhere, with other names before those of the
//! tensors. Tensors that the network does not have are ignored.
//!
//! The files are untrusted: no code in them is executed, and everything is
//! checked before memory of its size is allocated.

mod archive;
mod characters;
mod network;
mod pickle;

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use self::archive::StorageRanges;
use self::characters::saved_vocabulary;
use self::network::Network;
use self::pickle::{ElementType, Node, Pickle, PickledTensor};
use super::architecture::Architecture;
use super::model_file::{self, ModelFile, ModelFileError, ModelMetadata};
use super::parameters::{Parameters, layout};
use super::vocabulary::Vocabulary;
use super::vocabulary_extension::extend;

/// Bytes of elements that are read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// A file is not a checkpoint of the notebook.
#[derive(Debug, Error)]
pub enum TorchCheckpointError {
    /// It is not what `torch.save` writes, or it is truncated.
    #[error("{0}")]
    Invalid(&'static str),
    /// The zip archive is invalid.
    #[error("its zip archive is invalid or compressed: {0}")]
    Zip(String),
    /// It refers to code.
    #[error(
        "its pickle refers to {0:?}, and code in a file is never executed; save it again as \
         torch.save({{'n_hidden': ..., 'n_layers': ..., 'state_dict': net.state_dict()}}, file)"
    )]
    UnsupportedName(String),
    /// It refers to code, or is not a pickle.
    #[error("its pickle has the instruction {0:#04x}, which no state_dict needs")]
    Instruction(u8),
    /// It was saved on a big-endian computer.
    #[error("its values are big-endian; save it on a little-endian computer")]
    BigEndian,
    /// There are no tensors.
    #[error("it has no state_dict; {content}")]
    NoStateDict {
        /// What it has instead.
        content: String,
    },
    /// There is no recurrent layer.
    #[error("it has no LSTM; its tensors are {tensors}")]
    NoLstm {
        /// Names of tensors that it has.
        tensors: String,
    },
    /// There is no linear layer after the LSTM.
    #[error("it has no output layer (fc.weight); its tensors are {tensors}")]
    NoOutputLayer {
        /// Names of tensors that it has.
        tensors: String,
    },
    /// The network is not that of the notebook.
    #[error(
        "its network has {0}; only that of the notebook can be imported: an LSTM and a linear layer"
    )]
    OtherNetwork(String),
    /// An entry is not what the notebook writes.
    #[error("its entry {0} has the wrong type")]
    Entry(&'static str),
    /// The characters are not understood.
    #[error("its entry {name} {reason}; give its characters with the file")]
    Characters {
        /// The entry.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry contradicts the shapes of the tensors.
    #[error("its {key} is {actual}, but its tensors have shapes for {expected}")]
    Contradiction {
        /// The entry.
        key: &'static str,
        /// The value of the entry.
        actual: i128,
        /// The value that the shapes imply.
        expected: usize,
    },
    /// The vocabulary is neither in the file nor given.
    #[error("it has no vocabulary (tokens), and none was given with it")]
    NoVocabulary,
    /// The given vocabulary is not that of the file.
    #[error("the given vocabulary has other characters than the file's own (tokens)")]
    OtherVocabulary,
    /// The vocabulary does not fit the network.
    #[error("the vocabulary has {given} distinct characters, but the network has {expected}")]
    VocabularySize {
        /// Distinct characters of the vocabulary.
        given: usize,
        /// Characters of the network.
        expected: usize,
    },
    /// A tensor cannot be read.
    #[error("tensor {name} {reason}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Reading failed.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for TorchCheckpointError {
    /// Takes errors that do not come from the operating system for defects of
    /// the file.
    fn from(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::Io(error);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Invalid("it is truncated"),
            _ => Self::Zip(error.to_string()),
        }
    }
}

impl From<TorchCheckpointError> for ModelFileError {
    fn from(error: TorchCheckpointError) -> Self {
        match error {
            TorchCheckpointError::Io(error) => Self::Io(error),
            error => Self::TorchCheckpoint(error),
        }
    }
}

/// Reads and checks a checkpoint.
///
/// If the file has no `tokens`, `vocabulary` is needed, in the order of the
/// network's token ids. If it has, both must have the same characters, and the
/// order in the file counts. The returned model has its characters sorted by
/// code point and empty metadata. Takes twice the memory of the weights.
///
/// # Errors
/// [`ModelFileError::TorchCheckpoint`], or an error about sizes, tensors or
/// values as for a model file.
pub fn read(
    mut reader: impl Read + Seek,
    vocabulary: Option<&Vocabulary>,
) -> Result<ModelFile, ModelFileError> {
    let (pickle, storages) = archive::open(&mut reader)?;
    let network = Network::find(&pickle)?;
    let architecture = network.architecture();
    model_file::check_sizes(&architecture)?;
    check_entry(&pickle, "n_hidden", architecture.hidden_size)?;
    check_entry(&pickle, "n_layers", architecture.num_layers)?;
    let vocabulary = match (saved_vocabulary(&pickle, &network.around), vocabulary) {
        (Ok(Some(own)), Some(given)) if alphabet(&own) != alphabet(given) => {
            return Err(TorchCheckpointError::OtherVocabulary.into());
        }
        (Ok(Some(own)), _) => own,
        (Ok(None) | Err(_), Some(given)) => given.clone(),
        (Ok(None), None) => return Err(TorchCheckpointError::NoVocabulary.into()),
        (Err(error), None) => return Err(error.into()),
    };
    // A character that occurs twice has only one token id.
    let distinct = alphabet(&vocabulary).len();
    if distinct != vocabulary.len() || distinct != architecture.vocabulary_size {
        return Err(TorchCheckpointError::VocabularySize {
            given: distinct,
            expected: architecture.vocabulary_size,
        }
        .into());
    }
    let tensors = find_tensors(&network, &architecture)?;
    let keys = tensors.iter().map(|(_, tensor)| tensor.storage.key.clone());
    let ranges = storages.locate(keys)?;
    let mut starts = Vec::with_capacity(tensors.len());
    for (name, tensor) in &tensors {
        let start = start_of(&ranges, tensor).map_err(|reason| TorchCheckpointError::Tensor {
            name: name.clone(),
            reason,
        })?;
        starts.push(start);
    }
    // Allocated only now: the file is large enough for every tensor.
    let mut parameters = Parameters::zeros(architecture);
    for (((name, tensor), start), view) in tensors.iter().zip(starts).zip(layout(&architecture)) {
        let target = &mut parameters.values[view.range];
        read_values(&mut reader, start, tensor.storage.element_type, target)?;
        model_file::check_finite(name, 0, target)?;
    }
    Ok(sorted(ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata::default(),
    }))
}

/// Returns whether a file with these first bytes, four or more, was written by
/// `torch.save`.
pub fn recognises(first: &[u8]) -> bool {
    first.starts_with(b"PK\x03\x04") || first.starts_with(&[0x80, 2, 0x8a, 10])
}

/// Returns the same network with its characters sorted by code point, as every
/// stored model has them.
pub fn sorted(model: ModelFile) -> ModelFile {
    let sorted = alphabet(&model.vocabulary);
    if sorted == model.vocabulary {
        return model;
    }
    let target = Parameters::zeros(model.parameters.architecture);
    ModelFile {
        parameters: extend(&model.parameters, &model.vocabulary, target, &sorted)
            .expect("both vocabularies have the same characters"),
        vocabulary: sorted,
        metadata: model.metadata,
    }
}

/// Returns the distinct characters of a vocabulary, sorted by code point.
fn alphabet(vocabulary: &Vocabulary) -> Vocabulary {
    Vocabulary::of(vocabulary.characters().iter().copied())
}

/// Converts a shape. Sizes that do not fit become the largest; no limit allows
/// them.
fn sizes(shape: &[u64]) -> Vec<usize> {
    let size = |&size| usize::try_from(size).unwrap_or(usize::MAX);
    shape.iter().map(size).collect()
}

/// Checks an entry of the checkpoint: it may be absent, but not wrong.
fn check_entry(
    pickle: &Pickle,
    key: &'static str,
    expected: usize,
) -> Result<(), TorchCheckpointError> {
    match pickle.entry(pickle.root(), key) {
        None => Ok(()),
        Some(&Node::Int(actual)) if actual == expected as i128 => Ok(()),
        Some(&Node::Int(actual)) => Err(TorchCheckpointError::Contradiction {
            key,
            actual,
            expected,
        }),
        Some(_) => Err(TorchCheckpointError::Entry(key)),
    }
}

/// Returns the tensors of the network in the order of the layout, each with its
/// name in the file; their shapes are those of the network and their elements
/// contiguous numbers.
fn find_tensors<'a>(
    network: &Network<'a>,
    architecture: &Architecture,
) -> Result<Vec<(String, &'a PickledTensor)>, ModelFileError> {
    let views = layout(architecture);
    let mut tensors = Vec::with_capacity(views.len());
    for view in views {
        let Some((name, tensor)) = network.get(&view.name) else {
            return Err(ModelFileError::TensorMissing(
                network.name_in_file(&view.name),
            ));
        };
        if sizes(&tensor.shape) != view.shape {
            return Err(ModelFileError::Shape {
                name,
                expected: view.shape,
                actual: sizes(&tensor.shape),
            });
        }
        let reason = if !is_contiguous(tensor) {
            "is not contiguous; call .contiguous() on it before saving"
        } else if matches!(tensor.storage.element_type, ElementType::Other(_)) {
            "has elements that are not floating-point numbers"
        } else {
            tensors.push((name, tensor));
            continue;
        };
        return Err(TorchCheckpointError::Tensor { name, reason }.into());
    }
    Ok(tensors)
}

/// Returns whether the elements of a tensor follow each other row by row.
fn is_contiguous(tensor: &PickledTensor) -> bool {
    let mut stride = 1u64;
    for (&size, &actual) in tensor.shape.iter().zip(&tensor.strides).rev() {
        // The stride of a dimension of size 1 has no effect.
        if actual != stride && size != 1 {
            return false;
        }
        stride = stride.saturating_mul(size);
    }
    tensor.strides.len() == tensor.shape.len()
}

/// Returns the byte of the file at which a contiguous tensor starts, after
/// checking that the file has all of its elements.
fn start_of(ranges: &StorageRanges, tensor: &PickledTensor) -> Result<u64, &'static str> {
    let storage = &tensor.storage;
    let bytes = ranges
        .get(&storage.key)
        .ok_or("has no elements in the file")?;
    let element_bytes = storage.element_type.bytes();
    let count = (bytes.end - bytes.start) / element_bytes;
    let end = tensor
        .shape
        .iter()
        .try_fold(1u64, |product, &size| product.checked_mul(size))
        .and_then(|len| len.checked_add(tensor.offset));
    if count != storage.count || end.is_none_or(|end| end > count) {
        return Err("has fewer elements in the file than its shape requires");
    }
    Ok(bytes.start + tensor.offset * element_bytes)
}

/// Reads elements from byte `start` of the file on, as float32.
fn read_values(
    reader: &mut (impl Read + Seek),
    start: u64,
    element_type: ElementType,
    target: &mut [f32],
) -> Result<(), TorchCheckpointError> {
    reader.seek(SeekFrom::Start(start))?;
    let width = usize::try_from(element_type.bytes()).expect("at most 8");
    let mut bytes = vec![0; CHUNK_BYTES];
    for part in target.chunks_mut(bytes.len() / width) {
        let bytes = &mut bytes[..part.len() * width];
        reader.read_exact(bytes)?;
        for (value, bytes) in part.iter_mut().zip(bytes.chunks_exact(width)) {
            *value = to_f32(element_type, bytes);
        }
    }
    Ok(())
}

/// Returns the nearest float32 value. A larger one becomes infinite, and is
/// rejected later.
#[allow(clippy::cast_possible_truncation)]
fn to_f32(element_type: ElementType, bytes: &[u8]) -> f32 {
    const LENGTH: &str = "as many bytes as the element type has";
    match element_type {
        ElementType::F64 => f64::from_le_bytes(bytes.try_into().expect(LENGTH)) as f32,
        ElementType::F32 => f32::from_le_bytes(bytes.try_into().expect(LENGTH)),
        ElementType::Bf16 => {
            let upper = u16::from_le_bytes(bytes.try_into().expect(LENGTH));
            f32::from_bits(u32::from(upper) << 16)
        }
        ElementType::F16 => half::f16::from_le_bytes(bytes.try_into().expect(LENGTH)).to_f32(),
        // `find_tensors` has rejected it; infinite values are rejected later.
        ElementType::Other(_) => f32::INFINITY,
    }
}

#[cfg(test)]
mod tests;
