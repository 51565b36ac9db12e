//! `ModelService`: lists, describes, deletes, exports and imports models. What
//! a model is and how it is stored is in `charlstm_repository`.

mod transfer;

use std::sync::Arc;

use charlstm_proto::v1 as pb;
use charlstm_proto::v1::model_service_server::{ModelService, ModelServiceServer};
use tonic::{Request, Response, Status, Streaming};

use super::principal::Principal;
use super::transfers::Transfers;
use super::{convert, status};
use charlstm_repository::{ModelId, Publisher, Repository, RepositoryError};
use charlstm_store::session::{AllowedSessions, SessionError};

/// The use of model versions by sessions, which is checked before a version is
/// deleted.
#[tonic::async_trait]
pub trait ModelUsage: Send + Sync + 'static {
    /// Returns the number of sessions of the version.
    ///
    /// # Errors
    /// The session storage cannot be read.
    async fn sessions(&self, id: &ModelId) -> Result<u64, SessionError>;

    /// Prevents new sessions on the version, in one step with the check that
    /// it has only sessions that are `allowed`.
    ///
    /// # Errors
    /// The version has other sessions, or the session storage is unavailable.
    async fn retire(&self, id: &ModelId, allowed: AllowedSessions) -> Result<(), SessionError>;

    /// Allows sessions on a version again that was not deleted after all.
    async fn reinstate(&self, id: &ModelId);

    /// Ends the calls in flight with the version, which was deleted.
    fn release(&self, id: &ModelId);
}

/// The service.
pub struct ModelRpc {
    repository: Repository,
    usage: Arc<dyn ModelUsage>,
    transfers: Transfers,
}

impl ModelRpc {
    /// Returns the service on these models, ready to be added to a server.
    /// Imports and exports are counted in `transfers`.
    pub fn server(
        repository: Repository,
        usage: Arc<dyn ModelUsage>,
        transfers: Transfers,
    ) -> ModelServiceServer<Self> {
        ModelServiceServer::new(Self {
            repository,
            usage,
            transfers,
        })
    }
}

#[tonic::async_trait]
impl ModelService for ModelRpc {
    type ExportModelStream = transfer::ExportStream;

    async fn list_models(
        &self,
        _request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let models = self.repository.list();
        Ok(Response::new(pb::ListModelsResponse {
            models: models
                .iter()
                .map(|model| convert::model(&self.repository, model))
                .collect(),
        }))
    }

    async fn get_model(
        &self,
        request: Request<pb::GetModelRequest>,
    ) -> Result<Response<pb::GetModelResponse>, Status> {
        let reference = request.into_inner().model;
        self.refresh_for(&reference).await?;
        let description = self
            .repository
            .resolve(&reference)
            .and_then(|id| self.repository.describe(&id))
            .map_err(|error| status::repository("model", &error))?;
        Ok(Response::new(pb::GetModelResponse {
            versions: self.repository.versions(&description.id.name),
            model: Some(convert::model(&self.repository, &description)),
        }))
    }

    async fn delete_model(
        &self,
        request: Request<pb::DeleteModelRequest>,
    ) -> Result<Response<pb::DeleteModelResponse>, Status> {
        let principal = Principal::of(&request)?;
        let request = request.into_inner();
        let allowed = match (request.force.unwrap_or(false), principal.is_admin()) {
            (false, _) => AllowedSessions::None,
            (true, false) => AllowedSessions::OfOwner(principal.owner().clone()),
            (true, true) => AllowedSessions::All,
        };
        self.refresh_for(&request.model).await?;
        let deletion = Deletion {
            reference: request.model,
            publisher: principal.publisher(),
            allowed,
        };
        let versions = delete(&self.repository, &*self.usage, &deletion).await?;
        Ok(Response::new(pb::DeleteModelResponse { versions }))
    }

    async fn export_model(
        &self,
        request: Request<pb::ExportModelRequest>,
    ) -> Result<Response<Self::ExportModelStream>, Status> {
        let transfer = self.transfers.begin(&request)?;
        let reference = request.into_inner().model;
        self.refresh_for(&reference).await?;
        let repository = self.repository.clone();
        let opened = run_blocking(move || transfer::Export::open(repository, &reference)).await?;
        let export = opened.map_err(|error| status::repository("model", &error))?;
        Ok(Response::new(export.start(transfer)))
    }

    async fn import_model(
        &self,
        request: Request<Streaming<pb::ImportModelRequest>>,
    ) -> Result<Response<pb::ImportModelResponse>, Status> {
        let publisher = Principal::of(&request)?.publisher();
        let transfer = self.transfers.begin(&request)?;
        let messages = request.into_inner();
        let id = transfer::import(&self.repository, publisher, messages, transfer).await?;
        let description = self
            .repository
            .describe(&id)
            .map_err(|error| status::repository("model", &error))?;
        Ok(Response::new(pb::ImportModelResponse {
            model: Some(convert::model(&self.repository, &description)),
        }))
    }
}

impl ModelRpc {
    /// Reads the list of versions again if a model is not found: another replica
    /// may have published it a moment ago.
    async fn refresh_for(&self, reference: &str) -> Result<(), Status> {
        let resolved = self.repository.resolve(reference);
        if !matches!(
            resolved,
            Err(RepositoryError::NotFound { .. } | RepositoryError::NoModels)
        ) {
            return Ok(());
        }
        let repository = self.repository.clone();
        let refreshed = run_blocking(move || repository.refresh()).await?;
        refreshed.map_err(|error| status::repository("model", &error))
    }
}

/// What is to be deleted, and for whom.
struct Deletion {
    reference: String,
    publisher: Publisher,
    /// Sessions that the versions may have.
    allowed: AllowedSessions,
}

/// Deletes what the reference names: all versions of a name, or one.
async fn delete(
    repository: &Repository,
    usage: &dyn ModelUsage,
    deletion: &Deletion,
) -> Result<Vec<u64>, Status> {
    let reference = deletion.reference.as_str();
    if reference.is_empty() {
        // For reading, an empty reference means the only model there is. That
        // is too easily deleted by mistake.
        return Err(status::invalid("model", "must not be empty"));
    }
    let failed = |error: RepositoryError| status::repository("model", &error);
    let ids = repository.stored(reference).map_err(failed)?;
    if let Some(id) = ids.first() {
        let checked = repository.check_publisher(&id.name, &deletion.publisher);
        checked.map_err(failed)?;
    }
    retire_all(usage, deletion, &ids).await?;
    let mut left = ids.iter();
    while let Some(id) = left.next() {
        let (repository, removed) = (repository.clone(), id.clone());
        if let Err(error) = run_blocking(move || repository.remove(&removed)).await? {
            for id in std::iter::once(id).chain(left) {
                usage.reinstate(id).await;
            }
            return Err(failed(error));
        }
        usage.release(id);
    }
    Ok(ids.into_iter().map(|id| id.version).collect())
}

/// Retires all versions or none.
async fn retire_all(
    usage: &dyn ModelUsage,
    deletion: &Deletion,
    ids: &[ModelId],
) -> Result<(), Status> {
    let reference = &deletion.reference;
    for (index, id) in ids.iter().enumerate() {
        let Err(error) = usage.retire(id, deletion.allowed.clone()).await else {
            continue;
        };
        for retired in &ids[..index] {
            usage.reinstate(retired).await;
        }
        let SessionError::ModelInUse { sessions, .. } = error else {
            return Err(status::session_store_error(&error));
        };
        if deletion.allowed != AllowedSessions::None {
            return Err(status::model_in_use_by_others(reference, sessions));
        }
        let mut sessions = 0;
        for id in ids {
            let count = usage.sessions(id).await;
            sessions += count.map_err(|error| status::session_store_error(&error))?;
        }
        return Err(status::model_in_use(reference, sessions));
    }
    Ok(())
}

/// Runs work that blocks on the disk on a thread that may block.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| status::internal(&error))
}
