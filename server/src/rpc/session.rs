//! `SessionService`: what there is to see and to do about sessions between
//! two calls. What a session is, and how it is kept, is in
//! `charlstm_engine::sessions`.

use charlstm_proto::v1 as pb;
use charlstm_proto::v1::session_service_server::{SessionService, SessionServiceServer};
use tonic::{Request, Response, Status};

use super::generation::session_id;
use super::status;
use charlstm_engine::generation::Engine;
use charlstm_engine::sessions::SessionId;
use charlstm_engine::sessions::store::{SessionError, SessionSummary};
use charlstm_model::decode_step::Precision;

#[cfg(test)]
mod tests;

/// Sessions on a page where the request does not say how many.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// Most sessions on a page: some 100 KB.
const MAX_PAGE_SIZE: u32 = 1000;

/// The service.
#[derive(Clone)]
pub struct SessionRpc {
    engine: Engine,
}

impl SessionRpc {
    /// The service on an engine, ready to be added to a server.
    pub fn server(engine: Engine) -> SessionServiceServer<Self> {
        SessionServiceServer::new(Self { engine })
    }
}

#[tonic::async_trait]
impl SessionService for SessionRpc {
    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let id = named(&request.get_ref().session_id)?;
        let facts = self.engine.session(&id).map_err(about(&id))?;
        let session = Some(session(facts));
        Ok(Response::new(pb::GetSessionResponse { session }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let size = request.page_size.unwrap_or(DEFAULT_PAGE_SIZE);
        if !(1..=MAX_PAGE_SIZE).contains(&size) {
            let message = format!("must be 1 to {MAX_PAGE_SIZE}, not {size}");
            return Err(status::invalid("page_size", message));
        }
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                status::invalid("page_token", "is not a next_page_token of this service")
            })?),
        };
        let page = self.engine.sessions(size as usize, after);
        Ok(Response::new(pb::ListSessionsResponse {
            sessions: page.sessions.into_iter().map(session).collect(),
            next_page_token: page.next.map_or_else(String::new, |mark| mark.to_string()),
            total: page.total as u64,
        }))
    }

    async fn fork_session(
        &self,
        request: Request<pb::ForkSessionRequest>,
    ) -> Result<Response<pb::ForkSessionResponse>, Status> {
        let request = request.into_inner();
        let id = named(&request.session_id)?;
        let new = session_id("new_session_id", &request.new_session_id)?;
        let forked = self.engine.fork_session(&id, &new);
        let facts = forked.map_err(|error| {
            let about = if error == SessionError::Exists {
                &new
            } else {
                &id
            };
            status::session_error(about, error)
        })?;
        let session = Some(session(facts));
        Ok(Response::new(pb::ForkSessionResponse { session }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Result<Response<pb::DeleteSessionResponse>, Status> {
        let id = named(&request.get_ref().session_id)?;
        self.engine.delete_session(&id).map_err(about(&id))?;
        Ok(Response::new(pb::DeleteSessionResponse {}))
    }

    async fn export_session(
        &self,
        request: Request<pb::ExportSessionRequest>,
    ) -> Result<Response<pb::ExportSessionResponse>, Status> {
        let id = named(&request.get_ref().session_id)?;
        let data = self.engine.export_session(&id).map_err(about(&id))?;
        Ok(Response::new(pb::ExportSessionResponse {
            data: data.into(),
        }))
    }

    async fn import_session(
        &self,
        request: Request<pb::ImportSessionRequest>,
    ) -> Result<Response<pb::ImportSessionResponse>, Status> {
        let request = request.into_inner();
        let name = match request.session_id.as_str() {
            "" => None,
            name => Some(named(name)?),
        };
        let imported = self.engine.import_session(&request.data, name).await;
        let facts = imported.map_err(|error| status::import_error(&error))?;
        let session = Some(session(facts));
        Ok(Response::new(pb::ImportSessionResponse { session }))
    }
}

fn named(name: &str) -> Result<SessionId, Status> {
    session_id("session_id", name)
}

fn about(id: &SessionId) -> impl Fn(SessionError) -> Status {
    move |error| status::session_error(id, error)
}

fn session(facts: SessionSummary) -> pb::Session {
    let (model, version) = facts.model.map_or_else(Default::default, |key| {
        (key.id.name.clone(), key.id.version)
    });
    pb::Session {
        session_id: facts.id.to_string(),
        model,
        version,
        position: facts.position,
        last_call_position: facts.last_call_position,
        busy: facts.busy,
        idle_ms: u64::try_from(facts.idle.as_millis()).unwrap_or(u64::MAX),
        bytes: facts.bytes as u64,
        precision: Precision::Float32.to_string(),
    }
}
