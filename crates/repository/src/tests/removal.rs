//! Versions that are removed.

use std::io::Read;

use super::*;

#[test]
fn the_number_of_a_removed_version_is_not_reused() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    publish(&repository, "a", 0.1);
    publish(&repository, "a", 0.2);
    repository.remove(&id("a", 2)).unwrap();
    repository.remove(&id("a", 1)).unwrap();
    assert!(repository.resolve("a").is_err());
    assert_eq!(repository.count(), 0);
    drop(repository);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(publish(&repository, "a", 0.3), id("a", 3));
    assert_eq!(staged_entries(&folder), 0);
}

#[test]
fn a_removed_version_stays_usable_for_callers_that_loaded_it_and_is_not_found_by_others() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
    let loaded = repository.load(&a, None).unwrap();
    repository.remove(&a).unwrap();
    let error = repository.load(&a, None).unwrap_err();
    assert!(matches!(error, RepositoryError::NotFound { .. }));
    assert!(repository.remove(&a).is_err());
    assert_eq!(loaded.id, a);
}

#[test]
fn an_open_file_stays_readable_after_its_version_is_removed() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
    let (mut file, description) = repository.open_file(&a).unwrap();
    repository.remove(&a).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, description.bytes);
}

#[test]
fn a_version_that_was_removed_is_not_listed_as_damaged_later() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
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
fn an_unreadable_record_of_removed_versions_blocks_new_versions_of_that_name_only() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    publish(&repository, "a", 0.1);
    publish(&repository, "a", 0.2);
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
    publish(&repository, "b", 0.1);
    // Its removal must not lose the number either.
    repository.remove(&id("a", 1)).unwrap();
    drop(repository);
    fs::write(&record, "2").unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(publish(&repository, "a", 0.3), id("a", 3));
}

#[test]
fn a_removal_that_a_crash_or_a_full_disk_interrupts_keeps_the_number() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    publish(&repository, "a", 0.1);
    publish(&repository, "a", 0.2);
    // A folder in the place of the record: the file cannot be written.
    let record = models(&folder).join("a/last_version");
    fs::create_dir_all(record.join("x")).unwrap();
    repository.remove(&id("a", 2)).unwrap();
    assert!(!models(&folder).join("a/2").exists());
    assert!(!file_of(&folder, &id("a", 2)).exists(), "its space is free");
    fs::remove_dir_all(&record).unwrap();
    // A crash before anything was freed.
    copy_folder(
        &models(&folder).join("a/1"),
        &models(&folder).join("a/5.removed"),
    )
    .unwrap();
    drop(repository);
    for _ in 0..2 {
        let repository = Repository::open(folder.path()).unwrap();
        assert_eq!(repository.versions("a"), [1]);
        assert!(repository.damaged().is_empty());
        assert!(!models(&folder).join("a/5.removed").exists());
        assert!(!models(&folder).join("a/2.removed").exists());
    }
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(publish(&repository, "a", 0.3), id("a", 6));
}

#[test]
fn a_removal_that_cannot_be_made_durable_is_reported_and_the_version_stays() {
    let folder = TempDir::new().unwrap();
    let mut repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
    let fail = |_: &Path| Err(std::io::Error::other("a test says so"));
    Arc::get_mut(&mut repository.shared)
        .unwrap()
        .storage
        .sync_folder = fail;
    assert!(repository.remove(&a).is_err());
    repository.load(&a, None).unwrap();
}
