//! The object store that replicas share: large data that never changes once it
//! is written.

mod error;
mod probe;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use ::object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use ::object_store::buffered::BufWriter;
use ::object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use ::object_store::local::LocalFileSystem;
use ::object_store::prefix::PrefixStore;
use ::object_store::{
    ClientConfigKey, Error, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutPayload,
    RetryConfig, path::Path as Key,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use url::Url;

pub use self::error::ObjectStoreError;

/// Maximum time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time in which a response makes no progress.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum time of a request: a file of 4 GB at 20 MB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(200);

/// A request that failed for a reason that may pass is repeated at most this
/// often, and for at most [`RETRY_TIMEOUT`].
const MAX_RETRIES: usize = 4;

/// No attempt begins later than this after the first one. The caller waits for
/// that long if the store rejects everything.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a file that are read at a time.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The object store. A cheap handle; clones share the connections.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Without credentials, for messages.
    name: String,
}

impl fmt::Display for Objects {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

impl Objects {
    /// Opens the store of a URL: `s3://BUCKET/PREFIX`, `gs://`, `az://`, or
    /// `file:///FOLDER` for a folder that all replicas see. Credentials and
    /// endpoints come from the environment variables that the crate
    /// `object_store` reads (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    ///
    /// Writes and deletes a small object to check that the store honours
    /// preconditions.
    ///
    /// # Errors
    /// `Url`, `PreconditionsIgnored`, or `Unavailable`.
    pub async fn open(url: &str) -> Result<Self, ObjectStoreError> {
        let objects = Self::connect(url)?;
        probe::check_preconditions(&*objects.store)
            .await
            .map_err(|error| error.into_error(&objects.name))?;
        Ok(objects)
    }

    fn connect(url: &str) -> Result<Self, ObjectStoreError> {
        let bad_url = |reason: String| ObjectStoreError::Url { reason };
        let parsed = Url::parse(url).map_err(|error| bad_url(error.to_string()))?;
        let (scheme, prefix) =
            ObjectStoreScheme::parse(&parsed).map_err(|error| bad_url(error.to_string()))?;
        let name = without_credentials(&parsed);
        let failed = |error| ObjectStoreError::of(&name, "", error);
        if !matches!(scheme, ObjectStoreScheme::Local) {
            // Fails if one is installed already, which will do as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => {
                let folder = parsed
                    .to_file_path()
                    .map_err(|()| bad_url("file:/// must be followed by a path".to_owned()))?;
                std::fs::create_dir_all(&folder).map_err(|source| ObjectStoreError::Local {
                    path: folder.clone(),
                    source,
                })?;
                let store = LocalFileSystem::new_with_prefix(&folder).map_err(failed)?;
                return Ok(Self {
                    store: Arc::new(store.with_fsync(true)),
                    name,
                });
            }
            ObjectStoreScheme::AmazonS3 => Arc::new(
                with_timeouts(AmazonS3Builder::from_env(), |builder, key, value| {
                    builder.with_config(AmazonS3ConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retries())
                .build()
                .map_err(failed)?,
            ),
            ObjectStoreScheme::GoogleCloudStorage => Arc::new(
                with_timeouts(
                    GoogleCloudStorageBuilder::from_env(),
                    |builder, key, value| builder.with_config(GoogleConfigKey::Client(key), value),
                )
                .with_url(url)
                .with_retry(retries())
                .build()
                .map_err(failed)?,
            ),
            ObjectStoreScheme::MicrosoftAzure => Arc::new(
                with_timeouts(MicrosoftAzureBuilder::from_env(), |builder, key, value| {
                    builder.with_config(AzureConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retries())
                .build()
                .map_err(failed)?,
            ),
            _ => {
                let text = format!(
                    "{}:// is not supported; use s3://BUCKET/PREFIX, gs://, az:// or file:///FOLDER",
                    parsed.scheme()
                );
                return Err(bad_url(text));
            }
        };
        Ok(Self {
            store: Arc::new(PrefixStore::new(store, prefix)),
            name,
        })
    }

    /// A store in memory, for tests.
    #[cfg(test)]
    fn in_memory() -> Self {
        Self {
            store: Arc::new(::object_store::memory::InMemory::new()),
            name: "memory".to_owned(),
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    /// `Exists`, `Unavailable`.
    pub async fn create(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), ObjectStoreError> {
        self.put_if_absent(key, PutPayload::from_bytes(bytes.into()))
            .await
    }

    /// Creates an object with the bytes of a file, which are in memory
    /// meanwhile.
    ///
    /// # Errors
    /// `Exists`, `Local`, `Unavailable`.
    pub async fn create_from_file(&self, key: &str, path: &Path) -> Result<(), ObjectStoreError> {
        let payload = read_file(path)
            .await
            .map_err(|source| ObjectStoreError::local(path, source))?;
        self.put_if_absent(key, payload).await
    }

    async fn put_if_absent(&self, key: &str, payload: PutPayload) -> Result<(), ObjectStoreError> {
        let location = Key::from(key);
        let put = self
            .store
            .put_opts(&location, payload, PutMode::Create.into());
        put.await
            .map(|_| ())
            .map_err(|error| self.error(key, error))
    }

    /// Stores a file under a key that nobody else uses, in parts, so that a
    /// large file needs little memory.
    ///
    /// # Errors
    /// `Local`, `Unavailable`; then there may be parts that the store has to
    /// discard.
    pub async fn upload(&self, key: &str, path: &Path) -> Result<(), ObjectStoreError> {
        let local = |source| ObjectStoreError::local(path, source);
        let mut file = File::open(path).await.map_err(local)?;
        let mut writer = BufWriter::new(Arc::clone(&self.store), Key::from(key));
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk).await.map_err(local)?;
            if count == 0 {
                break;
            }
            let bytes = Bytes::copy_from_slice(&chunk[..count]);
            if let Err(error) = writer.put(bytes).await {
                let _ = writer.abort().await;
                return Err(self.error(key, error));
            }
        }
        let finished = writer.shutdown().await;
        finished.map_err(|error| ObjectStoreError::Unavailable {
            store: self.name.clone(),
            key: key.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Writes the bytes of an object to a file, which is created or replaced,
    /// and makes them durable.
    ///
    /// # Errors
    /// `NotFound`, `Local`, `Unavailable`; then the file may be incomplete.
    pub async fn download(&self, key: &str, path: &Path) -> Result<(), ObjectStoreError> {
        let local = |source| ObjectStoreError::local(path, source);
        let failed = |error| self.error(key, error);
        let found = self.store.get(&Key::from(key)).await.map_err(failed)?;
        let mut file = File::create(path).await.map_err(local)?;
        let mut chunks = found.into_stream();
        while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
            file.write_all(&chunk).await.map_err(local)?;
        }
        file.flush().await.map_err(local)?;
        file.sync_all().await.map_err(local)
    }

    /// Returns the bytes of a small object.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn read(&self, key: &str) -> Result<Bytes, ObjectStoreError> {
        let failed = |error| self.error(key, error);
        let found = self.store.get(&Key::from(key)).await.map_err(failed)?;
        found.bytes().await.map_err(failed)
    }

    /// Returns the length of an object in bytes; `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn length(&self, key: &str) -> Result<Option<u64>, ObjectStoreError> {
        match self.store.head(&Key::from(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(key, error)),
        }
    }

    /// Deletes an object, if it exists.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error(key, error)),
        }
    }

    /// Deletes all objects whose key begins with a folder's name.
    ///
    /// # Errors
    /// `Unavailable`; then some may be left.
    pub async fn delete_folder(&self, folder: &str) -> Result<(), ObjectStoreError> {
        for key in self.list(folder).await? {
            self.delete(&key).await?;
        }
        Ok(())
    }

    /// Returns the keys of all objects in a folder, in their order.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, ObjectStoreError> {
        let listed = self.store.list(Some(&Key::from(folder)));
        let keys = listed.map_ok(|meta| meta.location.to_string());
        let keys: Result<Vec<String>, Error> = keys.try_collect().await;
        let mut keys = keys.map_err(|error| self.error(folder, error))?;
        keys.sort_unstable();
        Ok(keys)
    }

    fn error(&self, key: &str, error: Error) -> ObjectStoreError {
        ObjectStoreError::of(&self.name, key, error)
    }
}

async fn read_file(path: &Path) -> std::io::Result<PutPayload> {
    let mut file = File::open(path).await?;
    let mut chunks = Vec::new();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let mut part = (&mut file).take(CHUNK_BYTES as u64);
        if part.read_to_end(&mut chunk).await? == 0 {
            return Ok(chunks.into_iter().collect());
        }
        chunks.push(Bytes::from(chunk));
    }
}

/// Sets the time limits of requests, and keeps what the environment says about
/// connections.
fn with_timeouts<B>(builder: B, set: impl Fn(B, ClientConfigKey, String) -> B) -> B {
    let limits = [
        (ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT),
        (ClientConfigKey::ReadTimeout, READ_TIMEOUT),
        (ClientConfigKey::Timeout, REQUEST_TIMEOUT),
    ];
    limits.into_iter().fold(builder, |builder, (key, limit)| {
        set(builder, key, format!("{} s", limit.as_secs()))
    })
}

fn retries() -> RetryConfig {
    RetryConfig {
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    }
}

/// Returns a URL without what may be a secret.
fn without_credentials(url: &Url) -> String {
    let mut url = url.clone();
    // Fails for URLs that cannot have any.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}
