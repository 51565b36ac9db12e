//! Checks that a store honours preconditions: some S3-compatible stores ignore
//! the headers that carry them and overwrite the object.

use ::object_store::path::Path as Key;
use ::object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
};

use super::ObjectStoreError;

/// What the check has found.
pub(super) enum ProbeError {
    Ignored(&'static str),
    Failed(Error),
}

impl ProbeError {
    pub(super) fn into_error(self, store: &str) -> ObjectStoreError {
        match self {
            Self::Ignored(observation) => ObjectStoreError::PreconditionsIgnored {
                store: store.to_owned(),
                observation,
            },
            Self::Failed(error) => ObjectStoreError::of(store, "", error),
        }
    }
}

/// Creates an object twice and updates it with a wrong tag: the second creation
/// and the update must fail. A store without conditional updates is accepted,
/// because none are used.
pub(super) async fn check_preconditions(store: &dyn ObjectStore) -> Result<(), ProbeError> {
    let key = Key::from(format!("probe/{}", uuid::Uuid::new_v4()));
    let checked = check_with(store, &key).await;
    // A small object that remains is harmless.
    let _ = store.delete(&key).await;
    checked
}

async fn check_with(store: &dyn ObjectStore, key: &Key) -> Result<(), ProbeError> {
    let put = |text: &'static str, mode: PutMode| {
        let payload = PutPayload::from_static(text.as_bytes());
        store.put_opts(key, payload, PutOptions::from(mode))
    };
    put("first", PutMode::Create)
        .await
        .map_err(ProbeError::Failed)?;
    match put("second", PutMode::Create).await {
        Ok(_) => return Err(ProbeError::Ignored("it created an object that existed")),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
        Err(error) => return Err(ProbeError::Failed(error)),
    }
    let wrong = UpdateVersion {
        e_tag: Some("\"00000000000000000000000000000000\"".to_owned()),
        version: Some("1".to_owned()),
    };
    match put("third", PutMode::Update(wrong)).await {
        Ok(_) => Err(ProbeError::Ignored("it updated an object of another tag")),
        Err(
            Error::Precondition { .. }
            | Error::AlreadyExists { .. }
            | Error::NotImplemented { .. }
            | Error::NotSupported { .. },
        ) => Ok(()),
        Err(error) => Err(ProbeError::Failed(error)),
    }
}
