//! The manifest of a version: what is known of it without opening the large
//! file.

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{Contents, ModelMetadata};
use charlstm_store::{checksummed_json, hex};
use serde::{Deserialize, Serialize};

use super::{ModelDescription, ModelId};

/// Version of the manifest, and the only one that is read.
const FORMAT: u32 = 1;

/// Name and version are not in it: they are those of its path.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    sha256: String,
    bytes: u64,
    architecture: Architecture,
    vocabulary: String,
    #[serde(rename = "facts")]
    metadata: ModelMetadata,
}

/// Returns the manifest of a file.
pub(super) fn to_text(contents: &Contents) -> Result<Vec<u8>, serde_json::Error> {
    checksummed_json::to_text(&Manifest {
        format: FORMAT,
        sha256: hex::encode(&contents.sha256),
        bytes: contents.bytes,
        architecture: contents.architecture,
        vocabulary: contents.vocabulary.characters().iter().collect(),
        metadata: contents.metadata.clone(),
    })
}

/// Reads the manifest of a version. What int8 costs is not part of it. The
/// error says what is wrong.
pub(super) fn parse(text: &[u8], id: &ModelId) -> Result<ModelDescription, String> {
    let manifest: Manifest = checksummed_json::from_slice(text)
        .map_err(|error| format!("its manifest is not valid: {error}"))?;
    if manifest.format != FORMAT {
        return Err(format!(
            "its manifest has format {}, and this server reads format {FORMAT}",
            manifest.format
        ));
    }
    Ok(ModelDescription {
        id: id.clone(),
        digest: hex::decode(&manifest.sha256).ok_or("its manifest has no valid sha256")?,
        bytes: manifest.bytes,
        architecture: manifest.architecture,
        vocabulary: manifest.vocabulary,
        metadata: manifest.metadata,
        quantisation: None,
    })
}
