//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use charlstm_repository::{ModelDescription, Repository};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiState;
use super::api_error::{ApiError, ErrorBody};
use crate::rpc::status;

/// A model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ModelInfo {
    /// Name of the model, or `name@version` if a version was asked for.
    pub(super) id: String,
    /// `model`.
    pub(super) object: &'static str,
    /// When it was stored, in seconds since 1970-01-01 UTC.
    pub(super) created: u64,
    /// Who owns it.
    pub(super) owned_by: String,
    /// Version, from 1. (Extension)
    pub(super) version: u64,
    /// Number of trainable parameters. (Extension)
    pub(super) parameters: u64,
    /// The characters that the model knows, sorted. (Extension)
    pub(super) vocabulary: String,
    /// Loss on held-out text, in nats per character. (Extension)
    pub(super) validation_loss: Option<f64>,
}

/// All models.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    pub(super) object: &'static str,
    /// The latest version of each model, sorted by name.
    pub(super) data: Vec<ModelInfo>,
}

/// Lists the latest version of each model.
#[utoipa::path(
    get,
    path = "/v1/models",
    responses(
        (status = 200, description = "The models", body = ModelList),
        (status = 401, description = "The token is missing or unknown", body = ErrorBody),
        (status = 403, description = "The host, the origin or the role is not allowed", body = ErrorBody),
    ),
    security(("bearer" = []))
)]
pub(super) async fn list(State(state): State<ApiState>) -> Json<ModelList> {
    let repository = &state.repository;
    let models = repository.list();
    let data = models
        .iter()
        .map(|model| info(repository, model.id.name.clone(), model));
    Json(ModelList {
        object: "list",
        data: data.collect(),
    })
}

/// What the path names. By name, because the routes around this one add the path
/// that they matched.
#[derive(Debug, Deserialize)]
pub(super) struct ModelPath {
    id: String,
}

/// Describes one model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    params(("id" = String, Path, description = "`name` (its latest version) or `name@version`")),
    responses(
        (status = 200, description = "The model", body = ModelInfo),
        (status = 400, description = "The id is not valid", body = ErrorBody),
        (status = 401, description = "The token is missing or unknown", body = ErrorBody),
        (status = 403, description = "The host, the origin or the role is not allowed", body = ErrorBody),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ),
    security(("bearer" = []))
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    path: Result<Path<ModelPath>, PathRejection>,
) -> Result<Json<ModelInfo>, ApiError> {
    let Path(ModelPath { id }) = path.map_err(|error| ApiError::invalid("id", error))?;
    let repository = &state.repository;
    let model = repository
        .resolve(&id)
        .and_then(|found| repository.describe(&found))
        .map_err(|error| status::repository("id", &error))?;
    Ok(Json(info(repository, id, &model)))
}

fn info(repository: &Repository, id: String, model: &ModelDescription) -> ModelInfo {
    let owner = repository.owner(&model.id.name);
    ModelInfo {
        id,
        object: "model",
        created: model.metadata.created_unix_ms / 1000,
        owned_by: owner.map_or_else(String::new, String::from),
        version: model.id.version,
        parameters: model.architecture.parameter_count() as u64,
        vocabulary: model.vocabulary.clone(),
        validation_loss: model.metadata.validation_loss,
    }
}
