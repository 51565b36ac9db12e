//! Calls by single HTTP/2 frames, for what no client library does.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::codegen::http::{HeaderMap, Request, StatusCode};

use super::Server;

/// A connection to a server, which is closed when this is dropped.
pub(crate) struct Frames {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A call whose request is not complete.
pub(crate) struct OpenCall {
    pub(crate) request: SendStream<Bytes>,
    pub(crate) response: ResponseFuture,
}

/// What a server responds before, or instead of, the first message.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

impl Head {
    /// Returns the value of `grpc-status`, if the call has ended.
    pub(crate) fn grpc_status(&self) -> Option<i32> {
        let code = self.headers.get("grpc-status")?;
        code.to_str().ok()?.parse().ok()
    }
}

/// Returns the headers of a call of `path`, such as
/// `charlstm.v1.ModelService/ListModels`.
pub(crate) fn headers(server: &Server, path: &str, further: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("{}/{path}", server.url())).header("te", "trailers");
    if !further.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in further {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// Returns a message as gRPC frames it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

impl Frames {
    /// Connects to the server.
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::connect_with_window(server, 65_535).await
    }

    /// Connects to the server, which may send this number of bytes in each
    /// response before the client has read any.
    pub(crate) async fn connect_with_window(server: &Server, window: u32) -> Self {
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let mut client = h2::client::Builder::new();
        let handshake = client.initial_window_size(window).handshake(stream);
        let (requests, connection) = handshake.await.unwrap();
        let connection = tokio::spawn(async move {
            // Ends with an error if the server closes the connection.
            let _ = connection.await;
        });
        Self {
            requests,
            connection,
        }
    }

    /// Begins a call.
    pub(crate) async fn open(&mut self, request: Request<()>) -> OpenCall {
        let mut requests = self.requests.clone().ready().await.unwrap();
        let (response, request) = requests.send_request(request, false).unwrap();
        OpenCall { request, response }
    }

    /// Makes a call with these bytes as the messages of its request.
    pub(crate) async fn call(&mut self, request: Request<()>, messages: Bytes) -> Head {
        let mut call = self.open(request).await;
        call.request.send_data(messages, true).unwrap();
        call.head().await
    }
}

impl OpenCall {
    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: Bytes) {
        self.request.send_data(bytes, false).unwrap();
    }

    /// Resets the call.
    pub(crate) fn reset(mut self, reason: Reason) {
        self.request.send_reset(reason);
    }

    /// Waits for the headers of the response.
    pub(crate) async fn head(self) -> Head {
        let response = self.response.await.unwrap();
        Head {
            status: response.status(),
            headers: response.headers().clone(),
        }
    }
}
