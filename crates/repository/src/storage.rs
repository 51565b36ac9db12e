//! The folders and files of the repository, and the order in which they are
//! written so that after a crash at any moment a version exists as a whole or
//! not at all.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_model::model_file::{Contents, ModelFile, ModelFileError};
use charlstm_model::model_id::{check_name, parse_version};
use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_store::session::Owner;
use charlstm_store::{atomic_file, disk_error};
use tempfile::{NamedTempFile, TempDir, TempPath};

use super::index::{Entry, Index};
use super::quantisation::Quantisation;
use super::{ModelDescription, ModelId, RepositoryError, manifest};

/// In the folder of the models, where no model can have that name.
const STAGING: &str = ".staging";
const MODEL_FILE: &str = "model.safetensors";
const MANIFEST_FILE: &str = "manifest.json";
/// Next to the manifest: what int8 costs. Versions of 0.1 get it when they are
/// first loaded.
const QUANTISATION_FILE: &str = "quantisation.json";
/// In the folder of a name: the highest version number that was ever used, as
/// text. Written when a version is removed.
const LAST_VERSION_FILE: &str = "last_version";
/// In the folder of a name: the principal that published its first version, as
/// text. If it is missing, that is `admin`.
const OWNER_FILE: &str = "owner";
/// End of the name of a version's folder while the version is being removed.
const REMOVED: &str = ".removed";
#[derive(Debug)]
pub(super) struct Storage {
    models: PathBuf,
    staging: PathBuf,
    /// [`atomic_file::sync_folder`]; tests let it fail.
    pub(super) sync_folder: fn(&Path) -> io::Result<()>,
}

/// A folder that will become a version. If it is dropped, it is removed.
#[derive(Debug)]
pub(super) struct Staged {
    folder: TempDir,
    file: File,
}

/// A version that no longer exists and whose space is not free yet.
pub(super) struct Removed {
    /// Folder of its name.
    parent: PathBuf,
    /// Its own folder, renamed. As long as it exists, it records the number.
    folder: PathBuf,
    /// Highest number that was ever used under its name, if that is known.
    last_version: Option<u64>,
}

impl Storage {
    /// Creates the folders, and removes what interrupted writes have left.
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
        Ok(Self {
            models,
            staging,
            sync_folder: atomic_file::sync_folder,
        })
    }

    /// Reads the manifests of all versions, and completes removals that a
    /// crash has interrupted.
    pub(super) fn scan(&self) -> Result<Index, RepositoryError> {
        let mut index = Index::default();
        for (name, path) in folders(&self.models)? {
            if name == STAGING {
                continue;
            }
            if check_name(&name).is_err() {
                tracing::warn!(folder = %path.display(), "the name of this folder is not that of a model; it is ignored");
                continue;
            }
            scan_model(&mut index, &name, &path)?;
        }
        Ok(index)
    }

    /// Returns the folder of all models.
    pub(super) fn folder(&self) -> &Path {
        &self.models
    }

    /// Returns a path for a file that is being fetched.
    pub(super) fn staged_file(&self) -> Result<TempPath, RepositoryError> {
        let file = tempfile::Builder::new()
            .prefix("fetched-")
            .tempfile_in(&self.staging);
        file.map(NamedTempFile::into_temp_path)
            .map_err(|error| RepositoryError::io(&self.staging, error))
    }

    pub(super) fn model_path(&self, id: &ModelId) -> PathBuf {
        self.version_path(id).join(MODEL_FILE)
    }

    pub(super) fn open_model(&self, id: &ModelId) -> Result<File, RepositoryError> {
        let path = self.model_path(id);
        File::open(&path).map_err(|error| RepositoryError::io(&path, error))
    }

    /// Creates a folder for a new version.
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
    ///
    /// If it cannot be made durable, it is taken back: a version that was not
    /// reported to anyone must not appear at the next start.
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
        // A folder cannot be renamed to one that exists and is not empty: no
        // version is ever overwritten, not even one that another program put
        // there.
        while let Err(error) = fs::rename(staged.folder.path(), self.version_path(&id)) {
            if !is_occupied(&error) {
                return Err(io(error));
            }
            id.version += 1;
        }
        let synced = self.sync(&parent).and_then(|()| self.sync(&self.models));
        if let Err(error) = synced {
            let path = self.version_path(&id);
            if let Err(error) = fs::rename(&path, staged.folder.path()) {
                tracing::error!(%error, folder = %path.display(), "a version that was reported as not stored remains on disk");
            }
            return Err(error);
        }
        // It has left the staging folder, where nothing is left to remove.
        let _ = staged.folder.keep();
        Ok(id)
    }

    /// Removes a version: it does not exist any more when this returns.
    /// [`Removed::free`] frees its space. Needs no space itself, so that it
    /// works on a full disk.
    pub(super) fn remove(
        &self,
        id: &ModelId,
        last_version: Option<u64>,
    ) -> Result<Removed, RepositoryError> {
        let parent = self.models.join(&id.name);
        let path = self.version_path(id);
        let folder = parent.join(format!("{}{REMOVED}", id.version));
        let mut renamed = fs::rename(&path, &folder);
        if renamed.as_ref().is_err_and(disk_error::is_full) {
            // A name in a folder may need a block. The weights free many.
            let _ = fs::remove_file(path.join(MODEL_FILE));
            renamed = fs::rename(&path, &folder);
        }
        renamed.map_err(|error| RepositoryError::io(&path, error))?;
        if let Err(error) = self.sync(&parent) {
            // Reported as not removed, so it must not be gone.
            if let Err(error) = fs::rename(&folder, &path) {
                tracing::error!(%error, folder = %folder.display(), "a version that was reported as not removed is gone");
            }
            return Err(error);
        }
        Ok(Removed {
            parent,
            folder,
            last_version,
        })
    }

    /// Stores what int8 costs a version.
    pub(super) fn write_quantisation(
        &self,
        id: &ModelId,
        quantisation: &Quantisation,
    ) -> Result<(), RepositoryError> {
        write_quantisation(&self.version_path(id), quantisation)
    }

    /// Records who owns a name, durably.
    pub(super) fn write_owner(&self, name: &str, owner: &Owner) -> Result<(), RepositoryError> {
        let parent = self.models.join(name);
        let path = parent.join(OWNER_FILE);
        fs::create_dir_all(&parent)
            .and_then(|()| atomic_file::write(&path, format!("{owner}\n").as_bytes()))
            .map_err(|error| RepositoryError::io(&path, error))
    }

    fn sync(&self, folder: &Path) -> Result<(), RepositoryError> {
        (self.sync_folder)(folder).map_err(|error| RepositoryError::io(folder, error))
    }

    fn version_path(&self, id: &ModelId) -> PathBuf {
        self.models.join(&id.name).join(id.version.to_string())
    }
}

/// Returns true if a folder could not be renamed because something has its
/// new name. Which error that is depends on the file system.
fn is_occupied(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(
        error.kind(),
        DirectoryNotEmpty | AlreadyExists | NotADirectory
    )
}

/// Reads the folder of one name.
fn scan_model(index: &mut Index, name: &str, path: &Path) -> Result<(), RepositoryError> {
    if let Err(error) = atomic_file::remove_leftovers(path) {
        tracing::warn!(%error, folder = %path.display(), "temporary files could not be removed");
    }
    let last_version_path = path.join(LAST_VERSION_FILE);
    match read_last_version(&last_version_path) {
        Ok(version) => index.record_last_version(name, version),
        Err(error) => {
            tracing::error!(%error, path = %last_version_path.display(), model = name,
                "this file cannot be read; no new version can be stored under this name");
            let reason = "the record of its removed versions cannot be read".to_owned();
            index.last_version_is_unknown(name, reason);
        }
    }
    let owner_path = path.join(OWNER_FILE);
    match read_owner(&owner_path) {
        Ok(None) => {}
        Ok(Some(owner)) => index.record_owner(name, owner),
        // Nobody but an administrator may change it then.
        Err(error) => {
            tracing::error!(%error, path = %owner_path.display(), model = name,
                "this file cannot be read; the model belongs to admin");
        }
    }
    let mut removed = Vec::new();
    for (folder_name, folder) in folders(path)? {
        if let Some(number) = folder_name.strip_suffix(REMOVED).and_then(parse_version) {
            index.record_last_version(name, number);
            removed.push(folder);
            continue;
        }
        let Some(version) = parse_version(&folder_name) else {
            tracing::warn!(folder = %folder.display(), "the name of this folder is not that of a version; it is ignored");
            continue;
        };
        let id = ModelId {
            name: name.to_owned(),
            version,
        };
        let entry = match describe(&folder, &id) {
            Ok(description) => Entry::Sound(Arc::new(description)),
            Err(reason) => Entry::Damaged(reason),
        };
        index.insert(id, entry);
    }
    for folder in removed {
        Removed {
            parent: path.to_owned(),
            folder,
            last_version: index.last_version(name).ok(),
        }
        .free();
    }
    Ok(())
}

/// Returns the number in a file; 0 if there is no file.
fn read_last_version(path: &Path) -> io::Result<u64> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Returns the owner in a file; `None` if there is no file.
fn read_owner(path: &Path) -> io::Result<Option<Owner>> {
    match fs::read_to_string(path) {
        Ok(text) => Owner::new(text.trim_end())
            .map(Some)
            .map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Removed {
    /// Frees the space, and then writes the record of the number to a file. If
    /// that fails, or if the number is unknown, the empty folder remains: its
    /// name is a record, too. The next start tries again.
    pub(super) fn free(self) {
        let freed = empty_folder(&self.folder).and_then(|()| {
            let Some(last_version) = self.last_version else {
                return Ok(());
            };
            let text = format!("{last_version}\n");
            atomic_file::write(&self.parent.join(LAST_VERSION_FILE), text.as_bytes())?;
            fs::remove_dir(&self.folder)
        });
        if let Err(error) = freed {
            tracing::warn!(folder = %self.folder.display(), %error, "the rest of a removed version stays until the next start");
        }
    }
}

fn empty_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Staged {
    /// Returns the path of the model file.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join(MODEL_FILE)
    }

    /// Writes the model file.
    pub(super) fn write(&mut self, model: &ModelFile) -> Result<(), RepositoryError> {
        model.write_to(&mut self.file).map_err(|error| match error {
            ModelFileError::Io(source) => RepositoryError::io(self.folder.path(), source),
            error => RepositoryError::NotAModel(error),
        })
    }

    /// Appends to the model file.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.file
            .write_all(bytes)
            .map_err(|source| RepositoryError::io(self.folder.path(), source))
    }

    /// Makes the written file durable, and reads it back: the manifest
    /// describes what is on disk.
    pub(super) fn check(
        &self,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Contents, RepositoryError> {
        let synced = self.file.sync_all();
        synced.map_err(|source| RepositoryError::io(self.folder.path(), source))?;
        self.read_back(|file, length| Contents::read_from(file, length, vocabulary))
    }

    /// Reads the written model.
    pub(super) fn read(
        &self,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelFile, RepositoryError> {
        self.read_back(|file, length| ModelFile::read_from(file, length, vocabulary))
            .map(|(model, _)| model)
    }

    /// Reads the written file as a PyTorch checkpoint.
    pub(super) fn read_torch_checkpoint(
        &self,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelFile, RepositoryError> {
        self.read_back(|file, _| torch_checkpoint::read(file, vocabulary))
    }

    fn read_back<T>(
        &self,
        read: impl FnOnce(File, u64) -> Result<T, ModelFileError>,
    ) -> Result<T, RepositoryError> {
        let path = self.path();
        let io = |source| RepositoryError::io(&path, source);
        let file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        read(file, length).map_err(|error| match error {
            ModelFileError::Io(source) => io(source),
            error => RepositoryError::NotAModel(error),
        })
    }

    /// Writes what int8 costs the model.
    pub(super) fn write_quantisation(
        &self,
        quantisation: &Quantisation,
    ) -> Result<(), RepositoryError> {
        write_quantisation(self.folder.path(), quantisation)
    }

    /// Writes the manifest, and makes the folder durable.
    pub(super) fn write_manifest(&self, contents: &Contents) -> Result<(), RepositoryError> {
        let path = self.folder.path().join(MANIFEST_FILE);
        manifest::to_text(contents)
            .map_err(io::Error::other)
            .and_then(|text| atomic_file::write(&path, &text))
            .map_err(|error| RepositoryError::io(&path, error))
    }
}

fn write_quantisation(folder: &Path, quantisation: &Quantisation) -> Result<(), RepositoryError> {
    let path = folder.join(QUANTISATION_FILE);
    quantisation
        .to_text()
        .map_err(io::Error::other)
        .and_then(|text| atomic_file::write(&path, &text))
        .map_err(|error| RepositoryError::io(&path, error))
}

/// Reads what int8 costs a version; `None` if it has to be measured.
fn read_quantisation(folder: &Path) -> Option<Quantisation> {
    let path = folder.join(QUANTISATION_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this file cannot be read; what int8 costs is measured again");
            return None;
        }
    };
    match Quantisation::from_text(&text) {
        Ok(quantisation) => quantisation,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this file is damaged; what int8 costs is measured again");
            None
        }
    }
}

/// Reads the manifest in a version's folder. The error says what is wrong.
fn describe(folder: &Path, id: &ModelId) -> Result<ModelDescription, String> {
    let text = fs::read(folder.join(MANIFEST_FILE))
        .map_err(|error| format!("its manifest cannot be read: {error}"))?;
    let mut description = manifest::parse(&text, id)?;
    let bytes = fs::metadata(folder.join(MODEL_FILE))
        .map_err(|error| format!("its file cannot be read: {error}"))?
        .len();
    if bytes != description.bytes {
        return Err(format!(
            "its file has {bytes} bytes, but {} were stored",
            description.bytes
        ));
    }
    description.quantisation = read_quantisation(folder);
    Ok(description)
}

/// Returns the folders in a folder, with their names. A name that is not UTF-8
/// gets replacement characters, which no valid name has.
fn folders(path: &Path) -> Result<Vec<(String, PathBuf)>, RepositoryError> {
    let io = |error| RepositoryError::io(path, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_type().map_err(io)?.is_dir() {
            let name: &OsStr = &entry.file_name();
            found.push((name.to_string_lossy().into_owned(), entry.path()));
        }
    }
    Ok(found)
}
