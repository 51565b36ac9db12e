#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

use super::quantisation::StoredQuantisation;
use super::*;
use charlstm_model::parameters::Parameters;
use charlstm_store::checksummed_json;

mod owners;

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
            created_unix_ms: 7,
            ..ModelMetadata::default()
        },
    }
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

#[test]
fn versions_are_numbered_upwards_and_a_name_means_the_latest() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.1))
            .unwrap(),
        id("a", 1)
    );
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.2))
            .unwrap(),
        id("a", 2)
    );
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "b", &model(0.3))
            .unwrap(),
        id("b", 1)
    );
    assert_eq!(repository.resolve("a").unwrap(), id("a", 2));
    assert_eq!(repository.resolve("a@latest").unwrap(), id("a", 2));
    assert_eq!(repository.resolve("a@1").unwrap(), id("a", 1));
    assert_eq!(repository.versions("a"), [1, 2]);
    assert_eq!(repository.count(), 2);
    let listed: Vec<ModelId> = repository.list().iter().map(|d| d.id.clone()).collect();
    assert_eq!(listed, [id("a", 2), id("b", 1)]);
}

#[test]
fn models_exist_after_the_folder_is_opened_again() {
    let folder = TempDir::new().unwrap();
    let published = Repository::open(folder.path()).unwrap();
    let a = published
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let before = published.describe(&a).unwrap();
    drop(published);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.describe(&a).unwrap(), before);
    assert_eq!(before.metadata, model(0.1).metadata);
    assert_eq!(before.vocabulary, "abc");
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.digest, before.digest);
    assert_eq!(loaded.vocabulary, model(0.1).vocabulary);
}

#[test]
fn the_empty_reference_means_the_only_model() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let error = repository.resolve("").unwrap_err();
    assert!(matches!(error, RepositoryError::NoModels));
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    assert_eq!(repository.resolve("").unwrap(), id("a", 2));
    repository
        .publish(&Publisher::admin(), "b", &model(0.1))
        .unwrap();
    let error = repository.resolve("").unwrap_err().to_string();
    assert_eq!(error, "no model was named, and there are several: a, b");
}

#[test]
fn the_error_for_an_unknown_model_lists_those_that_exist() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let error = |reference| repository.resolve(reference).unwrap_err().to_string();
    assert_eq!(error("x"), "there is no model \"x\"; available: none yet");
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    assert_eq!(error("x"), "there is no model \"x\"; available: a");
    assert_eq!(error("a@7"), "there is no model \"a@7\"; available: a@1");
    repository
        .publish(&Publisher::admin(), "book", &model(0.1))
        .unwrap();
    assert_eq!(
        error("bok"),
        "there is no model \"bok\"; available: book, a"
    );
    assert!(error("../a").contains("invalid model name"));
    assert!(error("a@x").contains("invalid model \"a@x\""));
}

#[test]
fn the_number_of_a_removed_version_is_not_reused() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.2))
        .unwrap();
    repository.remove(&id("a", 2)).unwrap();
    repository.remove(&id("a", 1)).unwrap();
    assert!(repository.resolve("a").is_err());
    assert_eq!(repository.count(), 0);
    drop(repository);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.3))
            .unwrap(),
        id("a", 3)
    );
    assert_eq!(staged_entries(&folder), 0);
}

#[test]
fn a_removed_version_stays_usable_for_callers_that_loaded_it_and_is_not_found_by_others() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let loaded = repository.load(&a, None).unwrap();
    repository.remove(&a).unwrap();
    let error = repository.load(&a, None).unwrap_err();
    assert!(matches!(error, RepositoryError::NotFound { .. }));
    assert!(repository.remove(&a).is_err());
    assert_eq!(loaded.id, a);
}

#[test]
fn a_truncated_file_is_reported_and_its_name_means_an_older_version() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let newest = repository
        .publish(&Publisher::admin(), "a", &model(0.2))
        .unwrap();
    drop(repository);
    let path = file_of(&folder, &newest);
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(length - 1).unwrap();

    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.resolve("a").unwrap(), id("a", 1));
    let error = repository.resolve("a@2").unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(repository.damaged()[0].id, newest);
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.3))
            .unwrap(),
        id("a", 3)
    );
    repository.remove(&newest).unwrap();
    assert!(repository.damaged().is_empty());
}

#[test]
fn an_altered_byte_is_found_when_the_model_is_loaded() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let path = file_of(&folder, &a);
    let mut bytes = fs::read(&path).unwrap();
    // The lowest bit of a weight: the file stays valid, with the same length.
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = repository.load(&a, None).unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
    assert_eq!(repository.damaged().len(), 1);
    assert!(repository.resolve("a").is_err());
}

#[test]
fn a_version_without_a_manifest_is_not_served() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("models/a/1")).unwrap();
    fs::create_dir_all(folder.path().join("models/b/1")).unwrap();
    fs::write(folder.path().join("models/b/1/manifest.json"), "{").unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.damaged().len(), 2);
    assert!(repository.list().is_empty());
}

#[test]
fn leftovers_of_an_interrupted_write_are_removed_at_startup() {
    let folder = TempDir::new().unwrap();
    let left = folder.path().join("models/.staging/version-x");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("model.safetensors"), "half").unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(staged_entries(&folder), 0);
    assert!(repository.damaged().is_empty());
}

#[test]
fn concurrent_publishers_get_a_version_each() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let barrier = Barrier::new(4);
    let mut versions: Vec<u64> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|n| {
                let (repository, barrier) = (repository.clone(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    repository
                        .publish(&Publisher::admin(), "a", &model(n as f32))
                        .unwrap()
                        .version
                })
            })
            .collect();
        publishers.into_iter().map(|p| p.join().unwrap()).collect()
    });
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4]);
    assert_eq!(
        Repository::open(folder.path()).unwrap().versions("a"),
        [1, 2, 3, 4]
    );
}

#[test]
fn a_folder_that_another_program_put_there_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let foreign = folder.path().join("models/a/1");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("note"), "mine").unwrap();
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.1))
            .unwrap(),
        id("a", 2)
    );
    assert_eq!(fs::read(foreign.join("note")).unwrap(), b"mine");
}

#[test]
fn concurrent_loads_of_a_version_share_it() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let barrier = Barrier::new(4);
    let loaded: Vec<Arc<LoadedModel>> = thread::scope(|scope| {
        let loaders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    repository.load(&a, None).unwrap()
                })
            })
            .collect();
        loaders.into_iter().map(|l| l.join().unwrap()).collect()
    });
    assert!(loaded.iter().all(|one| Arc::ptr_eq(one, &loaded[0])));
    assert_eq!(repository.loaded().len(), 1);
}

#[test]
fn an_imported_model_has_no_training_on_this_server() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let mut upload = repository.upload().unwrap();
    upload.append(&model(0.1).to_bytes().unwrap()).unwrap();
    let a = repository
        .import(&Publisher::admin(), "a", upload, None)
        .unwrap();
    let description = repository.describe(&a).unwrap();
    assert_eq!(description.metadata.training_id, "");
    assert_eq!(description.metadata.train_loss, Some(1.5));
    repository.load(&a, None).unwrap();

    let source = folder.path().join("source");
    fs::write(&source, model(0.2).to_bytes().unwrap()).unwrap();
    assert_eq!(
        repository
            .import_file(&Publisher::admin(), "a", &source, None)
            .unwrap(),
        id("a", 2)
    );
}

#[test]
fn an_upload_that_is_not_a_model_or_is_dropped_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let mut upload = repository.upload().unwrap();
    upload.append(b"this is not a model").unwrap();
    let error = repository
        .import(&Publisher::admin(), "a", upload, None)
        .unwrap_err();
    assert!(matches!(error, RepositoryError::NotAModel(_)), "{error}");
    drop(repository.upload().unwrap());
    assert_eq!(staged_entries(&folder), 0);
    assert!(repository.list().is_empty());
}

#[test]
fn an_open_file_stays_readable_after_its_version_is_removed() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let (mut file, description) = repository.open_file(&a).unwrap();
    repository.remove(&a).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, description.bytes);
}

#[test]
fn ten_thousand_versions_are_listed_without_opening_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let first = repository
        .publish(&Publisher::admin(), "a", &model(1.0))
        .unwrap();
    let manifest = folder.path().join("models/a/1/manifest.json");
    let file = file_of(&folder, &first);
    for version in 2..=10_000 {
        let version = folder.path().join(format!("models/a/{version}"));
        std::fs::create_dir(&version).unwrap();
        std::fs::hard_link(&manifest, version.join("manifest.json")).unwrap();
        std::fs::hard_link(&file, version.join("model.safetensors")).unwrap();
    }
    let repository = Repository::open(folder.path()).unwrap();
    // From here on, no answer can come from the disk.
    std::fs::remove_dir_all(folder.path().join("models")).unwrap();
    let listed = repository.list();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, id("a", 10_000));
    assert_eq!(repository.versions("a").len(), 10_000);
    assert_eq!(repository.resolve("a@77").unwrap(), id("a", 77));
    assert_eq!(repository.describe(&id("a", 77)).unwrap().id.version, 77);
}

/// The data folder of version 0.1, with another model whose versions 2 and 3
/// were removed by that version.
fn version_0_1() -> TempDir {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data-0.1/models");
    let folder = TempDir::new().unwrap();
    copy(&golden, &models(&folder));
    copy(&golden.join("three/1"), &models(&folder).join("removed/1"));
    fs::write(models(&folder).join("removed/last_version"), "3\n").unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn models_of_version_0_1_are_read_as_they_are() {
    let folder = version_0_1();
    let repository = Repository::open(folder.path()).unwrap();
    assert!(repository.damaged().is_empty());
    let listed: Vec<ModelId> = repository.list().iter().map(|d| d.id.clone()).collect();
    assert_eq!(listed, [id("removed", 1), id("small", 2), id("three", 1)]);
    for model in [id("small", 1), id("small", 2), id("three", 1)] {
        let description = repository.describe(&model).unwrap();
        assert!(!description.metadata.training_id.is_empty());
        assert_eq!(
            repository.load(&model, None).unwrap().digest,
            description.digest
        );
    }
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "removed", &model(0.1))
            .unwrap(),
        id("removed", 4)
    );
}

#[test]
fn a_changed_bit_in_a_manifest_is_found() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    drop(repository);
    let manifest = models(&folder).join("a/1/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    // Another loss, which only the checksum shows.
    assert!(text.contains("1.5"));
    fs::write(&manifest, text.replace("1.5", "1.4")).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let error = repository.resolve("a").unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
}

#[test]
fn an_empty_reference_never_means_another_model_because_one_is_damaged() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    repository
        .publish(&Publisher::admin(), "b", &model(0.2))
        .unwrap();
    repository.mark_damaged(&a, "a test says so");
    let error = repository.resolve("").unwrap_err();
    assert!(
        matches!(error, RepositoryError::Ambiguous { .. }),
        "{error}"
    );
    repository.remove(&id("b", 1)).unwrap();
    let error = repository.resolve("").unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
}

#[test]
fn a_version_that_was_removed_is_not_listed_as_damaged_later() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    repository.remove(&a).unwrap();
    // An export of its open file finds other bytes.
    repository.mark_damaged(&a, "a test says so");
    assert!(repository.damaged().is_empty());
    assert!(matches!(
        repository.resolve("a@1"),
        Err(RepositoryError::NotFound { .. })
    ));
}

#[test]
fn a_version_that_is_removed_while_it_is_loaded_is_not_kept_in_memory() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let description = repository.describe(&a).unwrap();
    let loaded = repository
        .shared
        .cache
        .get_or_load(
            &(a.clone(), Precision::Int8),
            || {
                let loaded = repository.load_weights(&description, Precision::Int8);
                repository.remove(&a).unwrap();
                loaded
            },
            || repository.describe(&a).is_ok(),
        )
        .unwrap();
    drop(loaded);
    assert!(repository.loaded().is_empty());
}

#[test]
fn an_unreadable_record_of_removed_versions_blocks_new_versions_of_that_name_only() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.2))
        .unwrap();
    repository.remove(&id("a", 2)).unwrap();
    drop(repository);
    let record = models(&folder).join("a/last_version");
    fs::write(&record, "2x").unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let error = repository
        .publish(&Publisher::admin(), "a", &model(0.3))
        .unwrap_err();
    assert!(
        error.to_string().contains("models/a/last_version"),
        "{error}"
    );
    assert_eq!(repository.resolve("a").unwrap(), id("a", 1));
    repository.load(&id("a", 1), None).unwrap();
    repository
        .publish(&Publisher::admin(), "b", &model(0.1))
        .unwrap();
    // Its removal must not lose the number either.
    repository.remove(&id("a", 1)).unwrap();
    drop(repository);
    fs::write(&record, "2").unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.3))
            .unwrap(),
        id("a", 3)
    );
}

#[test]
fn a_removal_that_a_crash_or_a_full_disk_interrupts_keeps_the_number() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    repository
        .publish(&Publisher::admin(), "a", &model(0.2))
        .unwrap();
    // A folder in the place of the record: the file cannot be written.
    let record = models(&folder).join("a/last_version");
    fs::create_dir_all(record.join("x")).unwrap();
    repository.remove(&id("a", 2)).unwrap();
    assert!(!models(&folder).join("a/2").exists());
    assert!(!file_of(&folder, &id("a", 2)).exists(), "its space is free");
    fs::remove_dir_all(&record).unwrap();
    // A crash before anything was freed.
    copy(
        &models(&folder).join("a/1"),
        &models(&folder).join("a/5.removed"),
    );
    drop(repository);
    for _ in 0..2 {
        let repository = Repository::open(folder.path()).unwrap();
        assert_eq!(repository.versions("a"), [1]);
        assert!(repository.damaged().is_empty());
        assert!(!models(&folder).join("a/5.removed").exists());
        assert!(!models(&folder).join("a/2.removed").exists());
    }
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.3))
            .unwrap(),
        id("a", 6)
    );
}

#[test]
fn a_version_that_cannot_be_made_durable_does_not_exist_and_appears_at_no_later_start() {
    let folder = TempDir::new().unwrap();
    let mut repository = Repository::open(folder.path()).unwrap();
    let fail = |_: &Path| Err(std::io::Error::other("a test says so"));
    Arc::get_mut(&mut repository.shared)
        .unwrap()
        .storage
        .sync_folder = fail;
    let error = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap_err();
    assert!(matches!(error, RepositoryError::Io { .. }), "{error}");
    assert!(repository.list().is_empty());
    assert!(!models(&folder).join("a/1").exists());
    assert_eq!(staged_entries(&folder), 0);
    drop(repository);
    let repository = Repository::open(folder.path()).unwrap();
    assert!(repository.list().is_empty());
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.1))
            .unwrap(),
        id("a", 1)
    );
}

#[test]
fn a_removal_that_cannot_be_made_durable_is_reported_and_the_version_stays() {
    let folder = TempDir::new().unwrap();
    let mut repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let fail = |_: &Path| Err(std::io::Error::other("a test says so"));
    Arc::get_mut(&mut repository.shared)
        .unwrap()
        .storage
        .sync_folder = fail;
    assert!(repository.remove(&a).is_err());
    repository.load(&a, None).unwrap();
}

#[test]
fn a_file_in_the_place_of_a_version_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    fs::create_dir_all(models(&folder).join("a")).unwrap();
    fs::write(models(&folder).join("a/1"), "mine").unwrap();
    assert_eq!(
        repository
            .publish(&Publisher::admin(), "a", &model(0.1))
            .unwrap(),
        id("a", 2)
    );
    assert_eq!(fs::read(models(&folder).join("a/1")).unwrap(), b"mine");
}

fn quantisation_file(folder: &TempDir) -> PathBuf {
    models(folder).join("a/1/quantisation.json")
}

/// A model that rounding to int8 changes too much.
fn sensitive_model() -> ModelFile {
    let mut model = model(0.1);
    model.parameters.values[20] = f32::MAX;
    model
}

#[test]
fn the_cost_of_int8_is_measured_once_and_stored_next_to_the_version() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    let measured = repository.describe(&a).unwrap().quantisation.clone();
    assert_eq!(measured.as_ref().unwrap().objection(), None);
    let stored = fs::read(quantisation_file(&folder)).unwrap();

    // As version 0.1 has left it: it is measured at the first use.
    drop(repository);
    fs::remove_file(quantisation_file(&folder)).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.describe(&a).unwrap().quantisation, None);
    assert!(repository.get_loaded(&a, None).is_none());
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Int8);
    assert_eq!(repository.describe(&a).unwrap().quantisation, measured);
    assert_eq!(fs::read(quantisation_file(&folder)).unwrap(), stored);

    // What is stored decides: it is not measured again.
    drop(repository);
    let objection = Quantisation::Unsupported("a test says so".to_owned());
    let text = checksummed_json::to_text(&StoredQuantisation::new(objection)).unwrap();
    fs::write(quantisation_file(&folder), text).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Float32);

    // A flipped bit is found.
    drop(repository);
    let mut text = stored.clone();
    let at = text.windows(5).position(|w| w == b"int8\"").unwrap();
    text[at + 8] ^= 1;
    fs::write(quantisation_file(&folder), text).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(repository.describe(&a).unwrap().quantisation, None);
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Int8);
    assert_eq!(fs::read(quantisation_file(&folder)).unwrap(), stored);
}

#[test]
fn a_version_that_int8_cannot_compute_runs_in_float32_and_int8_is_refused() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &sensitive_model())
        .unwrap();
    let description = repository.describe(&a).unwrap();
    assert_eq!(repository.precision(&description), Some(Precision::Float32));
    let loaded = repository.load(&a, None).unwrap();
    assert_eq!(loaded.precision(), Precision::Float32);
    let error = repository.load(&a, Some(Precision::Int8)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("model a@1 is not computed in int8: int8 cannot compute it: element"),
        "{error}"
    );
    // The check applies on servers of either precision.
    let devices = DecodeDevices {
        precision: Precision::Float32,
        ..DecodeDevices::default()
    };
    drop(repository);
    let repository = Repository::open_for(folder.path(), devices).unwrap();
    repository.load(&a, None).unwrap();
    assert!(repository.load(&a, Some(Precision::Int8)).is_err());
}

#[test]
fn a_version_is_loaded_in_each_precision_separately_and_dropped_in_both() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = repository
        .publish(&Publisher::admin(), "a", &model(0.1))
        .unwrap();
    for precision in [Precision::Int8, Precision::Float32] {
        let loaded = repository.load(&a, Some(precision)).unwrap();
        assert_eq!(loaded.precision(), precision);
        let again = repository.get_loaded(&a, Some(precision)).unwrap();
        assert!(Arc::ptr_eq(&again, &loaded));
    }
    assert_eq!(repository.loaded().len(), 2);
    repository.remove(&a).unwrap();
    assert!(repository.loaded().is_empty());
}
