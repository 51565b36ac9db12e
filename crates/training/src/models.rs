//! Where trainings find models to start from and publish what they trained: a
//! trait, and its implementation by the repository.

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::ModelFile;
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{ModelId, Publisher, Repository, RepositoryError};
use charlstm_store::unix_time;

/// A model to start from, without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialModelInfo {
    /// Its name and version, as `name@version`.
    pub id: String,
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// The shape of its network.
    pub architecture: Architecture,
}

/// A model to start from.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialModel {
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// Its weights.
    pub parameters: Parameters,
}

/// A version that a training has published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// The version.
    pub version: u64,
    /// Epochs that it was trained for.
    pub epoch: u32,
    /// Its mean training loss, in nats per character.
    pub train_loss: Option<f64>,
    /// Its validation loss, in nats per character.
    pub validation_loss: Option<f64>,
}

/// Where models are found and published. All methods block.
pub trait Models: Send + Sync {
    /// Describes the model that `name` or `name@version` means.
    ///
    /// # Errors
    /// The model is unknown or damaged.
    fn describe(&self, reference: &str) -> Result<InitialModelInfo, RepositoryError>;

    /// Reads the model that `name@version` means.
    ///
    /// # Errors
    /// The model is unknown, damaged, or cannot be read.
    fn read(&self, reference: &str) -> Result<InitialModel, RepositoryError>;

    /// Checks that a principal may publish under a name.
    ///
    /// # Errors
    /// The name belongs to another principal.
    fn check_publisher(&self, name: &str, publisher: &Publisher) -> Result<(), RepositoryError>;

    /// Stores a model as the next version of its name, with the current time
    /// as that of its creation. Returns the version.
    ///
    /// # Errors
    /// The disk does not accept it, or the name belongs to another principal;
    /// nothing is left of it then.
    fn publish(
        &self,
        publisher: &Publisher,
        name: &str,
        model: &mut ModelFile,
    ) -> Result<u64, RepositoryError>;

    /// Returns the version of a name that a training has published, if it has
    /// and the version still exists.
    ///
    /// # Errors
    /// The models cannot be listed.
    fn published_by(
        &self,
        name: &str,
        training_id: &str,
    ) -> Result<Option<Published>, RepositoryError>;
}

impl Models for Repository {
    fn describe(&self, reference: &str) -> Result<InitialModelInfo, RepositoryError> {
        let description = Repository::describe(self, &self.resolve(reference)?)?;
        Ok(InitialModelInfo {
            id: description.id.to_string(),
            vocabulary: Vocabulary::from_chars(description.vocabulary.chars().collect()),
            architecture: description.architecture,
        })
    }

    fn read(&self, reference: &str) -> Result<InitialModel, RepositoryError> {
        let model = Repository::read(self, &self.resolve(reference)?)?;
        Ok(InitialModel {
            vocabulary: model.vocabulary,
            parameters: model.parameters,
        })
    }

    fn check_publisher(&self, name: &str, publisher: &Publisher) -> Result<(), RepositoryError> {
        Repository::check_publisher(self, name, publisher)
    }

    fn publish(
        &self,
        publisher: &Publisher,
        name: &str,
        model: &mut ModelFile,
    ) -> Result<u64, RepositoryError> {
        model.metadata.created_unix_ms = unix_time::now_ms();
        Ok(Repository::publish(self, publisher, name, model)?.version)
    }

    fn published_by(
        &self,
        name: &str,
        training_id: &str,
    ) -> Result<Option<Published>, RepositoryError> {
        // Another replica may have trained it before.
        self.refresh()?;
        for version in self.versions(name) {
            let id = ModelId {
                name: name.to_owned(),
                version,
            };
            match Repository::describe(self, &id) {
                Ok(model) if model.metadata.training_id == training_id => {
                    return Ok(Some(Published {
                        version,
                        epoch: model.metadata.epochs,
                        train_loss: model.metadata.train_loss,
                        validation_loss: model.metadata.validation_loss,
                    }));
                }
                // One that was deleted or damaged meanwhile is not the one.
                Ok(_) | Err(RepositoryError::NotFound { .. } | RepositoryError::Damaged { .. }) => {
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
