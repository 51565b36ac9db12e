//! What the tests of sessions ask of a server, and how: the generated client
//! and the few calls that come again and again.

use std::time::Duration;

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use charlstm_proto::v1::session_service_client::SessionServiceClient;
use charlstm_proto::v1::*;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

use crate::support::{Server, train_small};

/// What each new session begins with.
pub(crate) const PRIME: &str = "arma ";
pub(crate) const PRIMED: u64 = PRIME.len() as u64;

/// Reached only where the server never does what is waited for.
pub(crate) const HANGS: Duration = Duration::from_secs(120);

/// Bytes that are taken in of a stream that nobody reads, and of all together.
const STREAM_WINDOW: u32 = 1 << 16;
const CONNECTION_WINDOW: u32 = 1 << 24;

/// A server with a small model, and a connection to it.
pub(crate) struct Wire {
    pub(crate) server: Server,
    pub(crate) texts: GenerationServiceClient<Channel>,
    pub(crate) sessions: SessionServiceClient<Channel>,
}

/// A text from its beginning to its end.
pub(crate) struct Heard {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) finished: GenerationFinished,
}

impl Wire {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let server = Server::start(flags);
        let said = train_small(&server, "verse", &[]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        Self::to(server).await
    }

    pub(crate) async fn to(server: Server) -> Self {
        // With the usual windows a connection takes in tens of thousands of
        // characters that nobody reads, and h2 gives it up before: each comes
        // in a frame of its own. With these the server feels it much earlier.
        let channel = Channel::from_shared(server.url().to_owned())
            .unwrap()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await
            .unwrap();
        Self {
            server,
            texts: GenerationServiceClient::new(channel.clone()),
            sessions: SessionServiceClient::new(channel),
        }
    }

    pub(crate) async fn open(&mut self, request: GenerateRequest) -> Streaming<GenerateResponse> {
        self.texts.generate(request).await.unwrap().into_inner()
    }

    pub(crate) async fn hear(&mut self, request: GenerateRequest) -> Heard {
        let mut stream = self.open(request).await;
        rest(&mut stream).await.unwrap()
    }

    pub(crate) async fn text(&mut self, request: GenerateRequest) -> String {
        self.hear(request).await.text
    }

    /// The status of a call that must not be let in.
    pub(crate) async fn refusal(&mut self, request: GenerateRequest) -> Status {
        self.texts.generate(request).await.unwrap_err()
    }

    /// How an endless call ends whose caller stops waiting after a moment.
    pub(crate) async fn impatient(&mut self) -> Status {
        let mut request = Request::new(endless(anew("", 0)));
        request.set_timeout(Duration::from_millis(400));
        match self.texts.generate(request).await {
            Ok(stream) => rest(&mut stream.into_inner()).await.err().unwrap(),
            Err(status) => status,
        }
    }

    pub(crate) async fn session(&mut self, id: &str) -> Result<Session, Status> {
        let session_id = id.to_owned();
        let answer = self.sessions.get_session(GetSessionRequest { session_id });
        Ok(answer.await?.into_inner().session.unwrap())
    }

    pub(crate) async fn fork(&mut self, id: &str, new: &str) -> Result<(), Status> {
        let (session_id, new_session_id) = (id.to_owned(), new.to_owned());
        let request = ForkSessionRequest {
            session_id,
            new_session_id,
        };
        self.sessions.fork_session(request).await.map(drop)
    }

    pub(crate) async fn delete(&mut self, id: &str) {
        let session_id = id.to_owned();
        let request = DeleteSessionRequest { session_id };
        self.sessions.delete_session(request).await.unwrap();
    }

    pub(crate) async fn export(&mut self, id: &str) -> Result<Vec<u8>, Status> {
        let session_id = id.to_owned();
        let request = ExportSessionRequest { session_id };
        let answer = self.sessions.export_session(request).await?;
        Ok(answer.into_inner().data.to_vec())
    }

    pub(crate) async fn import(&mut self, data: &[u8], id: &str) -> Result<(), Status> {
        let (data, session_id) = (data.to_vec().into(), id.to_owned());
        let request = ImportSessionRequest { data, session_id };
        self.sessions.import_session(request).await.map(drop)
    }

    /// The session, once no call generates in it. A session exists from the
    /// commit of its first call on.
    pub(crate) async fn idle(&mut self, id: &str) -> Session {
        let idle = async {
            loop {
                match self.session(id).await {
                    Ok(session) if !session.busy => break session,
                    Ok(_) => {}
                    Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
                }
            }
        };
        tokio::time::timeout(HANGS, idle).await.unwrap()
    }

    /// A stream, once there is room for it.
    pub(crate) async fn admitted(
        &mut self,
        request: GenerateRequest,
    ) -> Streaming<GenerateResponse> {
        let admitted = async {
            loop {
                match self.texts.generate(request.clone()).await {
                    Ok(stream) => break stream.into_inner(),
                    Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
                }
            }
        };
        tokio::time::timeout(HANGS, admitted).await.unwrap()
    }
}

/// A call that begins a session, or one without, where it has no name.
pub(crate) fn anew(session: &str, chars: u32) -> GenerateRequest {
    GenerateRequest {
        model: "verse".to_owned(),
        prime: PRIME.to_owned(),
        sampling: Some(Sampling {
            seed: Some(7),
            ..Sampling::default()
        }),
        ..further(session, chars)
    }
}

/// A call that goes on with a session.
pub(crate) fn further(session: &str, chars: u32) -> GenerateRequest {
    GenerateRequest {
        max_chars: Some(chars),
        session_id: Some(session.to_owned()),
        ..GenerateRequest::default()
    }
}

/// A call that is not over before its reader wants it to be: the longest
/// that there is.
pub(crate) fn endless(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        max_chars: Some(1_000_000),
        ..request
    }
}

/// The same call, if the session is where it should be.
pub(crate) fn expecting(position: u64, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        expected_position: Some(position),
        ..request
    }
}

/// The next characters, so many at least.
pub(crate) async fn read(stream: &mut Streaming<GenerateResponse>, chars: usize) -> String {
    let mut text = String::new();
    while text.chars().count() < chars {
        match stream.message().await.unwrap().unwrap().event.unwrap() {
            Event::Started(_) => {}
            Event::Text(more) => text.push_str(&more.text),
            Event::Finished(finished) => panic!("too early an end: {finished:?}"),
        }
    }
    text
}

/// What is left of a text.
pub(crate) async fn rest(stream: &mut Streaming<GenerateResponse>) -> Result<Heard, Status> {
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    loop {
        match stream.message().await?.unwrap().event.unwrap() {
            Event::Started(_) => {}
            Event::Text(more) => {
                text.push_str(&more.text);
                logprobs.extend(more.logprobs);
            }
            Event::Finished(finished) => {
                assert!(stream.message().await?.is_none(), "the end is the last");
                return Ok(Heard {
                    text,
                    logprobs,
                    finished,
                });
            }
        }
    }
}

/// Reads a text in the background for as long as there is any.
pub(crate) fn drain(mut stream: Streaming<GenerateResponse>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { while let Ok(Some(_)) = stream.message().await {} })
}

pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

/// Asserts code and reason of a status.
#[track_caller]
pub(crate) fn is(status: &Status, code: Code, expected: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, expected));
}

pub(crate) fn length(text: &str) -> u64 {
    text.chars().count() as u64
}
