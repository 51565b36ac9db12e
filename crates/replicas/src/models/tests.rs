#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{ModelFile, ModelMetadata};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::{DecodeDevices, Publisher, Repository, RepositoryError};
use charlstm_store::session::Owner;
use tempfile::TempDir;

use super::*;
use crate::testing::test_database;

/// Two replicas with their own caches.
struct Replicas {
    database: Database,
    folder: TempDir,
    objects: Objects,
}

impl Replicas {
    async fn new() -> Option<Self> {
        let database = test_database().await?;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().join("objects").display());
        let objects = Objects::open(&url).await.unwrap();
        Some(Self {
            database,
            folder,
            objects,
        })
    }

    fn models(&self) -> ReplicaModels {
        ReplicaModels::new(self.database.clone(), self.objects.clone())
    }

    fn open(&self, name: &str) -> Repository {
        let cache = self.folder.path().join(name);
        let models = Arc::new(self.models());
        Repository::open_shared(&cache, DecodeDevices::default(), models).unwrap()
    }

    async fn count(&self, condition: &str) -> i64 {
        let text = format!("SELECT count(*) AS count FROM model_versions WHERE {condition}");
        let count = sqlx::query(sqlx::AssertSqlSafe(text));
        let row = self.database.fetch_one(count).await.unwrap();
        sqlx::Row::get(&row, "count")
    }
}

fn model(value: f32, training_id: &str) -> ModelFile {
    let vocabulary = Vocabulary::of("abc".chars());
    let mut parameters = Parameters::zeros(Architecture {
        vocabulary_size: vocabulary.len(),
        hidden_size: 2,
        num_layers: 1,
    });
    parameters.values.fill(value);
    ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata {
            training_id: training_id.to_owned(),
            ..ModelMetadata::default()
        },
    }
}

fn publish(repository: &Repository, name: &str, value: f32) -> ModelId {
    let admin = Publisher::admin();
    repository.publish(&admin, name, &model(value, "")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_publishes_or_removes_the_other_sees_after_a_refresh() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let (a, b) = (replicas.open("a"), replicas.open("b"));
    let first = publish(&a, "m", 0.25);
    assert_eq!(first.to_string(), "m@1");
    assert!(b.resolve("m").is_err());
    b.refresh().unwrap();
    assert_eq!(b.resolve("m").unwrap(), first);
    assert_eq!(b.read(&first).unwrap().parameters.values[0], 0.25);
    assert_eq!(b.describe(&first).unwrap(), a.describe(&first).unwrap());
    b.load(&first, None).unwrap();

    assert_eq!(publish(&b, "m", 0.5).to_string(), "m@2");
    a.remove(&first).unwrap();
    for replica in [&a, &b] {
        replica.refresh().unwrap();
        assert_eq!(replica.versions("m"), [2]);
        assert!(matches!(
            replica.describe(&first),
            Err(RepositoryError::NotFound { .. })
        ));
    }
    // The number of a removed version is not used again.
    let second = ModelId {
        name: "m".to_owned(),
        version: 2,
    };
    b.remove(&second).unwrap();
    assert_eq!(publish(&a, "m", 0.5).to_string(), "m@3");
    let keys = replicas.objects.list("models").await.unwrap();
    assert_eq!(
        keys,
        ["models/m/3/manifest.json", "models/m/3/model.safetensors"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_published_a_moment_ago_is_loaded_without_waiting() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let (a, b) = (replicas.open("a"), replicas.open("b"));
    let id = publish(&a, "m", 0.25);
    b.load(&id, None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_publish_at_the_same_time_never_get_the_same_number() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let threads: Vec<_> = (0..4)
        .map(|replica| {
            let repository = replicas.open(&format!("r{replica}"));
            tokio::task::spawn_blocking(move || {
                let values = (0..5).map(|i| (replica * 5 + i) as f32 / 64.0);
                values
                    .map(|value| (publish(&repository, "m", value), value))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut published = Vec::new();
    for thread in threads {
        published.extend(thread.await.unwrap());
    }
    let versions: BTreeSet<u64> = published.iter().map(|(id, _)| id.version).collect();
    assert_eq!(versions, (1..=20).collect());
    let reader = replicas.open("reader");
    for (id, value) in published {
        assert_eq!(reader.read(&id).unwrap().parameters.values[0], value);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_fetched_again_and_a_damaged_original_is_not_served() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let repository = replicas.open("a");
    let id = publish(&repository, "m", 0.25);
    let cached = || {
        let files = fs::read_dir(replicas.folder.path().join("a/models")).unwrap();
        let mut files = files.map(|entry| entry.unwrap().path());
        files.find(|path| path.is_file()).unwrap()
    };
    fs::write(cached(), "damaged").unwrap();
    assert!(matches!(
        repository.read(&id),
        Err(RepositoryError::Damaged { .. })
    ));
    assert_eq!(repository.read(&id).unwrap().parameters.values[0], 0.25);

    let original = replicas.folder.path().join("objects/models/m/1");
    fs::write(original.join("model.safetensors"), "damaged").unwrap();
    fs::remove_file(cached()).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            repository.read(&id),
            Err(RepositoryError::Damaged { .. })
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_the_principal_that_first_published_under_it() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let (a, b) = (replicas.open("a"), replicas.open("b"));
    let principal = |name: &str| Publisher {
        owner: Owner::new(name).unwrap(),
        is_admin: false,
    };
    let (ann, bob) = (principal("ann"), principal("bob"));
    a.publish(&ann, "m", &model(0.25, "")).unwrap();
    // Replica b has not seen it yet.
    let rejected = b.publish(&bob, "m", &model(0.5, ""));
    assert!(
        matches!(&rejected, Err(RepositoryError::OtherOwner { owner, .. }) if *owner == ann.owner),
        "{rejected:?}"
    );
    b.refresh().unwrap();
    assert_eq!(b.owner("m"), Some(ann.owner.clone()));
    b.publish(&Publisher::admin(), "m", &model(0.5, ""))
        .unwrap();
    b.publish(&ann, "m", &model(0.5, "")).unwrap();
    a.refresh().unwrap();
    assert_eq!(a.owner("m"), Some(ann.owner.clone()));
    assert_eq!(a.versions("m"), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_publishes_once_even_if_two_replicas_have_run_it() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let (a, b) = (replicas.open("a"), replicas.open("b"));
    let admin = Publisher::admin();
    let first = a.publish(&admin, "m", &model(0.25, "t-1")).unwrap();
    let again = b.publish(&admin, "m", &model(0.25, "t-1"));
    assert!(
        matches!(again, Err(RepositoryError::PublishedBefore { version }) if version == first.version),
        "{again:?}"
    );
    b.refresh().unwrap();
    assert_eq!(b.versions("m"), [1]);
    assert_eq!(replicas.objects.list("models/m/2").await.unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_interrupted_is_invisible_and_swept_after_a_day() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let repository = replicas.open("a");
    // The files are there, but its row was never marked as published.
    publish(&repository, "m", 0.25);
    for statement in [
        "UPDATE model_versions SET state = 'reserved', reserved_at = now() - interval '2 days'",
        "UPDATE model_names SET owner = NULL",
    ] {
        let statement = sqlx::query(statement);
        replicas.database.fetch_all(statement).await.unwrap();
    }
    let other = replicas.open("b");
    assert_eq!(other.count(), 0);
    replicas.models().sweep().await.unwrap();
    assert_eq!(replicas.count("has_files").await, 0);
    assert_eq!(replicas.objects.list("models").await.unwrap(), [""; 0]);
    assert_eq!(publish(&other, "m", 0.5).version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_a_row_are_never_overwritten() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let key = "models/m/1/model.safetensors";
    replicas
        .objects
        .create(key, "of another database")
        .await
        .unwrap();
    let repository = replicas.open("a");
    assert_eq!(publish(&repository, "m", 0.25).version, 2);
    let left = replicas.objects.read(key).await.unwrap();
    assert_eq!(left, "of another database");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_int8_costs_is_measured_once_for_all_replicas() {
    let Some(replicas) = Replicas::new().await else {
        return;
    };
    let (a, b) = (replicas.open("a"), replicas.open("b"));
    let folder = tempfile::tempdir().unwrap();
    let exported = folder.path().join("model");
    let id = publish(&a, "m", 0.25);
    let (mut file, _) = a.open_file(&id).unwrap();
    std::io::copy(&mut file, &mut fs::File::create(&exported).unwrap()).unwrap();
    let admin = Publisher::admin();
    let imported = a.import_file(&admin, "n", &exported, None).unwrap();
    assert_eq!(a.describe(&imported).unwrap().quantisation, None);
    a.load(&imported, None).unwrap();
    b.refresh().unwrap();
    let measured = a.describe(&imported).unwrap().quantisation.clone();
    assert!(measured.is_some());
    assert_eq!(b.describe(&imported).unwrap().quantisation, measured);
}
