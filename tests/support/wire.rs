//! The generated client, with a small model, and the calls that tests of
//! sessions make again and again.

use std::time::Duration;

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::session_service_client::SessionServiceClient;
use charlstm_proto::v1::*;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::{Server, train_small};

/// The prompt of each new session.
pub(crate) const PRIME: &str = "arma ";
/// The position of a session after its prompt.
pub(crate) const PRIMED: u64 = PRIME.len() as u64;

/// Reached only if the server never does what a test waits for.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Time between two looks at something that a test waits for: looking is to
/// take little of the processor from what makes it happen.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks for something until it is there, for at most [`LIMIT`].
pub(crate) async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                break found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap()
}

/// Repeats a call until it succeeds. Until then it must fail with this code.
pub(crate) async fn accepted<T>(
    while_rejected: Code,
    mut call: impl AsyncFnMut() -> Result<T, Status>,
) -> T {
    eventually(async || match call().await {
        Ok(answer) => Some(answer),
        Err(status) => {
            assert_eq!(status.code(), while_rejected, "{status}");
            None
        }
    })
    .await
}

/// Flow-control windows of the connection, in bytes: for one unread stream,
/// and for all together.
const STREAM_WINDOW: u32 = 1 << 16;
const CONNECTION_WINDOW: u32 = 1 << 24;

/// A server with a small model, and a connection to it.
pub(crate) struct Wire {
    pub(crate) server: Server,
    pub(crate) generation: GenerationServiceClient<Channel>,
    pub(crate) sessions: SessionServiceClient<Channel>,
}

/// A generation from its beginning to its end.
pub(crate) struct Generated {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) finished: GenerationFinished,
}

impl Wire {
    /// Starts a server and trains the model.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let server = Server::start(flags);
        let trained = train_small(&server, "verse", &[]);
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        Self::to(server).await
    }

    /// Connects to a server that has the model.
    pub(crate) async fn to(server: Server) -> Self {
        // With the default windows a connection holds tens of thousands of
        // unread characters, and h2 closes it before that, because each comes
        // in a frame of its own. With these, the server notices much earlier.
        let channel = Channel::from_shared(server.url().to_owned())
            .unwrap()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await
            .unwrap();
        Self {
            server,
            generation: GenerationServiceClient::new(channel.clone()),
            sessions: SessionServiceClient::new(channel),
        }
    }

    /// Starts a generation.
    pub(crate) async fn open(&mut self, request: GenerateRequest) -> Streaming<GenerateResponse> {
        let response = self.generation.generate(request).await;
        response.unwrap().into_inner()
    }

    /// Generates to the end.
    pub(crate) async fn generate(&mut self, request: GenerateRequest) -> Generated {
        let mut stream = self.open(request).await;
        rest(&mut stream).await.unwrap()
    }

    /// Generates to the end, and returns the text.
    pub(crate) async fn text(&mut self, request: GenerateRequest) -> String {
        self.generate(request).await.text
    }

    /// Returns the status of a generation that must be rejected.
    pub(crate) async fn rejection(&mut self, request: GenerateRequest) -> Status {
        self.generation.generate(request).await.unwrap_err()
    }

    pub(crate) async fn session(&mut self, id: &str) -> Result<Session, Status> {
        let session_id = id.to_owned();
        let response = self.sessions.get_session(GetSessionRequest {
            session_id,
            owner: None,
        });
        Ok(response.await?.into_inner().session.unwrap())
    }

    pub(crate) async fn fork(&mut self, id: &str, new: &str) -> Result<(), Status> {
        let (session_id, new_session_id) = (id.to_owned(), new.to_owned());
        let request = ForkSessionRequest {
            session_id,
            new_session_id,
            owner: None,
        };
        self.sessions.fork_session(request).await.map(drop)
    }

    pub(crate) async fn delete(&mut self, id: &str) {
        let session_id = id.to_owned();
        let request = DeleteSessionRequest {
            session_id,
            owner: None,
        };
        self.sessions.delete_session(request).await.unwrap();
    }

    pub(crate) async fn export(&mut self, id: &str) -> Result<Vec<u8>, Status> {
        let session_id = id.to_owned();
        let request = ExportSessionRequest {
            session_id,
            owner: None,
        };
        let response = self.sessions.export_session(request).await?;
        Ok(response.into_inner().data.to_vec())
    }

    pub(crate) async fn import(&mut self, data: &[u8], id: &str) -> Result<(), Status> {
        let (data, session_id) = (data.to_vec().into(), id.to_owned());
        let request = ImportSessionRequest {
            data,
            session_id,
            owner: None,
        };
        self.sessions.import_session(request).await.map(drop)
    }

    /// Returns the session when no call is in flight in it: a client that
    /// leaves cannot know when the server has noticed. A session exists from
    /// the commit of its first call on.
    pub(crate) async fn idle(&mut self, id: &str) -> Session {
        eventually(async || match self.session(id).await {
            Ok(session) => (!session.busy).then_some(session),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status}");
                None
            }
        })
        .await
    }

    /// Starts a generation, as soon as the server has a place for it.
    pub(crate) async fn admitted(
        &mut self,
        request: GenerateRequest,
    ) -> Streaming<GenerateResponse> {
        let generation = &mut self.generation;
        let call = async || generation.generate(request.clone()).await;
        accepted(Code::ResourceExhausted, call).await.into_inner()
    }
}

/// Returns a request that starts a session, or that has none if its name is
/// empty.
pub(crate) fn start(session: &str, chars: u32) -> GenerateRequest {
    GenerateRequest {
        model: "verse".to_owned(),
        prime: PRIME.to_owned(),
        sampling: Some(Sampling {
            seed: Some(7),
            ..Sampling::default()
        }),
        ..resume(session, chars)
    }
}

/// Returns a request that continues a session.
pub(crate) fn resume(session: &str, chars: u32) -> GenerateRequest {
    GenerateRequest {
        max_chars: Some(chars),
        session_id: Some(session.to_owned()),
        ..GenerateRequest::default()
    }
}

/// Returns the same request with the maximum length: it does not end before
/// its client wants it to.
pub(crate) fn endless(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        max_chars: Some(1_000_000),
        ..request
    }
}

/// Returns the same request, if the session is at a position.
pub(crate) fn expecting(position: u64, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        expected_position: Some(position),
        ..request
    }
}

/// Reads at least this number of characters.
pub(crate) async fn read(stream: &mut Streaming<GenerateResponse>, chars: usize) -> String {
    let mut text = String::new();
    while text.chars().count() < chars {
        match stream.message().await.unwrap().unwrap().event.unwrap() {
            Event::Started(_) => {}
            Event::Text(more) => text.push_str(&more.text),
            Event::Finished(finished) => panic!("ended too early: {finished:?}"),
        }
    }
    text
}

/// Reads a generation to its end.
pub(crate) async fn rest(stream: &mut Streaming<GenerateResponse>) -> Result<Generated, Status> {
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    loop {
        match stream.message().await?.unwrap().event.unwrap() {
            Event::Started(_) => {}
            Event::Text(more) => {
                text.push_str(&more.text);
                logprobs.extend(more.logprobs);
            }
            Event::Finished(finished) => {
                assert!(stream.message().await?.is_none(), "`finished` is the last");
                return Ok(Generated {
                    text,
                    logprobs,
                    finished,
                });
            }
        }
    }
}

/// Reads a generation to its end in the background.
pub(crate) fn drain(mut stream: Streaming<GenerateResponse>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { while let Ok(Some(_)) = stream.message().await {} })
}

/// Asserts code and reason of a status.
#[track_caller]
pub(crate) fn assert_status(status: &Status, code: Code, reason: &str) {
    let info = status.get_details_error_info();
    let actual = info.map_or_else(String::new, |info| info.reason);
    assert_eq!(
        (status.code(), actual.as_str()),
        (code, reason),
        "{status:?}"
    );
}

/// Returns the number of characters of a text.
pub(crate) fn length(text: &str) -> u64 {
    text.chars().count() as u64
}
