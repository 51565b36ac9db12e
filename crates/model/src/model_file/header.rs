//! The header of a model file: its JSON, and every check that needs no
//! weights. The weights are read in the parent module.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::super::architecture::Architecture;
use super::super::parameters::{self, ParameterView};
use super::super::vocabulary::Vocabulary;
use super::{
    CheckpointError, MAX_HIDDEN_SIZE, MAX_LAYERS, MAX_VOCABULARY, ModelFile, ModelMetadata,
};

/// Version of what is in the metadata, and the only one that is read.
const FORMAT_VERSION: &str = "1";

/// Most bytes of JSON: a vocabulary of [`MAX_VOCABULARY`] characters, each as
/// two escapes, takes 0.8 MB.
const MAX_HEADER_BYTES: u64 = 2 * 1024 * 1024;

const VERSION_KEY: &str = "format_version";
const ARCHITECTURE_KEY: &str = "architecture";
const VOCABULARY_KEY: &str = "vocabulary";
const TRAINING_KEY: &str = "training";

/// What the header says, all of it checked.
pub(super) struct Header {
    pub(super) architecture: Architecture,
    pub(super) vocabulary: Vocabulary,
    pub(super) facts: ModelMetadata,
    /// False for a bare `state_dict`.
    pub(super) has_metadata: bool,
    /// In the order in which they lie in the file, without gaps; each with
    /// its place in the flat row.
    tensors: Vec<ParameterView>,
}

impl Header {
    /// The header of the file that is written for a model.
    pub(super) fn of(model: &ModelFile) -> Result<Self, CheckpointError> {
        let architecture = model.parameters.architecture;
        check_sizes(&architecture)?;
        check_vocabulary(model.vocabulary.characters(), &architecture)?;
        assert_eq!(
            model.parameters.values.len(),
            architecture.parameter_count(),
            "the parameters fit their architecture"
        );
        Ok(Self {
            architecture,
            vocabulary: model.vocabulary.clone(),
            facts: model.facts.clone(),
            has_metadata: true,
            tensors: parameters::layout(&architecture),
        })
    }

    /// Reads the header of a file of `length` bytes.
    pub(super) fn read_from(
        mut reader: impl Read,
        length: u64,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self, CheckpointError> {
        let broken = |reason: &str| CheckpointError::NotSafetensors(reason.to_owned());
        if length < 8 {
            return Err(broken("it is shorter than 8 bytes"));
        }
        let mut size = [0; 8];
        reader.read_exact(&mut size)?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER_BYTES {
            return Err(broken("its header is too large"));
        }
        if size > length - 8 {
            return Err(broken("it ends within its header"));
        }
        let mut json = vec![0; usize::try_from(size).expect("under the limit")];
        reader.read_exact(&mut json)?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|error| CheckpointError::NotSafetensors(error.to_string()))?;
        let expected = (metadata.data_len() as u64).checked_add(8 + size);
        if expected != Some(length) {
            return Err(CheckpointError::Length {
                expected: expected.unwrap_or(u64::MAX),
                actual: length,
            });
        }
        Self::check(&metadata, vocabulary)
    }

    /// The tensors in the order in which they lie in the file.
    pub(super) fn tensors(&self) -> &[ParameterView] {
        &self.tensors
    }

    /// The first bytes of the file: length and JSON, padded so that the
    /// floats are aligned.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let tensors = self.tensors.iter().map(|tensor| {
            let info = TensorInfo {
                dtype: Dtype::F32,
                shape: tensor.shape.clone(),
                data_offsets: (4 * tensor.range.start, 4 * tensor.range.end),
            };
            (tensor.name.clone(), info)
        });
        let text = |value: serde_json::Result<String>| value.expect("plain data becomes JSON");
        let metadata = HashMap::from([
            // What other programs look for in files that PyTorch made.
            ("format".to_owned(), "pt".to_owned()),
            (VERSION_KEY.to_owned(), FORMAT_VERSION.to_owned()),
            (
                ARCHITECTURE_KEY.to_owned(),
                text(serde_json::to_string(&self.architecture)),
            ),
            (
                VOCABULARY_KEY.to_owned(),
                self.vocabulary.characters().iter().collect(),
            ),
            (
                TRAINING_KEY.to_owned(),
                text(serde_json::to_string(&self.facts)),
            ),
        ]);
        let metadata = Metadata::new(Some(metadata), tensors.collect())
            .expect("a layout has no gaps and fits its shapes");
        // Through a `Value`, whose keys are sorted: the same bytes each time.
        let value = serde_json::to_value(&metadata).expect("plain data becomes JSON");
        let mut json = value.to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        bytes
    }

    fn check(
        metadata: &Metadata,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self, CheckpointError> {
        let entries = metadata.metadata().as_ref();
        let ours = entries.filter(|entries| entries.contains_key(VERSION_KEY));
        let (architecture, vocabulary, facts) = match (ours, vocabulary) {
            (Some(entries), _) => described(entries)?,
            (None, Some(vocabulary)) => {
                let architecture = inferred(metadata)?;
                check_sizes(&architecture)?;
                check_vocabulary(vocabulary.characters(), &architecture)?;
                (architecture, vocabulary.clone(), ModelMetadata::default())
            }
            (None, None) => return Err(CheckpointError::MetadataMissing(VOCABULARY_KEY)),
        };
        Ok(Self {
            tensors: check_tensors(metadata, &architecture)?,
            architecture,
            vocabulary,
            facts,
            has_metadata: ours.is_some(),
        })
    }
}

/// What the metadata of a file of ours say.
fn described(
    entries: &HashMap<String, String>,
) -> Result<(Architecture, Vocabulary, ModelMetadata), CheckpointError> {
    let entry = |key| {
        entries
            .get(key)
            .ok_or(CheckpointError::MetadataMissing(key))
    };
    let wrong = |key, reason: String| CheckpointError::Metadata { key, reason };
    let version = entry(VERSION_KEY)?;
    if version != FORMAT_VERSION {
        return Err(wrong(
            VERSION_KEY,
            format!("version {version:?} is not known here, only {FORMAT_VERSION}"),
        ));
    }
    let architecture: Architecture = serde_json::from_str(entry(ARCHITECTURE_KEY)?)
        .map_err(|error| wrong(ARCHITECTURE_KEY, error.to_string()))?;
    check_sizes(&architecture)?;
    let characters: Vec<char> = entry(VOCABULARY_KEY)?.chars().collect();
    check_vocabulary(&characters, &architecture)?;
    let facts: ModelMetadata = serde_json::from_str(entry(TRAINING_KEY)?)
        .map_err(|error| wrong(TRAINING_KEY, error.to_string()))?;
    Ok((architecture, Vocabulary::from_chars(characters), facts))
}

/// The architecture that the shapes of a bare `state_dict` tell.
fn inferred(metadata: &Metadata) -> Result<Architecture, CheckpointError> {
    let name = "fc.weight";
    let info = metadata
        .info(name)
        .ok_or_else(|| CheckpointError::TensorMissing(name.to_owned()))?;
    let &[vocabulary_size, hidden_size] = info.shape.as_slice() else {
        return Err(CheckpointError::Shape {
            name: name.to_owned(),
            expected: vec![0, 0],
            actual: info.shape.clone(),
        });
    };
    let num_layers = (0..=MAX_LAYERS)
        .take_while(|layer| metadata.info(&format!("lstm.weight_hh_l{layer}")).is_some())
        .count();
    Ok(Architecture {
        vocabulary_size,
        hidden_size,
        num_layers,
    })
}

/// Refuses sizes beyond what this program handles.
pub(crate) fn check_sizes(architecture: &Architecture) -> Result<(), CheckpointError> {
    let sizes = [
        (
            "vocabulary_size",
            architecture.vocabulary_size,
            MAX_VOCABULARY,
        ),
        ("hidden_size", architecture.hidden_size, MAX_HIDDEN_SIZE),
        ("num_layers", architecture.num_layers, MAX_LAYERS),
    ];
    for (what, actual, limit) in sizes {
        if actual == 0 || actual > limit {
            return Err(CheckpointError::Size {
                what,
                limit,
                actual,
            });
        }
    }
    Ok(())
}

fn check_vocabulary(
    characters: &[char],
    architecture: &Architecture,
) -> Result<(), CheckpointError> {
    let wrong = |reason| CheckpointError::Metadata {
        key: VOCABULARY_KEY,
        reason,
    };
    if characters.len() != architecture.vocabulary_size {
        return Err(wrong(format!(
            "it has {} characters where the network has {}",
            characters.len(),
            architecture.vocabulary_size
        )));
    }
    let mut seen = HashSet::with_capacity(characters.len());
    match characters
        .iter()
        .find(|&&character| !seen.insert(character))
    {
        None => Ok(()),
        Some(twice) => Err(wrong(format!("{twice:?} stands in it twice"))),
    }
}

/// Checks names, shapes and types; returns the tensors in the order of the
/// file.
fn check_tensors(
    metadata: &Metadata,
    architecture: &Architecture,
) -> Result<Vec<ParameterView>, CheckpointError> {
    let mut expected: HashMap<String, ParameterView> = parameters::layout(architecture)
        .into_iter()
        .map(|view| (view.name.clone(), view))
        .collect();
    let mut tensors = Vec::with_capacity(expected.len());
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("the name is of its keys");
        let Some(view) = expected.remove(&name) else {
            return Err(CheckpointError::TensorUnknown(name));
        };
        if info.dtype != Dtype::F32 {
            let actual = info.dtype.to_string();
            return Err(CheckpointError::Type { name, actual });
        }
        if info.shape != view.shape {
            return Err(CheckpointError::Shape {
                name,
                expected: view.shape,
                actual: info.shape.clone(),
            });
        }
        tensors.push(view);
    }
    // Of several, always tell the same one.
    match expected.into_keys().min() {
        None => Ok(tensors),
        Some(name) => Err(CheckpointError::TensorMissing(name)),
    }
}
