//! The folders and files of the repository, and the order in which they are
//! written so that a crash at any moment leaves a version whole or absent.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::index::{Entry, Index};
use super::name::{check_name, version_number};
use super::{ModelDescription, ModelId, RepositoryError};
use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{CheckpointError, Contents, ModelFile, ModelMetadata};
use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;

/// Under the folder of the models: no model can have that name.
const STAGING: &str = ".staging";
const MODEL_FILE: &str = "model.safetensors";
const MANIFEST_FILE: &str = "manifest.json";
/// In the folder of a name: the highest version that was ever given, as text.
/// Written when a version is removed.
const LAST_VERSION_FILE: &str = "last_version";
/// Version of the manifest, and the only one that is read.
const MANIFEST_FORMAT: u32 = 1;

/// What stands beside a model file, so that the repository can be listed
/// without opening the large files. Name and version are those of the path.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    sha256: String,
    bytes: u64,
    architecture: Architecture,
    vocabulary: String,
    facts: ModelMetadata,
}

#[derive(Debug)]
pub(super) struct Storage {
    models: PathBuf,
    staging: PathBuf,
}

/// A folder on its way to become a version. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Staged {
    folder: TempDir,
    file: File,
}

/// A version that was moved out of the way.
pub(super) struct Trash(PathBuf);

impl Storage {
    /// Makes the folders, and removes what interrupted writes left.
    pub(super) fn open(folder: &Path) -> Result<Self, RepositoryError> {
        let models = folder.join("models");
        let staging = models.join(STAGING);
        fs::create_dir_all(&models).map_err(|error| RepositoryError::io(&models, error))?;
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RepositoryError::io(&staging, error));
            }
            _ => {}
        }
        fs::create_dir(&staging).map_err(|error| RepositoryError::io(&staging, error))?;
        Ok(Self { models, staging })
    }

    /// Reads the manifests of all versions.
    pub(super) fn scan(&self) -> Result<Index, RepositoryError> {
        let mut index = Index::default();
        for (name, path) in folders(&self.models)? {
            if name == STAGING {
                continue;
            }
            if check_name(&name).is_err() {
                tracing::warn!(folder = %path.display(), "this folder has no name of a model; it is left alone");
                continue;
            }
            if let Ok(text) = fs::read_to_string(path.join(LAST_VERSION_FILE)) {
                index.note_last_version(&name, text.trim().parse().unwrap_or(0));
            }
            for (version, path) in folders(&path)? {
                let Some(version) = version_number(&version) else {
                    tracing::warn!(folder = %path.display(), "this folder has no name of a version; it is left alone");
                    continue;
                };
                let id = ModelId {
                    name: name.clone(),
                    version,
                };
                let entry = match describe(&path, &id) {
                    Ok(description) => Entry::Sound(Arc::new(description)),
                    Err(reason) => Entry::Damaged(reason),
                };
                index.insert(id, entry);
            }
        }
        Ok(index)
    }

    pub(super) fn model_path(&self, id: &ModelId) -> PathBuf {
        self.version_path(id).join(MODEL_FILE)
    }

    pub(super) fn open_model(&self, id: &ModelId) -> Result<File, RepositoryError> {
        let path = self.model_path(id);
        File::open(&path).map_err(|error| RepositoryError::io(&path, error))
    }

    /// Makes a folder for a version to come.
    pub(super) fn stage(&self) -> Result<Staged, RepositoryError> {
        let io = |error| RepositoryError::io(&self.staging, error);
        let folder = tempfile::Builder::new()
            .prefix("version-")
            .tempdir_in(&self.staging)
            .map_err(io)?;
        let file = File::create_new(folder.path().join(MODEL_FILE)).map_err(io)?;
        Ok(Staged { folder, file })
    }

    /// Moves a staged version to the first free number from `version` on.
    pub(super) fn publish_staged(
        &self,
        name: &str,
        version: u64,
        staged: Staged,
    ) -> Result<ModelId, RepositoryError> {
        let parent = self.models.join(name);
        let io = |error| RepositoryError::io(&parent, error);
        fs::create_dir_all(&parent).map_err(io)?;
        let mut id = ModelId {
            name: name.to_owned(),
            version,
        };
        // A rename onto a folder that is there and not empty fails: a version
        // is never overwritten, whoever put it there.
        while let Err(error) = fs::rename(staged.folder.path(), self.version_path(&id)) {
            if error.kind() != io::ErrorKind::DirectoryNotEmpty {
                return Err(io(error));
            }
            id.version += 1;
        }
        // It has left the staging folder: there is nothing to remove there.
        let _ = staged.folder.keep();
        sync_folder(&parent)?;
        sync_folder(&self.models)?;
        Ok(id)
    }

    /// Moves a version out of the way, so that it is gone at once; emptying
    /// the returned trash frees its space.
    pub(super) fn remove(&self, id: &ModelId, last_version: u64) -> Result<Trash, RepositoryError> {
        let parent = self.models.join(&id.name);
        self.write_last_version(&parent, last_version)?;
        let trash = self
            .staging
            .join(format!("removed-{}", uuid::Uuid::new_v4()));
        fs::rename(self.version_path(id), &trash)
            .map_err(|error| RepositoryError::io(&self.version_path(id), error))?;
        sync_folder(&parent)?;
        Ok(Trash(trash))
    }

    fn write_last_version(&self, parent: &Path, version: u64) -> Result<(), RepositoryError> {
        let path = parent.join(LAST_VERSION_FILE);
        let io = |error| RepositoryError::io(&path, error);
        let mut file = tempfile::NamedTempFile::new_in(&self.staging).map_err(io)?;
        writeln!(file, "{version}").map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path).map_err(|error| io(error.error))?;
        sync_folder(parent)
    }

    fn version_path(&self, id: &ModelId) -> PathBuf {
        self.models.join(&id.name).join(id.version.to_string())
    }
}

impl Staged {
    /// Writes the model file.
    pub(super) fn write(&mut self, model: &ModelFile) -> Result<(), RepositoryError> {
        model.write_to(&mut self.file).map_err(|error| match error {
            CheckpointError::Io(source) => RepositoryError::io(self.folder.path(), source),
            error => RepositoryError::NotAModel(error),
        })
    }

    /// Appends to the model file.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.file
            .write_all(bytes)
            .map_err(|source| RepositoryError::io(self.folder.path(), source))
    }

    /// Makes the written file durable, and reads it again from the disk:
    /// what is recorded in the manifest is what is there.
    pub(super) fn check(
        &self,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Contents, RepositoryError> {
        let synced = self.file.sync_all();
        synced.map_err(|source| RepositoryError::io(self.folder.path(), source))?;
        self.reread(|file, length| Contents::read_from(file, length, vocabulary))
    }

    /// The written model.
    pub(super) fn read(
        &self,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelFile, RepositoryError> {
        self.reread(|file, length| ModelFile::read_from(file, length, vocabulary))
            .map(|(model, _)| model)
    }

    /// The model of the checkpoint that was written.
    pub(super) fn read_notebook(
        &self,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelFile, RepositoryError> {
        self.reread(|file, _| torch_checkpoint::read(file, vocabulary))
    }

    fn reread<T>(
        &self,
        read: impl FnOnce(File, u64) -> Result<T, CheckpointError>,
    ) -> Result<T, RepositoryError> {
        let path = self.folder.path().join(MODEL_FILE);
        let io = |source| RepositoryError::io(&path, source);
        let file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        read(file, length).map_err(|error| match error {
            CheckpointError::Io(source) => io(source),
            error => RepositoryError::NotAModel(error),
        })
    }

    /// Writes the manifest, and makes the folder durable.
    pub(super) fn write_manifest(&self, contents: &Contents) -> Result<(), RepositoryError> {
        let path = self.folder.path().join(MANIFEST_FILE);
        let io = |error| RepositoryError::io(&path, error);
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            sha256: hexadecimal(&contents.sha256),
            bytes: contents.bytes,
            architecture: contents.architecture,
            vocabulary: contents.vocabulary.characters().iter().collect(),
            facts: contents.facts.clone(),
        };
        let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
        let mut file = File::create_new(&path).map_err(io)?;
        file.write_all(&json).map_err(io)?;
        file.sync_all().map_err(io)?;
        sync_folder(self.folder.path())
    }
}

impl Trash {
    /// Frees the space. What is left over goes at the next start.
    pub(super) fn empty(self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a removed version still takes space");
        }
    }
}

/// What the manifest in a version's folder says; or what is wrong with it.
fn describe(folder: &Path, id: &ModelId) -> Result<ModelDescription, String> {
    let text = fs::read(folder.join(MANIFEST_FILE))
        .map_err(|error| format!("its manifest cannot be read: {error}"))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| format!("its manifest is not valid: {error}"))?;
    if manifest.format != MANIFEST_FORMAT {
        return Err(format!(
            "its manifest has the format {}; only {MANIFEST_FORMAT} is known",
            manifest.format
        ));
    }
    let digest = from_hexadecimal(&manifest.sha256).ok_or("its manifest has no valid sha256")?;
    let bytes = fs::metadata(folder.join(MODEL_FILE))
        .map_err(|error| format!("its file cannot be read: {error}"))?
        .len();
    if bytes != manifest.bytes {
        return Err(format!(
            "its file has {bytes} bytes where {} were stored",
            manifest.bytes
        ));
    }
    Ok(ModelDescription {
        id: id.clone(),
        digest,
        bytes,
        architecture: manifest.architecture,
        vocabulary: manifest.vocabulary,
        facts: manifest.facts,
    })
}

/// The folders within a folder, with their names. Names that are not UTF-8
/// come with replacement characters, which no name here has.
fn folders(path: &Path) -> Result<Vec<(String, PathBuf)>, RepositoryError> {
    let io = |error| RepositoryError::io(path, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir() {
            found.push((
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            ));
        }
    }
    Ok(found)
}

/// Makes what was made, renamed or removed in a folder durable.
fn sync_folder(path: &Path) -> Result<(), RepositoryError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| RepositoryError::io(path, error))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}
