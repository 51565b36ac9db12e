//! Damaged and unfinished versions, and files that others have put there.

use super::*;

#[test]
fn a_truncated_file_is_reported_and_its_name_means_an_older_version() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    publish(&repository, "a", 0.1);
    let newest = publish(&repository, "a", 0.2);
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
    assert_eq!(publish(&repository, "a", 0.3), id("a", 3));
    repository.remove(&newest).unwrap();
    assert!(repository.damaged().is_empty());
}

#[test]
fn an_altered_byte_is_found_when_the_model_is_loaded() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
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
fn a_folder_that_another_program_put_there_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let foreign = folder.path().join("models/a/1");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("note"), "mine").unwrap();
    assert_eq!(publish(&repository, "a", 0.1), id("a", 2));
    assert_eq!(fs::read(foreign.join("note")).unwrap(), b"mine");
}

#[test]
fn a_changed_bit_in_a_manifest_is_found() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    publish(&repository, "a", 0.1);
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
    assert_eq!(publish(&repository, "a", 0.1), id("a", 1));
}

#[test]
fn a_file_in_the_place_of_a_version_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    fs::create_dir_all(models(&folder).join("a")).unwrap();
    fs::write(models(&folder).join("a/1"), "mine").unwrap();
    assert_eq!(publish(&repository, "a", 0.1), id("a", 2));
    assert_eq!(fs::read(models(&folder).join("a/1")).unwrap(), b"mine");
}
