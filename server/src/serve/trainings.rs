//! Opens the trainings, those of the data folder or those that replicas share.

use std::path::Path;
use std::sync::Arc;

use charlstm_model::learner::LearnerFactory;
use charlstm_replicas::registry::Registry;
use charlstm_repository::Repository;
use charlstm_training::jobs::{Jobs, JobsConfig};
use charlstm_training::sample;

use super::ServeError;
use super::prepared::Prepared;
use super::shared_storage::{CACHE, SharedStorage};
use crate::config::Config;
use crate::data_folder::TRAININGS;
use crate::devices;

/// Opens the trainings of the data folder and, if configured, resumes the
/// interrupted ones. Blocks.
///
/// # Errors
/// `File`.
pub(super) fn open(
    config: &Config,
    prepared: &Prepared,
    repository: &Repository,
) -> Result<Jobs, ServeError> {
    let folder = config.data_dir.join(TRAININGS);
    let jobs = Jobs::open(
        jobs_config(config, &folder),
        learners(config, prepared),
        Arc::new(repository.clone()),
        Box::new(sample::write),
    );
    let jobs = jobs.map_err(ServeError::file(&folder))?;
    if config.resume_interrupted {
        jobs.resume_interrupted();
    }
    Ok(jobs)
}

fn learners(config: &Config, prepared: &Prepared) -> Arc<dyn LearnerFactory> {
    devices::learners(
        prepared.device,
        config.threads,
        prepared.kernels.float32,
        config.gpu_math,
    )
}

/// Opens the trainings that replicas share, and runs what this replica claims.
/// Blocks on the network.
///
/// # Errors
/// `File`.
pub(super) fn open_shared(
    config: &Config,
    prepared: &Prepared,
    repository: &Repository,
    storage: &SharedStorage,
    registry: &Registry,
) -> Result<Jobs, ServeError> {
    let folder = config.data_dir.join(CACHE).join(TRAININGS);
    let trainings = storage.trainings(&registry.info().name);
    let jobs = Jobs::open_shared(
        jobs_config(config, &folder),
        learners(config, prepared),
        Arc::new(repository.clone()),
        Box::new(sample::write),
        Arc::new(trainings.following(registry.changes().clone())),
    );
    jobs.map_err(ServeError::file(&folder))
}

fn jobs_config(config: &Config, folder: &Path) -> JobsConfig {
    JobsConfig {
        keep_ended: config.keep_trainings,
        tensorboard: config.tensorboard,
        ..JobsConfig::new(folder.to_owned())
    }
}
