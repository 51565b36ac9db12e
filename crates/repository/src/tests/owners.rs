//! Who owns a name.

use super::*;

fn publisher(name: &str) -> Publisher {
    Publisher {
        owner: Owner::new(name).unwrap(),
        is_admin: false,
    }
}

fn owner(repository: &Repository, name: &str) -> Option<String> {
    repository.owner(name).map(String::from)
}

#[test]
fn a_name_belongs_to_the_first_publisher_also_after_a_restart_and_its_deletion() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let (alice, bob) = (publisher("alice"), publisher("bob"));
    assert_eq!(owner(&repository, "book"), None);
    repository.publish(&alice, "book", &model(0.1)).unwrap();
    assert_eq!(owner(&repository, "book").as_deref(), Some("alice"));
    let rejected = |repository: &Repository| {
        let error = repository.publish(&bob, "book", &model(0.2)).unwrap_err();
        assert!(error.to_string().contains("belongs to the principal alice"));
        assert!(repository.check_publisher("book", &bob).is_err());
    };
    rejected(&repository);
    repository.publish(&alice, "book", &model(0.2)).unwrap();
    // An administrator may, and the name stays with its owner.
    publish(&repository, "book", 0.3);
    assert_eq!(repository.versions("book"), [1, 2, 3]);
    for version in 1..=3 {
        repository.remove(&id("book", version)).unwrap();
    }
    rejected(&repository);
    drop(repository);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(owner(&repository, "book").as_deref(), Some("alice"));
    rejected(&repository);
    assert_eq!(staged_entries(&folder), 0);
}

#[test]
fn what_was_published_without_principals_belongs_to_admin() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let admin = Publisher::admin();
    repository.publish(&admin, "book", &model(0.1)).unwrap();
    assert!(!models(&folder).join("book/owner").exists());
    drop(repository);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(owner(&repository, "book").as_deref(), Some("admin"));
    let alice = publisher("alice");
    assert!(repository.publish(&alice, "book", &model(0.1)).is_err());
}

#[test]
fn a_publication_that_failed_leaves_no_owner() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(models(&folder).join("book")).unwrap();
    fs::write(models(&folder).join("book/owner"), "alice\n").unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(owner(&repository, "book"), None);
    publish(&repository, "book", 0.1);
    drop(repository);
    let repository = Repository::open(folder.path()).unwrap();
    assert_eq!(owner(&repository, "book").as_deref(), Some("admin"));
}
