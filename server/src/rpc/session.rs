//! `SessionService`: describes, lists, copies, deletes, exports and imports
//! sessions. What a session is, and how it is stored, is in
//! `charlstm_store::session`.

use std::sync::Arc;

use bytes::Bytes;
use charlstm_engine::Engine;
use charlstm_proto::v1 as pb;
use charlstm_proto::v1::session_service_server::{SessionService, SessionServiceServer};
use charlstm_store::session::{
    ListRequest, PageToken, PortableSession, SealError, SessionError, SessionId, SessionInfo,
    SessionKey, SnapshotKeys,
};
use tonic::{Request, Response, Status};

use super::call_record::CallRecord;
use super::generation::session_id;
use super::principal::{Principal, Role};
use super::status;

#[cfg(test)]
mod tests;

/// Number of sessions on a page if the request does not say.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// Maximum number of sessions on a page: some 100 KB.
const MAX_PAGE_SIZE: u32 = 1000;

/// The service.
#[derive(Clone)]
pub struct SessionRpc {
    engine: Engine,
    keys: Arc<SnapshotKeys>,
}

impl SessionRpc {
    /// Returns the service on an engine, ready to be added to a server. It
    /// seals exported sessions with `keys`.
    pub fn server(engine: Engine, keys: Arc<SnapshotKeys>) -> SessionServiceServer<Self> {
        SessionServiceServer::new(Self { engine, keys })
    }
}

#[tonic::async_trait]
impl SessionService for SessionRpc {
    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let message = request.get_ref();
        let key = key(&request, &message.session_id, message.owner.as_deref())?;
        let info = self.engine.session(&key).await;
        let session = Some(session(info.map_err(about(&key.id))?));
        Ok(Response::new(pb::GetSessionResponse { session }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let principal = Principal::of(&request)?;
        let request = request.into_inner();
        let owner = principal.owner_to_list(request.owner.as_deref())?;
        let size = request.page_size.unwrap_or(DEFAULT_PAGE_SIZE);
        if !(1..=MAX_PAGE_SIZE).contains(&size) {
            let message = format!("must be 1 to {MAX_PAGE_SIZE}, not {size}");
            return Err(status::invalid("page_size", message));
        }
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(PageToken(token.parse().map_err(|_| {
                status::invalid("page_token", "is not a next_page_token of this service")
            })?)),
        };
        let list = ListRequest {
            owner,
            max_sessions: size as usize,
            after,
        };
        let page = self.engine.sessions(list).await;
        let page = page.map_err(|error| status::session_store_error(&error))?;
        Ok(Response::new(pb::ListSessionsResponse {
            sessions: page.sessions.into_iter().map(session).collect(),
            next_page_token: page
                .next
                .map_or_else(String::new, |token| token.0.to_string()),
            total: page.total,
        }))
    }

    async fn fork_session(
        &self,
        request: Request<pb::ForkSessionRequest>,
    ) -> Result<Response<pb::ForkSessionResponse>, Status> {
        let message = request.get_ref();
        let key = key(&request, &message.session_id, message.owner.as_deref())?;
        let new_id = session_id("new_session_id", &message.new_session_id)?;
        let limit = Principal::of(&request)?.max_sessions(&key.owner);
        let forked = self.engine.fork_session(&key, &new_id, limit).await;
        let info = forked.map_err(|error| {
            let about = if error == SessionError::Exists {
                &new_id
            } else {
                &key.id
            };
            status::session_error(about, &error)
        })?;
        let session = Some(session(info));
        Ok(Response::new(pb::ForkSessionResponse { session }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Result<Response<pb::DeleteSessionResponse>, Status> {
        let message = request.get_ref();
        let key = key(&request, &message.session_id, message.owner.as_deref())?;
        let deleted = self.engine.delete_session(&key).await;
        deleted.map_err(about(&key.id))?;
        Ok(Response::new(pb::DeleteSessionResponse {}))
    }

    async fn export_session(
        &self,
        request: Request<pb::ExportSessionRequest>,
    ) -> Result<Response<pb::ExportSessionResponse>, Status> {
        let message = request.get_ref();
        let key = key(&request, &message.session_id, message.owner.as_deref())?;
        let exported = self.engine.export_session(&key).await;
        let snapshot = exported.map_err(about(&key.id))?;
        let data = self.keys.seal(&snapshot);
        let data = data.map_err(|error| status::internal(&error))?;
        Ok(Response::new(pb::ExportSessionResponse { data }))
    }

    async fn import_session(
        &self,
        request: Request<pb::ImportSessionRequest>,
    ) -> Result<Response<pb::ImportSessionResponse>, Status> {
        let principal = Principal::of(&request)?;
        let request = request.into_inner();
        let owner = principal.owner_or(request.owner.as_deref())?;
        let portable = portable_session(&request.data, &self.keys, &principal)?;
        let id = match (request.session_id.as_str(), &portable.id) {
            ("", Some(id)) => id.clone(),
            (id, _) => session_id("session_id", id)?,
        };
        let limit = principal.max_sessions(&owner);
        let key = SessionKey::new(owner, id);
        let imported = self.engine.import_session(key, portable, limit).await;
        let info = imported.map_err(|error| status::import_error(&error))?;
        let session = Some(session(info));
        Ok(Response::new(pb::ImportSessionResponse { session }))
    }
}

/// Reads exported bytes. An administrator may import the sessions of all, and
/// bytes without a seal of this server, from version 0.1 or sealed with another
/// key, which are read as untrusted input. A snapshot with a seal of this server
/// that does not match is rejected.
fn portable_session(
    data: &Bytes,
    keys: &SnapshotKeys,
    principal: &Principal,
) -> Result<PortableSession, Status> {
    let owner = (!principal.is_admin()).then(|| principal.owner());
    let opened = match keys.open(data, owner) {
        Ok(snapshot) => return Ok(snapshot.into()),
        Err(SealError::UnknownKey | SealError::Magic) => PortableSession::read_unsealed(data),
        Err(error) => Err(error),
    };
    let portable = opened.map_err(|error| status::invalid_export(&error))?;
    principal.require(Role::Admin)?;
    Ok(portable)
}

/// The session that a request means: two callers may use the same id.
fn key<T>(request: &Request<T>, id: &str, owner: Option<&str>) -> Result<SessionKey, Status> {
    CallRecord::of(request.extensions()).requested("", id, "");
    let owner = Principal::of(request)?.owner_or(owner)?;
    Ok(SessionKey::new(owner, session_id("session_id", id)?))
}

fn about(id: &SessionId) -> impl Fn(SessionError) -> Status {
    move |error| status::session_error(id, &error)
}

fn session(info: SessionInfo) -> pb::Session {
    let SessionInfo { key, identity, .. } = info;
    pb::Session {
        session_id: key.id.to_string(),
        owner: key.owner.to_string(),
        model: identity.model.name.to_string(),
        version: identity.model.version,
        position: info.position,
        last_call_position: info.last_call_position,
        busy: info.busy,
        idle_ms: u64::try_from(info.idle.as_millis()).unwrap_or(u64::MAX),
        bytes: info.bytes,
        precision: identity.precision.to_string(),
    }
}
