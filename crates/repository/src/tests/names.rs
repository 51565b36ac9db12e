//! Names, versions and references.

use std::sync::Barrier;
use std::thread;

use super::*;

#[test]
fn versions_are_numbered_upwards_and_a_name_means_the_latest() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(publish(&repository, "a", 0.1), id("a", 1));
    assert_eq!(publish(&repository, "a", 0.2), id("a", 2));
    assert_eq!(publish(&repository, "b", 0.3), id("b", 1));
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
    let a = publish(&published, "a", 0.1);
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
    publish(&repository, "a", 0.1);
    publish(&repository, "a", 0.1);
    assert_eq!(repository.resolve("").unwrap(), id("a", 2));
    publish(&repository, "b", 0.1);
    let error = repository.resolve("").unwrap_err().to_string();
    assert_eq!(error, "no model was named, and there are several: a, b");
}

#[test]
fn the_error_for_an_unknown_model_lists_those_that_exist() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let error = |reference| repository.resolve(reference).unwrap_err().to_string();
    assert_eq!(error("x"), "there is no model \"x\"; available: none yet");
    publish(&repository, "a", 0.1);
    assert_eq!(error("x"), "there is no model \"x\"; available: a");
    assert_eq!(error("a@7"), "there is no model \"a@7\"; available: a@1");
    publish(&repository, "book", 0.1);
    assert_eq!(
        error("bok"),
        "there is no model \"bok\"; available: book, a"
    );
    assert!(error("../a").contains("invalid model name"));
    assert!(error("a@x").contains("invalid model \"a@x\""));
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
                    publish(&repository, "a", n as f32).version
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
fn ten_thousand_versions_are_listed_without_opening_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let first = publish(&repository, "a", 1.0);
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
    copy_folder(&golden, &models(&folder)).unwrap();
    copy_folder(&golden.join("three/1"), &models(&folder).join("removed/1")).unwrap();
    fs::write(models(&folder).join("removed/last_version"), "3\n").unwrap();
    folder
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
    assert_eq!(publish(&repository, "removed", 0.1), id("removed", 4));
}

#[test]
fn an_empty_reference_never_means_another_model_because_one_is_damaged() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
    publish(&repository, "b", 0.2);
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
