#![allow(clippy::unwrap_used)]

use ::object_store::memory::InMemory;
use ::object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutResult,
};
use futures_util::stream::BoxStream;

use super::*;

/// A store that overwrites objects although a precondition forbids it.
#[derive(Debug)]
struct IgnoresPreconditions {
    store: InMemory,
    honours_create: bool,
}

impl fmt::Display for IgnoresPreconditions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ignores preconditions")
    }
}

type Outcome<T> = ::object_store::Result<T>;

#[async_trait::async_trait]
impl ObjectStore for IgnoresPreconditions {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Outcome<PutResult> {
        if !(self.honours_create && options.mode == PutMode::Create) {
            options.mode = PutMode::Overwrite;
        }
        self.store.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> Outcome<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Outcome<GetResult> {
        self.store.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Outcome<Key>>,
    ) -> BoxStream<'static, Outcome<Key>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Outcome<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Outcome<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Outcome<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn file_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

#[tokio::test]
async fn a_store_that_overwrites_existing_objects_is_rejected() {
    for (honours_create, observation) in [(false, "created"), (true, "updated")] {
        let store = IgnoresPreconditions {
            store: InMemory::new(),
            honours_create,
        };
        let Err(error) = probe::check_preconditions(&store).await else {
            panic!("it must be rejected");
        };
        let text = error.into_error("s3://bucket").to_string();
        assert!(text.contains("ignores preconditions"), "{text}");
        assert!(text.contains(observation), "{text}");
    }
}

#[tokio::test]
async fn a_folder_honours_preconditions_and_keeps_nothing_of_the_probe() {
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::open(&file_url(&folder.path().join("a/b")))
        .await
        .unwrap();
    assert_eq!(objects.list("").await.unwrap(), Vec::<String>::new());
    objects.create("x/1", "first").await.unwrap();
    let again = objects.create("x/1", "second").await;
    assert!(
        matches!(again, Err(ObjectStoreError::Exists { .. })),
        "{again:?}"
    );
    assert_eq!(objects.read("x/1").await.unwrap(), "first");
    assert!(folder.path().join("a/b/x/1").is_file());
}

#[tokio::test]
async fn files_are_stored_and_read_back_whatever_their_length() {
    let folder = tempfile::tempdir().unwrap();
    let objects = Objects::in_memory();
    for length in [
        0,
        1,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        3 * CHUNK_BYTES + 7,
        11 << 20,
    ] {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, &bytes).unwrap();
        let keys = [format!("created/{length}"), format!("uploaded/{length}")];
        objects.create_from_file(&keys[0], &from).await.unwrap();
        objects.upload(&keys[1], &from).await.unwrap();
        for key in keys {
            assert_eq!(objects.length(&key).await.unwrap(), Some(length as u64));
            objects.download(&key, &to).await.unwrap();
            assert!(std::fs::read(&to).unwrap() == bytes, "{key}");
        }
    }
}

#[tokio::test]
async fn deleting_is_repeatable_and_a_folder_is_deleted_as_a_whole() {
    let objects = Objects::in_memory();
    for key in ["t/1/a", "t/1/b/c", "t/10/a"] {
        objects.create(key, "x").await.unwrap();
    }
    objects.delete_folder("t/1").await.unwrap();
    assert_eq!(objects.list("t").await.unwrap(), ["t/10/a"]);
    objects.delete("t/10/a").await.unwrap();
    objects.delete("t/10/a").await.unwrap();
    let missing = objects.read("t/10/a").await;
    assert!(matches!(missing, Err(ObjectStoreError::NotFound { .. })));
    assert_eq!(objects.length("t/10/a").await.unwrap(), None);
}

#[tokio::test]
async fn a_url_that_names_no_store_is_rejected_with_what_would_be_right() {
    for url in ["bucket", "ftp://bucket/x", "http://host/x", "memory:///"] {
        let error = Objects::open(url).await.unwrap_err().to_string();
        assert!(error.starts_with("--object-store: "), "{error}");
    }
}

#[test]
fn credentials_in_a_url_are_not_shown() {
    let url = Url::parse("s3://key:secret@bucket/x?token=secret").unwrap();
    assert_eq!(without_credentials(&url), "s3://bucket/x");
}
