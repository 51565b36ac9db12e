//! A server that follows the contract without a model: text is the alphabet
//! repeated, and a training is a fixed list of events.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charlstm_proto::v1::generation_service_server::{GenerationService, GenerationServiceServer};
use charlstm_proto::v1::train_request::Payload;
use charlstm_proto::v1::training_service_server::{TrainingService, TrainingServiceServer};
use charlstm_proto::v1::{
    CancelTrainingRequest, CancelTrainingResponse, EpochProgress, FinishReason, GenerateRequest,
    GenerateResponse, GeneratedText, GenerationFinished, GenerationStarted, GetTrainingRequest,
    GetTrainingResponse, ListTrainingsRequest, ListTrainingsResponse, ResumeTrainingRequest,
    ResumeTrainingResponse, ScoreRequest, ScoreResponse, StartTrainingRequest,
    StartTrainingResponse, State, TrainRequest, TrainResponse, TrainingAccepted, TrainingFinished,
    TrainingSpec, WatchTrainingRequest, WatchTrainingResponse, generate_response, train_response,
    watch_training_response,
};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// How the server behaves, and which requests it has received.
#[derive(Clone, Default)]
pub(crate) struct FakeServer {
    /// Send this number of characters, then keep the stream open and silent.
    pub(crate) stall_after: Option<usize>,
    /// Reject `Generate` with RESOURCE_EXHAUSTED.
    pub(crate) saturated: bool,
    /// Reject `Generate` with a violation of this field.
    pub(crate) invalid_field: Option<&'static str>,
    /// End the stream of `Train` after the first epoch with UNAVAILABLE.
    pub(crate) break_training: bool,
    /// Pause the training after the first epoch until it is cancelled.
    pub(crate) wait_for_cancel: bool,
    /// The requests so far.
    pub(crate) received: Arc<Mutex<Received>>,
    /// Notified when a training is cancelled.
    pub(crate) cancelled: Arc<Notify>,
}

/// The requests that the server has received.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) generate: Vec<GenerateRequest>,
    pub(crate) spec: Option<TrainingSpec>,
    pub(crate) corpus: Vec<u8>,
    pub(crate) chunks: usize,
    pub(crate) watched_from: Vec<Option<u64>>,
    pub(crate) cancelled: Vec<String>,
}

/// A running server. Dropping it stops the server and closes all connections.
pub(crate) struct RunningServer {
    runtime: Option<Runtime>,
    pub(crate) address: SocketAddr,
}

impl FakeServer {
    /// Starts the server at `address`.
    pub(crate) fn serve(&self, address: &str) -> RunningServer {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(async {
            // tokio sets SO_REUSEADDR, so that a test can reuse its port.
            tokio::net::TcpListener::bind(address).await.unwrap()
        });
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(GenerationServiceServer::new(self.clone()))
            .add_service(TrainingServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        RunningServer {
            runtime: Some(runtime),
            address,
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Ends the tasks of the connections too, not only the listener.
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// Returns an address where no server listens.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Returns the `count` characters from `position` on.
pub(crate) fn alphabet(position: u64, count: usize) -> String {
    let letter = |index: u64| char::from(b'a' + (index % 26) as u8);
    (position..).take(count).map(letter).collect()
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn generated(event: generate_response::Event) -> Result<GenerateResponse, Status> {
    Ok(GenerateResponse { event: Some(event) })
}

#[tonic::async_trait]
impl GenerationService for FakeServer {
    type GenerateStream = Events<GenerateResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        self.received.lock().unwrap().generate.push(request.clone());
        if let Some(field) = self.invalid_field {
            let details = ErrorDetails::with_bad_request_violation(field, "must be smaller");
            let message = format!("{field}: must be smaller");
            return Err(Status::with_error_details(
                Code::InvalidArgument,
                message,
                details,
            ));
        }
        if self.saturated {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
            let message = "the queue is full";
            return Err(Status::with_error_details(
                Code::ResourceExhausted,
                message,
                details,
            ));
        }
        let (sender, receiver) = mpsc::channel(4);
        let stall_after = self.stall_after;
        tokio::spawn(async move {
            let start = request.expected_position.unwrap_or(0);
            let chars = request.max_chars() as usize;
            let send = async |event| sender.send(generated(event)).await.is_ok();
            send(generate_response::Event::Started(GenerationStarted {
                session_id: request.session_id().into(),
                model: "m".into(),
                version: 1,
                seed: 1,
                position: start,
                precision: "float32".into(),
            }))
            .await;
            for index in 0..chars {
                if stall_after == Some(index) {
                    sender.closed().await;
                }
                let position = start + index as u64;
                let text = GeneratedText {
                    text: alphabet(position, 1),
                    logprobs: vec![],
                    position: position + 1,
                };
                if !send(generate_response::Event::Text(text)).await {
                    return;
                }
            }
            send(generate_response::Event::Finished(GenerationFinished {
                reason: FinishReason::Length.into(),
                chars: chars as u64,
                position: start + chars as u64,
                seconds: 0.1,
                ..Default::default()
            }))
            .await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn score(
        &self,
        request: Request<ScoreRequest>,
    ) -> Result<Response<ScoreResponse>, Status> {
        let chars = request.into_inner().text.chars().count() as u64;
        Ok(Response::new(ScoreResponse {
            chars: chars - 1,
            bits_per_char: 2.0,
            loss: 2.0 * std::f64::consts::LN_2,
            perplexity: 4.0,
        }))
    }
}

/// Returns the event with a sequence number, the same for every training.
fn event(sequence: u64, cancelled: bool) -> train_response::Event {
    match sequence {
        0 => train_response::Event::Accepted(TrainingAccepted {
            corpus_chars: 1000,
            vocabulary_size: 26,
            steps_per_epoch: 5,
            parameters: 1234,
            device: "cpu".into(),
            resolved_spec: Some(TrainingSpec {
                model: "m".into(),
                epochs: Some(2),
                ..Default::default()
            }),
        }),
        1 | 2 => train_response::Event::Epoch(EpochProgress {
            epoch: sequence as u32,
            train_loss: 3.0 / sequence as f64,
            bits_per_char: 4.0,
            sample: format!("sample {sequence}"),
            ..Default::default()
        }),
        _ => train_response::Event::Finished(TrainingFinished {
            state: if cancelled {
                State::Cancelled.into()
            } else {
                State::Succeeded.into()
            },
            model: "m".into(),
            version: u64::from(!cancelled),
            train_loss: 1.5,
            ..Default::default()
        }),
    }
}

#[tonic::async_trait]
impl TrainingService for FakeServer {
    type TrainStream = Events<TrainResponse>;
    type WatchTrainingStream = Events<WatchTrainingResponse>;

    async fn train(
        &self,
        request: Request<Streaming<TrainRequest>>,
    ) -> Result<Response<Self::TrainStream>, Status> {
        let mut upload = request.into_inner();
        while let Some(message) = upload.message().await? {
            let mut received = self.received.lock().unwrap();
            match message.payload {
                Some(Payload::Spec(spec)) => received.spec = Some(spec),
                Some(Payload::CorpusChunk(chunk)) => {
                    received.corpus.extend_from_slice(&chunk);
                    received.chunks += 1;
                }
                None => {}
            }
        }
        let (sender, receiver) = mpsc::channel(4);
        let fake = self.clone();
        tokio::spawn(async move {
            for sequence in 0..4 {
                if sequence == 2 && fake.break_training {
                    let _ = sender
                        .send(Err(Status::unavailable("connection lost")))
                        .await;
                    return;
                }
                if sequence == 2 && fake.wait_for_cancel {
                    fake.cancelled.notified().await;
                }
                let response = TrainResponse {
                    training_id: "t1".into(),
                    sequence,
                    event: Some(event(sequence, fake.wait_for_cancel)),
                };
                let _ = sender.send(Ok(response)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn watch_training(
        &self,
        request: Request<WatchTrainingRequest>,
    ) -> Result<Response<Self::WatchTrainingStream>, Status> {
        let from = request.into_inner().from_sequence;
        self.received.lock().unwrap().watched_from.push(from);
        let events = (from.unwrap_or(0)..4).map(|sequence| {
            use train_response::Event as Train;
            use watch_training_response::Event as Watch;
            let event = match event(sequence, false) {
                Train::Accepted(event) => Watch::Accepted(event),
                Train::Epoch(event) => Watch::Epoch(event),
                Train::Finished(event) => Watch::Finished(event),
                other => panic!("unexpected event {other:?}"),
            };
            Ok(WatchTrainingResponse {
                training_id: "t1".into(),
                sequence,
                event: Some(event),
            })
        });
        let events: Vec<_> = events.collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn cancel_training(
        &self,
        request: Request<CancelTrainingRequest>,
    ) -> Result<Response<CancelTrainingResponse>, Status> {
        let id = request.into_inner().training_id;
        self.received.lock().unwrap().cancelled.push(id);
        self.cancelled.notify_one();
        Ok(Response::new(CancelTrainingResponse::default()))
    }

    async fn start_training(
        &self,
        _: Request<StartTrainingRequest>,
    ) -> Result<Response<StartTrainingResponse>, Status> {
        Err(Status::unimplemented("the fake server"))
    }

    async fn resume_training(
        &self,
        _: Request<ResumeTrainingRequest>,
    ) -> Result<Response<ResumeTrainingResponse>, Status> {
        Err(Status::unimplemented("the fake server"))
    }

    async fn get_training(
        &self,
        _: Request<GetTrainingRequest>,
    ) -> Result<Response<GetTrainingResponse>, Status> {
        Err(Status::unimplemented("the fake server"))
    }

    async fn list_trainings(
        &self,
        _: Request<ListTrainingsRequest>,
    ) -> Result<Response<ListTrainingsResponse>, Status> {
        Err(Status::unimplemented("the fake server"))
    }
}
