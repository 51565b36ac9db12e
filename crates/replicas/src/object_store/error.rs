//! Errors of the object store.

use std::io;
use std::path::{Path, PathBuf};

use ::object_store::Error;
use thiserror::Error;

/// An object could not be stored, read or deleted. The text is for the log.
#[derive(Debug, Error)]
pub enum ObjectStoreError {
    /// The URL does not name a store.
    #[error("--object-store: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// The store overwrites objects that it was told not to overwrite.
    #[error(
        "the object store {store} (--object-store) ignores preconditions: {observation}; two \
         replicas could overwrite each other's models there. Use a store that honours \
         If-None-Match and If-Match (Amazon S3, Google Cloud Storage, Azure Blob Storage, a \
         current MinIO or Ceph), or file:/// on a shared file system"
    )]
    PreconditionsIgnored {
        /// The store.
        store: String,
        /// What it did.
        observation: &'static str,
    },
    /// An object of this key exists already.
    #[error("{key} already exists in the object store {store}")]
    Exists {
        /// The store.
        store: String,
        /// The key.
        key: String,
    },
    /// There is no object of this key.
    #[error("{key} is not in the object store {store}")]
    NotFound {
        /// The store.
        store: String,
        /// The key.
        key: String,
    },
    /// The store could not be reached, or rejected the request.
    #[error("the object store {store} failed{}: {reason}", about(key))]
    Unavailable {
        /// The store.
        store: String,
        /// The key, if it is about one.
        key: String,
        /// What happened.
        reason: String,
    },
    /// A file of this machine could not be read or written.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

fn about(key: &str) -> String {
    match key {
        "" => String::new(),
        key => format!(" ({key})"),
    }
}

impl ObjectStoreError {
    pub(super) fn of(store: &str, key: &str, error: Error) -> Self {
        let (store, key) = (store.to_owned(), key.to_owned());
        match error {
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Self::Exists { store, key },
            Error::NotFound { .. } => Self::NotFound { store, key },
            error => Self::Unavailable {
                store,
                key,
                reason: in_full(&error),
            },
        }
    }

    pub(super) fn local(path: &Path, source: io::Error) -> Self {
        Self::Local {
            path: path.to_owned(),
            source,
        }
    }
}

/// Returns the message of an error with those of its sources, as far as they
/// say something new.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
