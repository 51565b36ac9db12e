#![allow(clippy::unwrap_used)]

mod damage;
mod imports;
mod loading;
mod names;
mod owners;
mod quantisation;
mod removal;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use charlstm_model::model_file::ModelFile;
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_store::folder_copy::copy_folder;

fn model(seed: f32) -> ModelFile {
    let vocabulary = Vocabulary::of("abc".chars());
    let mut parameters = Parameters::zeros(Architecture {
        vocabulary_size: vocabulary.len(),
        hidden_size: 2,
        num_layers: 1,
    });
    parameters.values.fill(seed);
    ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata {
            training_id: "t-1".to_owned(),
            train_loss: Some(1.5),
            precision: String::new(),
            created_unix_ms: 7,
            ..ModelMetadata::default()
        },
    }
}

/// Publishes a model whose parameters all have this value.
fn publish(repository: &Repository, name: &str, value: f32) -> ModelId {
    let published = repository.publish(&Publisher::admin(), name, &model(value));
    published.unwrap()
}

fn id(name: &str, version: u64) -> ModelId {
    ModelId {
        name: name.to_owned(),
        version,
    }
}

fn file_of(folder: &TempDir, id: &ModelId) -> PathBuf {
    let version = id.version.to_string();
    let path = folder.path().join("models").join(&id.name).join(version);
    path.join("model.safetensors")
}

fn models(folder: &TempDir) -> PathBuf {
    folder.path().join("models")
}

fn staged_entries(folder: &TempDir) -> usize {
    fs::read_dir(folder.path().join("models/.staging"))
        .unwrap()
        .count()
}
