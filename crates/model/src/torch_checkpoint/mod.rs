//! Checkpoints that the notebook saved with `torch.save`: a dict of
//! `n_hidden`, `n_layers`, `state_dict` and mostly `tokens`, its characters;
//! or a `state_dict` alone. They may come from anybody: nothing in them is
//! run, and everything is checked before anything of its size is allocated.

mod archive;
mod pickle;

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use self::archive::Archive;
use self::pickle::{Kind, Node, Pickle, Tensor};
use super::architecture::Architecture;
use super::model_file::{self, CheckpointError, MAX_LAYERS, ModelFile, ModelMetadata};
use super::parameters::{Parameters, layout};
use super::vocabulary::Vocabulary;
use super::vocabulary_extension::extend;

/// Bytes of numbers that are read at a time.
const CHUNK_BYTES: u64 = 256 * 1024;

/// A file is no checkpoint of the notebook.
#[derive(Debug, Error)]
pub enum TorchCheckpointError {
    /// It is not what `torch.save` writes, or is cut short.
    #[error("{0}")]
    Broken(&'static str),
    /// Its zip is.
    #[error("its zip is broken or compressed: {0}")]
    Zip(String),
    /// It needs code to be understood.
    #[error(
        "its pickle needs {0:?}, and no code is run here; save it again as \
         torch.save({{'n_hidden': ..., 'n_layers': ..., 'state_dict': net.state_dict()}}, file)"
    )]
    Name(String),
    /// The same, or it is no pickle.
    #[error("its pickle has the instruction {0:#04x}, which no state_dict needs")]
    Instruction(u8),
    /// It was made on another kind of machine.
    #[error("its numbers are not little-endian")]
    BigEndian,
    /// There is no `state_dict`.
    #[error("it holds no state_dict")]
    NoStateDict,
    /// An entry is not what the notebook writes.
    #[error("its {0} is not what the notebook writes")]
    Entry(&'static str),
    /// Two entries contradict each other.
    #[error("its {key} is {actual}, but its tensors are for {expected}")]
    Contradiction {
        /// The entry.
        key: &'static str,
        /// What it says.
        actual: i128,
        /// What the shapes say.
        expected: usize,
    },
    /// The characters are nowhere.
    #[error("it holds no vocabulary (tokens), and none was given")]
    NoVocabulary,
    /// The characters that were given are not those of the file.
    #[error("the vocabulary that was given has other characters than the file's own tokens")]
    OtherVocabulary,
    /// The characters are those of another network.
    #[error("the vocabulary has {given} distinct characters; the network has {expected}")]
    VocabularySize {
        /// Characters of the vocabulary.
        given: usize,
        /// Characters of the network.
        expected: usize,
    },
    /// A tensor's numbers are not where they should be.
    #[error("tensor {name} {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for TorchCheckpointError {
    /// What did not come from the system is a finding about the file.
    fn from(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::Io(error);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Broken("it is cut short"),
            _ => Self::Zip(error.to_string()),
        }
    }
}

impl From<TorchCheckpointError> for CheckpointError {
    fn from(error: TorchCheckpointError) -> Self {
        match error {
            TorchCheckpointError::Io(error) => Self::Io(error),
            error => Self::Notebook(error),
        }
    }
}

/// Reads and checks a checkpoint. `vocabulary` is needed, in the order of the
/// network's numbers, where the file holds no `tokens`; where it does, the two
/// must have the same characters, and the order of the file counts. The model
/// that is returned has its characters sorted, and of its facts none is known.
/// Needs memory for the weights twice.
///
/// # Errors
/// [`CheckpointError::Notebook`] and what the model file is checked for too.
pub fn read(
    mut reader: impl Read + Seek,
    vocabulary: Option<&Vocabulary>,
) -> Result<ModelFile, CheckpointError> {
    let archive = Archive::open(&mut reader)?;
    let pickle = &archive.pickle;
    let root = pickle.root();
    let state_dict = match pickle.entry(root, "state_dict") {
        Some(state_dict) => state_dict,
        // Some save it alone.
        None if pickle.entry(root, "fc.weight").is_some() => root,
        None => return Err(TorchCheckpointError::NoStateDict.into()),
    };
    let architecture = architecture(pickle, state_dict)?;
    model_file::check_sizes(&architecture)?;
    agrees(pickle, "n_hidden", architecture.hidden_size)?;
    agrees(pickle, "n_layers", architecture.num_layers)?;
    let vocabulary = match (tokens(pickle)?, vocabulary) {
        (Some(own), Some(given)) if alphabet(&own) != alphabet(given) => {
            return Err(TorchCheckpointError::OtherVocabulary.into());
        }
        (Some(own), _) => own,
        (None, Some(given)) => given.clone(),
        (None, None) => return Err(TorchCheckpointError::NoVocabulary.into()),
    };
    // Of a character that stands twice, the vocabulary keeps one number.
    let distinct = alphabet(&vocabulary).len();
    if distinct != vocabulary.len() || distinct != architecture.vocabulary_size {
        return Err(TorchCheckpointError::VocabularySize {
            given: distinct,
            expected: architecture.vocabulary_size,
        }
        .into());
    }
    let tensors = tensors(&archive, state_dict, &architecture)?;
    let mut parameters = Parameters::zeros(architecture);
    for ((name, tensor, start), view) in tensors.into_iter().zip(layout(&architecture)) {
        let target = &mut parameters.values[view.range];
        fill(&mut reader, start, tensor.storage.kind, target)?;
        model_file::check_finite(&name, 0, target)?;
    }
    Ok(sorted(ModelFile {
        parameters,
        vocabulary,
        facts: ModelMetadata::default(),
    }))
}

/// True for the first bytes, four or more, of what `torch.save` writes.
pub fn recognises(first: &[u8]) -> bool {
    first.starts_with(b"PK\x03\x04") || first.starts_with(&[0x80, 2, 0x8a, 10])
}

/// The same network with its characters in the order of their code points, as
/// every model that is kept has them.
pub fn sorted(model: ModelFile) -> ModelFile {
    let from_chars = alphabet(&model.vocabulary);
    if from_chars == model.vocabulary {
        return model;
    }
    let fresh = Parameters::zeros(model.parameters.architecture);
    ModelFile {
        parameters: extend(&model.parameters, &model.vocabulary, fresh, &from_chars)
            .expect("both vocabularies have the same characters"),
        vocabulary: from_chars,
        facts: model.facts,
    }
}

/// The distinct characters of a vocabulary, sorted.
fn alphabet(vocabulary: &Vocabulary) -> Vocabulary {
    Vocabulary::of(vocabulary.characters().iter().copied())
}

/// What the shapes of the tensors tell.
fn architecture(pickle: &Pickle, state_dict: &Node) -> Result<Architecture, CheckpointError> {
    let name = "fc.weight";
    let Some(Node::Tensor(tensor)) = pickle.entry(state_dict, name) else {
        return Err(CheckpointError::TensorMissing(name.to_owned()));
    };
    let &[vocabulary_size, hidden_size] = sizes(&tensor.shape).as_slice() else {
        return Err(CheckpointError::Shape {
            name: name.to_owned(),
            expected: vec![0, 0],
            actual: sizes(&tensor.shape),
        });
    };
    let num_layers = (0..=MAX_LAYERS)
        .take_while(|layer| {
            let name = format!("lstm.weight_hh_l{layer}");
            pickle.entry(state_dict, &name).is_some()
        })
        .count();
    Ok(Architecture {
        vocabulary_size,
        hidden_size,
        num_layers,
    })
}

/// A size beyond the machine's own is as good as the largest.
fn sizes(shape: &[u64]) -> Vec<usize> {
    let size = |&size| usize::try_from(size).unwrap_or(usize::MAX);
    shape.iter().map(size).collect()
}

/// An entry of the checkpoint may be absent, but not wrong.
fn agrees(pickle: &Pickle, key: &'static str, expected: usize) -> Result<(), TorchCheckpointError> {
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

/// The characters that the notebook saved, in the order of their numbers.
fn tokens(pickle: &Pickle) -> Result<Option<Vocabulary>, TorchCheckpointError> {
    let characters = match pickle.entry(pickle.root(), "tokens") {
        None => return Ok(None),
        Some(Node::Text(text)) => Some(text.chars().collect()),
        Some(Node::Sequence(items)) => items
            .iter()
            .map(|&item| match pickle.node(item) {
                Node::Text(text) => {
                    let mut characters = text.chars();
                    characters.next().filter(|_| characters.next().is_none())
                }
                _ => None,
            })
            .collect(),
        Some(_) => None,
    };
    let characters = characters.ok_or(TorchCheckpointError::Entry("tokens"))?;
    Ok(Some(Vocabulary::from_chars(characters)))
}

/// The tensors of the network in the order of the layout, each with the byte
/// of the file at which it begins.
fn tensors<'a>(
    archive: &'a Archive,
    state_dict: &Node,
    architecture: &Architecture,
) -> Result<Vec<(String, &'a Tensor, u64)>, CheckpointError> {
    let views = layout(architecture);
    let Node::Dict(entries) = state_dict else {
        return Err(TorchCheckpointError::NoStateDict.into());
    };
    for &(name, _) in entries {
        match archive.pickle.node(name) {
            Node::Text(name) if views.iter().any(|view| view.name == *name) => {}
            Node::Text(name) => return Err(CheckpointError::TensorUnknown(name.clone())),
            _ => return Err(TorchCheckpointError::Entry("state_dict").into()),
        }
    }
    let mut found = Vec::with_capacity(views.len());
    for view in views {
        // A second look-up by name, so that the archive lends the tensor.
        let id = entries.iter().rev().find_map(|&(name, value)| {
            matches!(archive.pickle.node(name), Node::Text(text) if *text == view.name)
                .then_some(value)
        });
        let Some(Node::Tensor(tensor)) = id.map(|id| archive.pickle.node(id)) else {
            return Err(CheckpointError::TensorMissing(view.name));
        };
        if sizes(&tensor.shape) != view.shape {
            return Err(CheckpointError::Shape {
                name: view.name,
                expected: view.shape,
                actual: sizes(&tensor.shape),
            });
        }
        match place(archive, tensor) {
            Ok(start) => found.push((view.name, tensor, start)),
            Err(reason) => {
                let name = view.name;
                return Err(TorchCheckpointError::Tensor { name, reason }.into());
            }
        }
    }
    Ok(found)
}

/// Where in the file a tensor begins; all of it is there. Its shape is known
/// to be that of a network.
fn place(archive: &Archive, tensor: &Tensor) -> Result<u64, &'static str> {
    let mut stride = 1;
    for (&size, &actual) in tensor.shape.iter().zip(&tensor.strides).rev() {
        // Where there is only one, the stride is never taken.
        if actual != stride && size != 1 {
            return Err("is not contiguous; call .contiguous() on it before saving");
        }
        stride *= size;
    }
    if tensor.strides.len() != tensor.shape.len() {
        return Err("has not one stride for each dimension");
    }
    let storage = &tensor.storage;
    let bytes = archive
        .storages
        .get(&storage.key)
        .ok_or("has no numbers in the file")?;
    let end = tensor.offset.checked_add(stride);
    let held = (bytes.end - bytes.start) / storage.kind.bytes();
    if held != storage.count || end.is_none_or(|end| end > held) {
        return Err("has fewer numbers in the file than it needs");
    }
    Ok(bytes.start + tensor.offset * storage.kind.bytes())
}

/// Reads numbers from byte `start` of the file on.
fn fill(
    reader: &mut (impl Read + Seek),
    start: u64,
    kind: Kind,
    target: &mut [f32],
) -> Result<(), TorchCheckpointError> {
    reader.seek(SeekFrom::Start(start))?;
    let width = usize::try_from(kind.bytes()).expect("at most 8");
    let mut bytes = vec![0; usize::try_from(CHUNK_BYTES).expect("a small number")];
    for part in target.chunks_mut(bytes.len() / width) {
        let bytes = &mut bytes[..part.len() * width];
        reader.read_exact(bytes)?;
        for (value, bytes) in part.iter_mut().zip(bytes.chunks_exact(width)) {
            *value = number(kind, bytes);
        }
    }
    Ok(())
}

/// The nearest float32. A larger one becomes infinite, which is refused.
#[allow(clippy::cast_possible_truncation)]
fn number(kind: Kind, bytes: &[u8]) -> f32 {
    const LENGTH: &str = "chunks of the width of the kind";
    match kind {
        Kind::F64 => f64::from_le_bytes(bytes.try_into().expect(LENGTH)) as f32,
        Kind::F32 => f32::from_le_bytes(bytes.try_into().expect(LENGTH)),
        Kind::Bf16 => {
            let upper = u16::from_le_bytes(bytes.try_into().expect(LENGTH));
            f32::from_bits(u32::from(upper) << 16)
        }
        Kind::F16 => half::f16::from_le_bytes(bytes.try_into().expect(LENGTH)).to_f32(),
    }
}

#[cfg(test)]
mod tests;
