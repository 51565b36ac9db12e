//! The use of models by the sessions of the engine.

use charlstm_engine::Engine;
use charlstm_repository::ModelId;
use charlstm_store::session::{AllowedSessions, SessionError};

use crate::rpc::model::ModelUsage;

/// The sessions of a model version.
pub(super) struct EngineModelUsage(pub(super) Engine);

#[tonic::async_trait]
impl ModelUsage for EngineModelUsage {
    async fn sessions(&self, id: &ModelId) -> Result<u64, SessionError> {
        self.0.count_sessions_of(id).await
    }

    async fn retire(&self, id: &ModelId, allowed: AllowedSessions) -> Result<(), SessionError> {
        self.0.retire_model(id, allowed).await
    }

    async fn reinstate(&self, id: &ModelId) {
        if let Err(error) = self.0.reinstate_model(id).await {
            tracing::error!(model = %id, %error, "no session can start on a model that was not deleted");
        }
    }

    fn release(&self, id: &ModelId) {
        self.0.drop_model(id);
    }
}
