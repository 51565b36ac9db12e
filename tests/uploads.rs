//! Uploads that their client does not complete start nothing: no training, no
//! model.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use charlstm_proto::v1::*;
use h2::Reason;
use tonic::codegen::Bytes;
use tonic::transport::Channel;

use crate::support::frames::{Frames, OpenCall, framed, headers};
use crate::support::metrics_page::{get, metrics_address};
use crate::support::{Server, train_small, verse};

const TRAIN: &str = "charlstm.v1.TrainingService/Train";
const IMPORT: &str = "charlstm.v1.ModelService/ImportModel";

/// How often each way to leave is tried: whether the end of the request or the
/// cancellation is seen first depends on the timing.
const ATTEMPTS: usize = 20;

/// A spec and a corpus that a training would start with.
fn training() -> Vec<Bytes> {
    let spec = TrainingSpec {
        model: "cut-off".to_owned(),
        hidden_size: Some(16),
        batch_size: Some(4),
        sequence_length: Some(10),
        epochs: Some(1),
        ..TrainingSpec::default()
    };
    let message = |payload| {
        framed(&TrainRequest {
            payload: Some(payload),
        })
    };
    let corpus = Bytes::from(verse(4000));
    vec![
        message(train_request::Payload::Spec(spec)),
        message(train_request::Payload::CorpusChunk(corpus)),
    ]
}

/// A complete model file, as an upload.
fn import(file: &[u8]) -> Vec<Bytes> {
    let header = ImportModelHeader {
        name: "cut-off".to_owned(),
        ..ImportModelHeader::default()
    };
    let message = |payload| {
        framed(&ImportModelRequest {
            payload: Some(payload),
        })
    };
    vec![
        message(import_model_request::Payload::Header(header)),
        message(import_model_request::Payload::Chunk(file.to_vec().into())),
    ]
}

/// Sends everything but the end of the request.
async fn upload(frames: &mut Frames, server: &Server, path: &str, messages: &[Bytes]) -> OpenCall {
    upload_with(frames, server, path, messages, &[]).await
}

async fn upload_with(
    frames: &mut Frames,
    server: &Server,
    path: &str,
    messages: &[Bytes],
    further: &[(&str, &str)],
) -> OpenCall {
    let mut call = frames.open(headers(server, path, further)).await;
    for message in messages {
        call.send(message.clone());
    }
    call
}

/// Maximum number of times that a wait reads the metrics: two minutes or more.
const POLLS: usize = 12_000;

/// Waits until only this number of connections is open, and all calls of both
/// methods have ended.
fn wait_until_ended(metrics: &str, connections: usize) {
    let open = format!("charlstm_connections {connections}");
    for _ in 0..POLLS {
        let page = get(metrics, "/metrics").1;
        let count = |name: &str, method: &str| -> f64 {
            page.lines()
                .filter(|line| line.starts_with(name) && line.contains(method))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        let has_ended = ["\"Train\"", "\"ImportModel\""].into_iter().all(|method| {
            count("grpc_server_started_total", method) == count("grpc_server_handled_total", method)
        });
        if has_ended && page.lines().any(|line| line == open) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!(
        "calls or connections are still open:\n{}",
        get(metrics, "/metrics").1
    );
}

struct Fixture {
    server: Server,
    metrics: String,
    models: ModelServiceClient<Channel>,
    trainings: TrainingServiceClient<Channel>,
    /// The file of a model.
    file: Vec<u8>,
}

impl Fixture {
    async fn start() -> Self {
        let server = Server::start(&["--metrics-listen", "127.0.0.1:0"]);
        let trained = train_small(&server, "verse", &[]);
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        let channel = server.connect().await;
        let mut models = ModelServiceClient::new(channel.clone());
        let model = "verse".to_owned();
        let exported = models.export_model(ExportModelRequest { model }).await;
        let mut exported = exported.unwrap().into_inner();
        let mut file = Vec::new();
        while let Some(message) = exported.message().await.unwrap() {
            if let Some(export_model_response::Payload::Chunk(chunk)) = message.payload {
                file.extend_from_slice(&chunk);
            }
        }
        Self {
            metrics: metrics_address(&server),
            server,
            models,
            trainings: TrainingServiceClient::new(channel),
            file,
        }
    }

    /// Leaves uploads of both kinds, in the way that `leave` does it.
    async fn leave(&self, leave: impl AsyncFn(&Server, &str, &[Bytes])) {
        let import = import(&self.file);
        for _ in 0..ATTEMPTS {
            leave(&self.server, TRAIN, &training()).await;
            leave(&self.server, IMPORT, &import).await;
        }
    }

    /// Asserts that none of the uploads has started anything.
    async fn assert_nothing_started(&mut self) {
        // The connection of this fixture stays open.
        wait_until_ended(&self.metrics, 1);
        let listed = self
            .trainings
            .list_trainings(ListTrainingsRequest::default())
            .await;
        let trainings = listed.unwrap().into_inner().trainings;
        let started: Vec<_> = trainings
            .iter()
            .map(|t| &*t.spec.as_ref().unwrap().model)
            .collect();
        assert_eq!(started, ["verse"]);
        let listed = self.models.list_models(ListModelsRequest {}).await;
        let models = listed.unwrap().into_inner().models;
        let published: Vec<_> = models.iter().map(|m| &m.name).collect();
        assert_eq!(published, ["verse"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cancelled_or_reset_starts_nothing() {
    let mut fixture = Fixture::start().await;
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let leave = async |server: &Server, path: &str, messages: &[Bytes]| {
            let mut frames = Frames::connect(server).await;
            let call = upload(&mut frames, server, path, messages).await;
            // The frames are on their way, and the call may be in any state.
            tokio::time::sleep(Duration::from_millis(2)).await;
            call.reset(reason);
            // The reset must be sent before the connection is closed.
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        fixture.leave(leave).await;
    }
    fixture.assert_nothing_started().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_deadline_passes_starts_nothing() {
    let mut fixture = Fixture::start().await;
    let leave = async |server: &Server, path: &str, messages: &[Bytes]| {
        let mut frames = Frames::connect(server).await;
        let timeout = [("grpc-timeout", "20m")];
        let call = upload_with(&mut frames, server, path, messages, &timeout).await;
        assert_eq!(call.head().await.grpc_status(), Some(4));
    };
    fixture.leave(leave).await;
    fixture.assert_nothing_started().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_connection_breaks_starts_nothing() {
    let mut fixture = Fixture::start().await;
    let leave = async |server: &Server, path: &str, messages: &[Bytes]| {
        let mut frames = Frames::connect(server).await;
        let _call = upload(&mut frames, server, path, messages).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        // Dropping `frames` closes the connection without any frame.
    };
    fixture.leave(leave).await;
    fixture.assert_nothing_started().await;
}

/// Forwards connections to `target`. Each is closed, on both sides, after this
/// number of bytes from the client.
fn cutting_proxy(target: String, cut: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(&target)) else {
                return;
            };
            let down = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || forward(down.0, down.1, usize::MAX));
            std::thread::spawn(move || forward(client, server, cut));
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut limit: usize) {
    let mut buffer = [0; 512];
    while limit > 0 {
        let size = limit.min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..size]) else {
            break;
        };
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        limit -= read;
    }
    // Fails only if the other side has closed it already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_through_a_proxy_that_drops_the_connection_starts_nothing() {
    let mut fixture = Fixture::start().await;
    let target = fixture.server.address().to_owned();
    // In the middle of the corpus, and of the model.
    let proxy = format!("http://{}", cutting_proxy(target, 3000));
    for _ in 0..ATTEMPTS {
        let channel = Channel::from_shared(proxy.clone()).unwrap();
        let mut trainings = TrainingServiceClient::new(channel.connect().await.unwrap());
        let spec = TrainingSpec {
            model: "cut-off".to_owned(),
            hidden_size: Some(16),
            ..TrainingSpec::default()
        };
        let spec = TrainRequest {
            payload: Some(train_request::Payload::Spec(spec)),
        };
        let chunks = std::iter::repeat_with(|| TrainRequest {
            payload: Some(train_request::Payload::CorpusChunk(verse(1000).into())),
        });
        let messages: Vec<_> = std::iter::once(spec).chain(chunks.take(10)).collect();
        let status = trainings.train(tokio_stream::iter(messages)).await;
        assert!(status.is_err(), "the connection is dropped");
    }
    fixture.assert_nothing_started().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_completed_starts_even_if_its_last_message_is_empty() {
    let mut fixture = Fixture::start().await;
    let mut frames = Frames::connect(&fixture.server).await;
    let mut call = upload(&mut frames, &fixture.server, IMPORT, &import(&fixture.file)).await;
    call.request.send_data(Bytes::new(), true).unwrap();
    let head = call.head().await;
    assert_eq!(head.grpc_status(), None, "{head:?}");
    let listed = fixture.models.list_models(ListModelsRequest {}).await;
    assert_eq!(listed.unwrap().into_inner().models.len(), 2);
}
