//! Versions in memory.

use std::sync::Barrier;
use std::thread;

use super::*;

#[test]
fn concurrent_loads_of_a_version_share_it() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
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
fn a_version_that_is_removed_while_it_is_loaded_is_not_kept_in_memory() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
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
fn a_version_is_loaded_in_each_precision_separately_and_dropped_in_both() {
    let folder = TempDir::new().unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    let a = publish(&repository, "a", 0.1);
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
