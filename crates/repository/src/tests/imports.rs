//! Uploaded files.

use super::*;

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
