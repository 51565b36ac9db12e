//! The header of a model file: its JSON, and all checks that do not need the
//! weights. The parent module reads the weights.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::super::architecture::Architecture;
use super::super::parameters::{self, ParameterView};
use super::super::vocabulary::Vocabulary;
use super::{
    MAX_HIDDEN_SIZE, MAX_LAYERS, MAX_VOCABULARY, ModelFile, ModelFileError, ModelMetadata, foreign,
    shortened, unknown_tensor,
};

/// Version of the metadata; no other can be read.
const FORMAT_VERSION: &str = "1";

/// Maximum length of the JSON in bytes. A vocabulary of [`MAX_VOCABULARY`]
/// characters, each as two escapes, takes 0.8 MB.
const MAX_HEADER_BYTES: u64 = 2 * 1024 * 1024;

const VERSION_KEY: &str = "format_version";
const ARCHITECTURE_KEY: &str = "architecture";
pub(super) const VOCABULARY_KEY: &str = "vocabulary";
const TRAINING_KEY: &str = "training";

/// The content of a header, checked.
pub(super) struct Header {
    pub(super) architecture: Architecture,
    pub(super) vocabulary: Vocabulary,
    pub(super) metadata: ModelMetadata,
    /// False for a bare `state_dict`.
    pub(super) has_metadata: bool,
    /// In the order of the file, which has no gaps, with their ranges in
    /// `Parameters::values`.
    tensors: Vec<ParameterView>,
}

impl Header {
    /// Creates the header for a model.
    pub(super) fn of(model: &ModelFile) -> Result<Self, ModelFileError> {
        let architecture = model.parameters.architecture;
        check_sizes(&architecture)?;
        check_vocabulary(model.vocabulary.characters(), &architecture)?;
        assert_eq!(
            model.parameters.values.len(),
            architecture.parameter_count(),
            "values of the parameters"
        );
        Ok(Self {
            architecture,
            vocabulary: model.vocabulary.clone(),
            metadata: model.metadata.clone(),
            has_metadata: true,
            tensors: parameters::layout(&architecture),
        })
    }

    /// Reads the header of a file of `length` bytes.
    pub(super) fn read_from(
        mut reader: impl Read,
        length: u64,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self, ModelFileError> {
        let invalid = |reason: &str| ModelFileError::NotSafetensors(reason.to_owned());
        if length < 8 {
            return Err(invalid("it is shorter than 8 bytes"));
        }
        let mut size = [0; 8];
        reader.read_exact(&mut size)?;
        if let Some(content) = foreign::recognise(&size) {
            return Err(invalid(content));
        }
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER_BYTES {
            return Err(invalid("its header is longer than 2 MiB"));
        }
        if size > length - 8 {
            return Err(invalid("it ends within its header"));
        }
        let mut json = vec![0; usize::try_from(size).expect("under the limit")];
        reader.read_exact(&mut json)?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|error| ModelFileError::NotSafetensors(shortened(&error.to_string())))?;
        let expected = (metadata.data_len() as u64).checked_add(8 + size);
        if expected != Some(length) {
            return Err(ModelFileError::Length {
                expected: expected.unwrap_or(u64::MAX),
                actual: length,
            });
        }
        Self::check(&metadata, vocabulary)
    }

    /// Returns the tensors in the order of the file.
    pub(super) fn tensors(&self) -> &[ParameterView] {
        &self.tensors
    }

    /// Returns the first bytes of the file: the length of the JSON, and the
    /// JSON, padded so that the values are aligned.
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
            // Other programs expect this entry in files with PyTorch's layout.
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
                text(serde_json::to_string(&self.metadata)),
            ),
        ]);
        let metadata = Metadata::new(Some(metadata), tensors.collect())
            .expect("a layout has no gaps and fits its shapes");
        // Through a `Value`, whose keys are sorted, so that the same model
        // always gives the same bytes.
        let value = serde_json::to_value(&metadata).expect("plain data becomes JSON");
        let mut json = value.to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        bytes
    }

    fn check(metadata: &Metadata, vocabulary: Option<&Vocabulary>) -> Result<Self, ModelFileError> {
        let entries = metadata.metadata().as_ref();
        let described = entries.filter(|entries| entries.contains_key(VERSION_KEY));
        let (architecture, vocabulary, model_metadata) = match (described, vocabulary) {
            (Some(entries), _) => parse_metadata(entries)?,
            (None, Some(vocabulary)) => {
                let architecture = infer_architecture(metadata)?;
                check_sizes(&architecture)?;
                check_vocabulary(vocabulary.characters(), &architecture)?;
                (architecture, vocabulary.clone(), ModelMetadata::default())
            }
            (None, None) => return Err(ModelFileError::MetadataMissing(VOCABULARY_KEY)),
        };
        Ok(Self {
            tensors: check_tensors(metadata, &architecture)?,
            architecture,
            vocabulary,
            metadata: model_metadata,
            has_metadata: described.is_some(),
        })
    }
}

/// Parses the metadata that [`Header::to_bytes`] writes.
fn parse_metadata(
    entries: &HashMap<String, String>,
) -> Result<(Architecture, Vocabulary, ModelMetadata), ModelFileError> {
    let entry = |key| entries.get(key).ok_or(ModelFileError::MetadataMissing(key));
    let invalid = |key, reason: String| ModelFileError::Metadata {
        key,
        reason: shortened(&reason),
    };
    let version = entry(VERSION_KEY)?;
    if version != FORMAT_VERSION {
        return Err(invalid(
            VERSION_KEY,
            format!("this program reads version {FORMAT_VERSION}, not {version:?}"),
        ));
    }
    let architecture: Architecture = serde_json::from_str(entry(ARCHITECTURE_KEY)?)
        .map_err(|error| invalid(ARCHITECTURE_KEY, error.to_string()))?;
    check_sizes(&architecture)?;
    let characters: Vec<char> = entry(VOCABULARY_KEY)?.chars().collect();
    check_vocabulary(&characters, &architecture)?;
    let metadata: ModelMetadata = serde_json::from_str(entry(TRAINING_KEY)?)
        .map_err(|error| invalid(TRAINING_KEY, error.to_string()))?;
    Ok((architecture, Vocabulary::from_chars(characters), metadata))
}

/// Infers the architecture from the shapes of a bare `state_dict`.
fn infer_architecture(metadata: &Metadata) -> Result<Architecture, ModelFileError> {
    let name = "fc.weight";
    let info = metadata
        .info(name)
        .ok_or_else(|| ModelFileError::TensorMissing(name.to_owned()))?;
    let &[vocabulary_size, hidden_size] = info.shape.as_slice() else {
        return Err(ModelFileError::Shape {
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

/// Rejects sizes outside the limits of this program.
pub(crate) fn check_sizes(architecture: &Architecture) -> Result<(), ModelFileError> {
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
            return Err(ModelFileError::Size {
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
) -> Result<(), ModelFileError> {
    let invalid = |reason| ModelFileError::Metadata {
        key: VOCABULARY_KEY,
        reason,
    };
    if characters.len() != architecture.vocabulary_size {
        return Err(invalid(format!(
            "it has {} characters, but the network has {}",
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
        Some(twice) => Err(invalid(format!("it has {twice:?} twice"))),
    }
}

/// Checks names, shapes and element types; returns the tensors in the order of
/// the file.
fn check_tensors(
    metadata: &Metadata,
    architecture: &Architecture,
) -> Result<Vec<ParameterView>, ModelFileError> {
    let mut expected: HashMap<String, ParameterView> = parameters::layout(architecture)
        .into_iter()
        .map(|view| (view.name.clone(), view))
        .collect();
    let mut tensors = Vec::with_capacity(expected.len());
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("the name is of its keys");
        let Some(view) = expected.remove(&name) else {
            return Err(unknown_tensor(&name));
        };
        if info.dtype != Dtype::F32 {
            let actual = info.dtype.to_string();
            return Err(ModelFileError::Type { name, actual });
        }
        if info.shape != view.shape {
            return Err(ModelFileError::Shape {
                name,
                expected: view.shape,
                actual: info.shape.clone(),
            });
        }
        tensors.push(view);
    }
    // Of several missing tensors, always report the same one.
    match expected.into_keys().min() {
        None => Ok(tensors),
        Some(name) => Err(ModelFileError::TensorMissing(name)),
    }
}
