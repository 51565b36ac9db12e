//! The sessions of the fake server: they have positions, but no state.

use std::sync::atomic::Ordering;

use charlstm_proto::v1::session_service_server::SessionService;
use charlstm_proto::v1::{
    DeleteSessionRequest, DeleteSessionResponse, ExportSessionRequest, ExportSessionResponse,
    ForkSessionRequest, ForkSessionResponse, GenerateRequest, GetSessionRequest,
    GetSessionResponse, ImportSessionRequest, ImportSessionResponse, ListSessionsRequest,
    ListSessionsResponse, Session,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{FakeServer, Start, take_one};

/// A session: where it stands, where its last call began, and if it is in use.
#[derive(Clone, Copy, Default)]
pub(crate) struct FakeSession {
    pub(crate) end: Point,
    pub(crate) begin: Point,
    busy: bool,
    version: u64,
}

/// A point of a session.
#[derive(Clone, Copy, Default)]
pub(crate) struct Point {
    pub(crate) position: u64,
    pub(crate) generated: u64,
}

fn status(code: Code, reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "charlstm.v1", []);
    Status::with_error_details(code, message, details)
}

impl FakeServer {
    /// Reserves the session of a call and returns where the call begins.
    pub(crate) fn begin(&self, request: &GenerateRequest) -> Result<Start, Status> {
        let id = request.session_id();
        if id.is_empty() {
            return Ok(Start {
                position: 0,
                generated: 0,
            });
        }
        self.check_not_evicted(id)?;
        let mut sessions = self.sessions.lock().unwrap();
        let session = sessions.entry(id.to_owned()).or_insert(FakeSession {
            version: self.version(),
            ..Default::default()
        });
        if session.busy {
            let message = "another call is generating in the session";
            return Err(status(Code::Aborted, "SESSION_BUSY", message));
        }
        let point = match request.expected_position {
            None => session.end,
            Some(position) if position == session.end.position => session.end,
            Some(position) if position == session.begin.position => session.begin,
            Some(position) => {
                let message = format!(
                    "the session is at position {}, not {position}",
                    session.end.position
                );
                return Err(status(
                    Code::FailedPrecondition,
                    "POSITION_MISMATCH",
                    &message,
                ));
            }
        };
        session.busy = true;
        Ok(Start {
            position: point.position,
            generated: point.generated,
        })
    }

    /// Ends a call of which the reader has received `sent` characters.
    pub(crate) fn commit(&self, request: &GenerateRequest, start: Start, sent: usize) {
        let mut sessions = self.sessions.lock().unwrap();
        let Some(session) = sessions.get_mut(request.session_id()) else {
            return;
        };
        session.busy = false;
        session.begin = Point {
            position: start.position,
            generated: start.generated,
        };
        session.end = Point {
            position: start.position + request.prime.chars().count() as u64 + sent as u64,
            generated: start.generated + sent as u64,
        };
    }

    fn check_not_evicted(&self, id: &str) -> Result<(), Status> {
        if self.evicted.lock().unwrap().contains(id) {
            let message = format!("session {id} was evicted: it was idle for too long");
            return Err(status(Code::NotFound, "SESSION_EVICTED_IDLE", &message));
        }
        Ok(())
    }

    fn session(&self, id: &str) -> Result<Session, Status> {
        self.check_not_evicted(id)?;
        let sessions = self.sessions.lock().unwrap();
        let session = sessions.get(id).ok_or_else(|| {
            let message = format!("there is no session {id}");
            status(Code::NotFound, "SESSION_NOT_FOUND", &message)
        })?;
        Ok(Session {
            session_id: id.into(),
            model: "m".into(),
            version: session.version,
            position: session.end.position,
            last_call_position: session.begin.position,
            busy: session.busy,
            ..Default::default()
        })
    }

    fn check_storage(&self) -> Result<(), Status> {
        if take_one(&self.storage_failures) {
            return Err(self.storage_unavailable());
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl SessionService for FakeServer {
    async fn get_session(
        &self,
        request: Request<GetSessionRequest>,
    ) -> Result<Response<GetSessionResponse>, Status> {
        let session = self.session(&request.into_inner().session_id)?;
        Ok(Response::new(GetSessionResponse {
            session: Some(session),
        }))
    }

    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let ids: Vec<String> = self.sessions.lock().unwrap().keys().cloned().collect();
        let sessions = ids.iter().map(|id| self.session(id));
        Ok(Response::new(ListSessionsResponse {
            sessions: sessions.collect::<Result<_, _>>()?,
            ..Default::default()
        }))
    }

    async fn fork_session(
        &self,
        request: Request<ForkSessionRequest>,
    ) -> Result<Response<ForkSessionResponse>, Status> {
        self.check_storage()?;
        let request = request.into_inner();
        self.session(&request.session_id)?;
        let mut sessions = self.sessions.lock().unwrap();
        let copy = sessions[&request.session_id];
        sessions.insert(request.new_session_id.clone(), copy);
        drop(sessions);
        Ok(Response::new(ForkSessionResponse {
            session: Some(self.session(&request.new_session_id)?),
        }))
    }

    async fn delete_session(
        &self,
        request: Request<DeleteSessionRequest>,
    ) -> Result<Response<DeleteSessionResponse>, Status> {
        self.check_storage()?;
        let id = request.into_inner().session_id;
        if !self.evicted.lock().unwrap().remove(&id) {
            self.session(&id)?;
            self.sessions.lock().unwrap().remove(&id);
        }
        Ok(Response::new(DeleteSessionResponse {}))
    }

    async fn export_session(
        &self,
        request: Request<ExportSessionRequest>,
    ) -> Result<Response<ExportSessionResponse>, Status> {
        let session = self.session(&request.into_inner().session_id)?;
        let data = format!("{} {}", session.position, self.version());
        Ok(Response::new(ExportSessionResponse {
            data: data.into_bytes().into(),
        }))
    }

    async fn import_session(
        &self,
        request: Request<ImportSessionRequest>,
    ) -> Result<Response<ImportSessionResponse>, Status> {
        self.check_storage()?;
        let request = request.into_inner();
        let data = String::from_utf8(request.data.to_vec()).unwrap();
        let (position, version) = data
            .split_once(' ')
            .ok_or_else(|| Status::invalid_argument("data: not a session"))?;
        let point = Point {
            position: position.parse().unwrap(),
            generated: 0,
        };
        let session = FakeSession {
            end: point,
            begin: point,
            busy: false,
            version: version.parse().unwrap(),
        };
        let mut sessions = self.sessions.lock().unwrap();
        sessions.insert(request.session_id.clone(), session);
        drop(sessions);
        Ok(Response::new(ImportSessionResponse {
            session: Some(self.session(&request.session_id)?),
        }))
    }
}

impl FakeServer {
    /// Publishes another version of the model.
    pub(crate) fn publish(&self) {
        self.newer_versions.fetch_add(1, Ordering::SeqCst);
    }
}
