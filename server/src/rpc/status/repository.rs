//! Statuses of the repository's errors.

use tonic::{Code, Status};

use super::{internal, invalid, refused};
use charlstm_repository::RepositoryError;

/// The status of an error about the model that the request names in `field`.
pub(in crate::rpc) fn repository(field: &str, error: &RepositoryError) -> Status {
    match error {
        RepositoryError::BadName(_)
        | RepositoryError::BadReference(_)
        | RepositoryError::Ambiguous { .. } => invalid(field, error.to_string()),
        RepositoryError::NotAModel(_) => invalid("chunk", error.to_string()),
        RepositoryError::NotFound { .. } => {
            refused(Code::NotFound, "MODEL_NOT_FOUND", error.to_string())
        }
        RepositoryError::NoModels => refused(Code::NotFound, "NO_MODELS", error.to_string()),
        RepositoryError::Damaged { .. } => {
            refused(Code::DataLoss, "MODEL_DAMAGED", error.to_string())
        }
        RepositoryError::Device { .. } | RepositoryError::Io { .. } => internal(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn an_unknown_model_is_not_found_and_the_message_lists_what_there_is() {
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
    fn what_the_disk_said_is_not_told_to_the_caller() {
        let error = RepositoryError::Io {
            path: "/secret".into(),
            source: std::io::Error::other("broken"),
        };
        let status = repository("model", &error);
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
    }
}
