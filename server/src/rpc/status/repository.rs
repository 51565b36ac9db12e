//! How the errors of the model repository become statuses.

use tonic::{Code, Status};

use super::disk::disk;
use super::{
    internal, invalid, invalid_because, refused, refused_with, shared_storage_unavailable,
};
use charlstm_repository::RepositoryError;

/// Returns the status of an error about the model that the request names in
/// `field`.
pub(crate) fn repository(field: &str, error: &RepositoryError) -> Status {
    let text = error.to_string();
    match error {
        RepositoryError::BadName(_)
        | RepositoryError::BadReference(_)
        | RepositoryError::Ambiguous { .. } => invalid(field, text),
        RepositoryError::NotAModel(error) if error.needs_vocabulary() => {
            invalid_because("chunk", "VOCABULARY_NEEDED", text)
        }
        RepositoryError::NotAModel(_) => invalid("chunk", text),
        RepositoryError::NotFound { .. } => refused(Code::NotFound, "MODEL_NOT_FOUND", text),
        RepositoryError::NoModels => refused(Code::NotFound, "NO_MODELS", text),
        RepositoryError::Damaged { .. } | RepositoryError::VersionsUnknown { .. } => {
            refused(Code::DataLoss, "MODEL_DAMAGED", text)
        }
        RepositoryError::Io { source, .. } => {
            // The client learns the kind of the error, the log also the path.
            tracing::error!(%error, "a model could not be read or stored");
            disk(source)
        }
        RepositoryError::NoInt8 { .. } => {
            refused(Code::FailedPrecondition, "PRECISION_UNAVAILABLE", text)
        }
        RepositoryError::OtherOwner { owner, .. } => refused_with(
            Code::PermissionDenied,
            "MODEL_OF_ANOTHER_PRINCIPAL",
            text,
            [("owner", owner.to_string())],
        ),
        RepositoryError::Unavailable { .. } => {
            tracing::error!(%error, "the shared models are not available");
            shared_storage_unavailable(error.client_message())
        }
        RepositoryError::PublishedBefore { .. } => {
            refused(Code::AlreadyExists, "MODEL_EXISTS", text)
        }
        RepositoryError::Device { .. } => internal(error),
    }
}

/// Returns the status of the deletion of a model that has sessions.
pub(in crate::rpc) fn model_in_use(reference: &str, sessions: u64) -> Status {
    let sessions = match sessions {
        1 => "1 session".to_owned(),
        count => format!("{count} sessions"),
    };
    let text =
        format!("model {reference:?} is in use by {sessions}; set force to delete it anyway");
    refused(Code::FailedPrecondition, "MODEL_IN_USE", text)
}

/// Returns the status of a forced deletion of a model with sessions of other
/// principals.
pub(in crate::rpc) fn model_in_use_by_others(reference: &str, sessions: u64) -> Status {
    let text = format!(
        "model {reference:?} is in use by sessions of other principals ({sessions}); \
         to delete it anyway, the role admin is required"
    );
    refused(Code::PermissionDenied, "MODEL_IN_USE", text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_model::torch_checkpoint::TorchCheckpointError;
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn an_unknown_model_is_not_found_and_the_message_lists_the_available_ones() {
        let error = RepositoryError::NotFound {
            reference: "x".to_owned(),
            available: "a, b".to_owned(),
        };
        let status = repository("model", &error);
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("a, b"));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "MODEL_NOT_FOUND");
    }

    #[test]
    fn a_file_without_a_usable_vocabulary_has_a_reason_of_its_own() {
        let reason = |error: TorchCheckpointError| {
            let error = RepositoryError::NotAModel(error.into());
            let status = repository("header.name", &error);
            assert_eq!(status.code(), Code::InvalidArgument);
            let violations = status.get_details_bad_request().unwrap().field_violations;
            assert_eq!(violations[0].field, "chunk");
            status.get_details_error_info().map(|info| info.reason)
        };
        let needed = Some("VOCABULARY_NEEDED".to_owned());
        assert_eq!(reason(TorchCheckpointError::NoVocabulary), needed);
        assert_eq!(reason(TorchCheckpointError::BigEndian), None);
    }

    #[test]
    fn a_full_disk_is_named_and_no_path_is_sent_to_the_client() {
        let of = |kind: std::io::ErrorKind| {
            let error = RepositoryError::Io {
                path: "/secret".into(),
                source: kind.into(),
            };
            repository("model", &error)
        };
        let full = of(std::io::ErrorKind::StorageFull);
        assert_eq!(full.code(), Code::ResourceExhausted);
        let info = full.get_details_error_info().unwrap();
        assert_eq!(info.reason, "DISK_FULL");
        let other = of(std::io::ErrorKind::Other);
        assert_eq!(other.code(), Code::Internal);
        for status in [full, other] {
            assert!(!status.message().contains("secret"), "{status}");
        }
    }
}
