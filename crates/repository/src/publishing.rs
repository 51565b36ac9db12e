//! How a model becomes the next version of its name: a trained one, or a file that
//! is imported.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use charlstm_model::ModelId;
use charlstm_model::model_file::{Contents, ModelFile};
use charlstm_model::model_id::check_name;
use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_store::unix_time;

use super::index::Entry;
use super::storage::Staged;
use super::{ModelDescription, Publisher, Quantisation, Repository, RepositoryError, Upload};

/// Bytes of a file that are copied at a time.
const COPY_BYTES: usize = 1024 * 1024;

impl Repository {
    /// Stores a model as the next version of `name`, which belongs to the
    /// publisher from then on if it has no owner yet.
    ///
    /// # Errors
    /// `BadName`, `OtherOwner`, `VersionsUnknown`, `Io`, or `NotAModel` if the
    /// model cannot be read back. Nothing is left of it then.
    pub fn publish(
        &self,
        publisher: &Publisher,
        name: &str,
        file: &ModelFile,
    ) -> Result<ModelId, RepositoryError> {
        // Before the work, which takes seconds for a large model.
        self.check_publisher(name, publisher)?;
        let mut staged = self.shared.storage.stage()?;
        staged.write(file)?;
        let contents = staged.check(None)?;
        let quantisation = Quantisation::measure(&file.parameters);
        self.publish_staged(publisher, name, staged, contents, Some(quantisation))
    }

    /// Begins to store a file whose bytes arrive in pieces.
    ///
    /// # Errors
    /// `Io`.
    pub fn upload(&self) -> Result<Upload, RepositoryError> {
        Ok(Upload {
            staged: self.shared.storage.stage()?,
            bytes: 0,
            first: Vec::new(),
        })
    }

    /// Checks an uploaded file and stores it as the next version of `name`.
    /// `vocabulary` is needed for a file that contains none. For the publisher
    /// see [`Self::publish`].
    ///
    /// # Errors
    /// `BadName`, `NotAModel`, `OtherOwner`, `VersionsUnknown`, `Io`. Nothing is
    /// left of it then.
    pub fn import(
        &self,
        publisher: &Publisher,
        name: &str,
        upload: Upload,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let staged = upload.staged;
        let mut contents = staged.check(vocabulary)?;
        if !contents.has_metadata {
            // A stored file describes itself, so this one is rewritten.
            let mut model = torch_checkpoint::sorted(staged.read(vocabulary)?);
            drop(staged);
            model.metadata.created_unix_ms = unix_time::now_ms();
            return self.publish(publisher, name, &model);
        }
        // The training was on another server.
        contents.metadata.training_id.clear();
        // What int8 costs is measured when the model is first used: an import needs
        // little memory, whatever the size of the model.
        self.publish_staged(publisher, name, staged, contents, None)
    }

    /// Checks an uploaded PyTorch checkpoint of the notebook and stores it as
    /// the next version of `name`. Its form is recognised by its first bytes.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_torch_checkpoint(
        &self,
        publisher: &Publisher,
        name: &str,
        upload: Upload,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let mut model = upload.staged.read_torch_checkpoint(vocabulary)?;
        // Frees its space before the model is written.
        drop(upload);
        model.metadata.created_unix_ms = unix_time::now_ms();
        self.publish(publisher, name, &model)
    }

    /// Copies a file into the repository, as [`Self::import`].
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_file(
        &self,
        publisher: &Publisher,
        name: &str,
        path: &Path,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        let io = |source| RepositoryError::io(path, source);
        let mut upload = self.upload()?;
        let mut source = File::open(path).map_err(io)?;
        let mut chunk = vec![0; COPY_BYTES];
        loop {
            let count = source.read(&mut chunk).map_err(io)?;
            if count == 0 {
                break;
            }
            upload.append(&chunk[..count])?;
        }
        self.import(publisher, name, upload, vocabulary)
    }

    /// Assigns the next version number to a checked file and moves it into
    /// place.
    fn publish_staged(
        &self,
        publisher: &Publisher,
        name: &str,
        staged: Staged,
        contents: Contents,
        quantisation: Option<Quantisation>,
    ) -> Result<ModelId, RepositoryError> {
        if let Some(sharing) = &self.shared.sharing {
            return self.publish_shared(sharing, publisher, name, staged, contents, quantisation);
        }
        if let Some(quantisation) = &quantisation {
            staged.write_quantisation(quantisation)?;
        }
        staged.write_manifest(&contents)?;
        let _changing = self.changing();
        // Again, now that nobody else can publish: the upload took its time.
        self.check_publisher(name, publisher)?;
        let next = self.index().last_version(name)? + 1;
        let owner = &publisher.owner;
        if self.owner(name).is_none() && self.index().recorded_owner(name) != *owner {
            self.shared.storage.write_owner(name, owner)?;
            self.index().record_owner(name, owner.clone());
        }
        let id = self.shared.storage.publish_staged(name, next, staged)?;
        self.insert_published(&id, contents, quantisation);
        Ok(id)
    }

    /// Adds a version that was published to the index.
    pub(crate) fn insert_published(
        &self,
        id: &ModelId,
        contents: Contents,
        quantisation: Option<Quantisation>,
    ) {
        tracing::info!(model = %id, "a model version was published");
        if let Some(quantisation) = &quantisation {
            quantisation.report(id);
        }
        let description = ModelDescription {
            id: id.clone(),
            digest: contents.sha256,
            bytes: contents.bytes,
            architecture: contents.architecture,
            vocabulary: contents.vocabulary.characters().iter().collect(),
            metadata: contents.metadata,
            quantisation,
        };
        self.index()
            .insert(id.clone(), Entry::Sound(Arc::new(description)));
    }
}
