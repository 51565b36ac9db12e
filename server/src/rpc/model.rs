//! ModelService: lists, describes, removes, exports and imports models. What
//! a model is and where it is kept is below, in `repository`.

mod transfer;

use std::sync::Arc;

use charlstm_proto::v1 as proto;
use charlstm_proto::v1::model_service_server::ModelService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, status};
use charlstm_repository::{ModelId, Repository, RepositoryError};

/// Who uses a model version and must be asked before it is removed. Called
/// on threads that may block.
pub trait ModelUsage: Send + Sync + 'static {
    /// Sessions that are pinned to the version.
    fn pinned(&self, id: &ModelId) -> usize;
    /// Lets those sessions go; their calls end.
    fn release(&self, id: &ModelId);
}

/// The service.
pub struct ModelRpc {
    repository: Repository,
    pins: Arc<dyn ModelUsage>,
}

impl ModelRpc {
    /// A service on these models.
    pub fn new(repository: Repository, pins: Arc<dyn ModelUsage>) -> Self {
        Self { repository, pins }
    }
}

#[tonic::async_trait]
impl ModelService for ModelRpc {
    type ExportModelStream = ReceiverStream<Result<proto::ExportModelResponse, Status>>;

    async fn list_models(
        &self,
        _request: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        let models = self.repository.list();
        Ok(Response::new(proto::ListModelsResponse {
            models: models.iter().map(|model| convert::model(model)).collect(),
        }))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::GetModelResponse>, Status> {
        let reference = request.into_inner().model;
        let description = self
            .repository
            .resolve(&reference)
            .and_then(|id| self.repository.describe(&id))
            .map_err(|error| status::repository("model", &error))?;
        Ok(Response::new(proto::GetModelResponse {
            versions: self.repository.versions(&description.id.name),
            model: Some(convert::model(&description)),
        }))
    }

    async fn delete_model(
        &self,
        request: Request<proto::DeleteModelRequest>,
    ) -> Result<Response<proto::DeleteModelResponse>, Status> {
        let request = request.into_inner();
        let (repository, pins) = (self.repository.clone(), Arc::clone(&self.pins));
        let versions = blocking(move || {
            let force = request.force.unwrap_or(false);
            delete(&repository, &*pins, &request.model, force)
        })
        .await??;
        Ok(Response::new(proto::DeleteModelResponse { versions }))
    }

    async fn export_model(
        &self,
        request: Request<proto::ExportModelRequest>,
    ) -> Result<Response<Self::ExportModelStream>, Status> {
        let reference = request.into_inner().model;
        let repository = self.repository.clone();
        let opened = blocking(move || transfer::Export::open(repository, &reference)).await?;
        let export = opened.map_err(|error| status::repository("model", &error))?;
        Ok(Response::new(export.start()))
    }

    async fn import_model(
        &self,
        request: Request<Streaming<proto::ImportModelRequest>>,
    ) -> Result<Response<proto::ImportModelResponse>, Status> {
        let id = transfer::import(&self.repository, request.into_inner()).await?;
        let description = self
            .repository
            .describe(&id)
            .map_err(|error| status::repository("model", &error))?;
        Ok(Response::new(proto::ImportModelResponse {
            model: Some(convert::model(&description)),
        }))
    }
}

/// Removes what the reference names: all versions of a name, or one.
fn delete(
    repository: &Repository,
    pins: &dyn ModelUsage,
    reference: &str,
    force: bool,
) -> Result<Vec<u64>, Status> {
    if reference.is_empty() {
        // Unlike for reading, "the only one there is" is too easily meant.
        return Err(status::invalid("model", "it must name a model"));
    }
    let failed = |error: RepositoryError| status::repository("model", &error);
    let ids = repository.stored(reference).map_err(failed)?;
    let pinned: usize = ids.iter().map(|id| pins.pinned(id)).sum();
    if pinned > 0 && !force {
        return Err(status::precondition(
            "MODEL_IN_USE",
            format!("{pinned} sessions go on with {reference}; set force to let them go"),
        ));
    }
    for id in &ids {
        repository.remove(id).map_err(failed)?;
        // After the removal: no session can be pinned to it any more.
        pins.release(id);
    }
    Ok(ids.into_iter().map(|id| id.version).collect())
}

/// Runs what waits for the disk where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| status::internal(&error))
}
