//! A server that follows the contract without a model: text is the alphabet
//! repeated, and a training is a fixed list of events.

mod models;
mod proxy;
mod sessions;

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use charlstm_proto::v1::generation_service_server::{GenerationService, GenerationServiceServer};
use charlstm_proto::v1::model_service_server::ModelServiceServer;
use charlstm_proto::v1::session_service_server::SessionServiceServer;
use charlstm_proto::v1::train_request::Payload;
use charlstm_proto::v1::training_service_server::{TrainingService, TrainingServiceServer};
use charlstm_proto::v1::{
    CancelTrainingRequest, CancelTrainingResponse, DeleteTrainingRequest, DeleteTrainingResponse,
    EpochProgress, FinishReason, GenerateRequest, GenerateResponse, GenerateTextRequest,
    GenerateTextResponse, GeneratedText, GenerationFinished, GenerationStarted, GetTrainingRequest,
    GetTrainingResponse, ImportModelRequest, ListTrainingsRequest, ListTrainingsResponse,
    ResumeTrainingRequest, ResumeTrainingResponse, ScoreRequest, ScoreResponse, ScoreStreamRequest,
    ScoreStreamResponse, StartTrainingRequest, StartTrainingResponse, State, TrainRequest,
    TrainResponse, Training, TrainingAccepted, TrainingFinished, TrainingSpec,
    WatchTrainingRequest, WatchTrainingResponse, generate_response, score_stream_request,
    train_response, watch_training_response,
};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

pub(crate) use self::models::MODEL_FILE;
pub(crate) use self::proxy::CuttingProxy;
use self::sessions::FakeSession;

/// How the server behaves, and which requests it has received.
#[derive(Clone, Default)]
pub(crate) struct FakeServer {
    /// Send this number of characters, then keep the stream open and silent.
    pub(crate) stall_after: Option<usize>,
    /// End the first call that gets this far as SHUTDOWN after this number of
    /// characters.
    pub(crate) shutdown_after: Arc<Mutex<Option<usize>>>,
    /// Reject this number of calls of `Generate` as UNAVAILABLE.
    pub(crate) unavailable: Arc<AtomicUsize>,
    /// Reject this number of calls that change a session because the storage
    /// accepts no writes.
    pub(crate) storage_failures: Arc<AtomicUsize>,
    /// How long a client should wait for the storage.
    pub(crate) storage_delay: Duration,
    /// Fail this number of calls of `Generate` at their end, because the
    /// storage accepts no writes.
    pub(crate) failed_commits: Arc<AtomicUsize>,
    /// What an export reports as the SHA-256 of its file, if it is wrong.
    pub(crate) wrong_sha256: Option<&'static str>,
    /// The sessions.
    pub(crate) sessions: Arc<Mutex<HashMap<String, FakeSession>>>,
    /// Sessions that were evicted.
    pub(crate) evicted: Arc<Mutex<HashSet<String>>>,
    /// Versions of the model `m` that were published since the first one.
    pub(crate) newer_versions: Arc<AtomicU64>,
    /// SHA-256 of the text that each version was trained on; a version without
    /// one was imported.
    pub(crate) trained_on: Arc<Mutex<Vec<String>>>,
    /// Text that `Generate` generates instead of the alphabet.
    pub(crate) text: Option<&'static str>,
    /// Reject `Generate` with RESOURCE_EXHAUSTED.
    pub(crate) saturated: bool,
    /// Reject `Generate` with a violation of this field.
    pub(crate) invalid_field: Option<&'static str>,
    /// End the stream of `Train` after the first epoch with UNAVAILABLE.
    pub(crate) break_training: bool,
    /// Pause the training after the first epoch until it is cancelled.
    pub(crate) wait_for_cancel: bool,
    /// Keep the training queued behind another one until this is notified.
    pub(crate) queued_until: Option<Arc<Notify>>,
    /// End a training as INTERRUPTED.
    pub(crate) interrupts_training: bool,
    /// Keep the stream of `WatchTraining` open and silent after its second event.
    pub(crate) watch_stalls: bool,
    /// Sample of each epoch, instead of "sample N".
    pub(crate) sample: Option<&'static str>,
    /// Bits per character of each score.
    pub(crate) bits_per_char: Option<f64>,
    /// The trainings that are listed.
    pub(crate) trainings: Arc<Mutex<Vec<Training>>>,
    /// The requests so far.
    pub(crate) received: Arc<Mutex<Received>>,
    /// Notified when a training is cancelled.
    pub(crate) cancelled: Arc<Notify>,
}

/// The requests that the server has received.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) generate: Vec<GenerateRequest>,
    /// Values of the header `authorization`.
    pub(crate) authorizations: Vec<Option<String>>,
    pub(crate) scored: Vec<String>,
    pub(crate) deleted_trainings: Vec<String>,
    pub(crate) spec: Option<TrainingSpec>,
    pub(crate) corpus: Vec<u8>,
    pub(crate) chunks: usize,
    pub(crate) imported: Vec<ImportModelRequest>,
    pub(crate) deleted_models: Vec<String>,
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
        self.serve_with(Server::builder(), address)
    }

    /// Starts the server with TLS: its identity, and the authority that has to
    /// have signed the certificate of a client.
    pub(crate) fn serve_with_client_certificates(
        &self,
        identity: Identity,
        authority: Certificate,
    ) -> RunningServer {
        let tls = ServerTlsConfig::new()
            .identity(identity)
            .client_ca_root(authority);
        self.serve_with(Server::builder().tls_config(tls).unwrap(), "127.0.0.1:0")
    }

    fn serve_with(&self, mut builder: Server, address: &str) -> RunningServer {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(async {
            // tokio sets SO_REUSEADDR, so that a test can reuse its port.
            tokio::net::TcpListener::bind(address).await.unwrap()
        });
        let address = listener.local_addr().unwrap();
        let server = builder
            .add_service(GenerationServiceServer::new(self.clone()))
            .add_service(SessionServiceServer::new(self.clone()))
            .add_service(ModelServiceServer::new(self.clone()))
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

/// Takes one from a counter. Returns false if it is zero.
pub(crate) fn take_one(counter: &AtomicUsize) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            count.checked_sub(1)
        })
        .is_ok()
}

/// Where a call begins.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    /// Characters that the session has seen.
    position: u64,
    /// Characters that were generated in the session.
    generated: u64,
}

/// How a call has ended.
struct Outcome {
    /// Characters that the reader has received.
    sent: usize,
    /// The last message, if the reader is still there.
    last: Option<Result<GenerateResponse, Status>>,
}

impl FakeServer {
    pub(crate) fn version(&self) -> u64 {
        1 + self.newer_versions.load(Ordering::SeqCst)
    }

    pub(crate) fn storage_unavailable(&self) -> Status {
        let mut details = ErrorDetails::with_retry_info(Some(self.storage_delay));
        details.set_error_info("STORAGE_UNAVAILABLE", "charlstm.v1", []);
        Status::with_error_details(Code::Unavailable, "the disk is full", details)
    }

    /// Sends the events of a call.
    async fn send_text(
        &self,
        request: &GenerateRequest,
        start: Start,
        sender: &mpsc::Sender<Result<GenerateResponse, Status>>,
    ) -> Outcome {
        let chars = request.max_chars() as usize;
        let send = async |event| sender.send(generated(event)).await.is_ok();
        let version = match request.model.split_once('@') {
            Some((_, version)) => version.parse().unwrap(),
            None => self.version(),
        };
        send(generate_response::Event::Started(GenerationStarted {
            session_id: request.session_id().into(),
            model: "m".into(),
            version,
            seed: request
                .sampling
                .as_ref()
                .map_or(1, |sampling| sampling.seed()),
            position: start.position,
            precision: "float32".into(),
            ..Default::default()
        }))
        .await;
        let primed = start.position + request.prime.chars().count() as u64;
        let text: Option<Vec<char>> = self.text.map(|text| text.chars().collect());
        let finished = |reason: FinishReason, sent: usize| {
            let finished = generate_response::Event::Finished(GenerationFinished {
                reason: reason.into(),
                chars: sent as u64,
                position: primed + sent as u64,
                seconds: 0.1,
                ..Default::default()
            });
            Outcome {
                sent,
                last: Some(generated(finished)),
            }
        };
        for index in 0..chars {
            if self.stall_after == Some(index) {
                sender.closed().await;
            }
            let ends = |after: &mut Option<usize>| after.take_if(|after| *after == index).is_some();
            if ends(&mut self.shutdown_after.lock().unwrap()) {
                return finished(FinishReason::Shutdown, index);
            }
            let character = match &text {
                Some(text) => text[index % text.len()].to_string(),
                None => alphabet(start.generated + index as u64, 1),
            };
            let text = GeneratedText {
                text: character,
                logprobs: vec![],
                position: primed + index as u64 + 1,
            };
            if !send(generate_response::Event::Text(text)).await {
                return Outcome {
                    sent: index,
                    last: None,
                };
            }
        }
        if take_one(&self.failed_commits) {
            return Outcome {
                sent: 0,
                last: Some(Err(self.storage_unavailable())),
            };
        }
        finished(FinishReason::Length, chars)
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn generated(event: generate_response::Event) -> Result<GenerateResponse, Status> {
    Ok(GenerateResponse { event: Some(event) })
}

#[tonic::async_trait]
impl GenerationService for FakeServer {
    type GenerateStream = Events<GenerateResponse>;
    type ScoreStreamStream = Events<ScoreStreamResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        let request = request.into_inner();
        {
            let mut received = self.received.lock().unwrap();
            received.authorizations.push(authorization);
            received.generate.push(request.clone());
        }
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
        if take_one(&self.unavailable) {
            return Err(Status::unavailable("the server is shutting down"));
        }
        let is_session = !request.session_id().is_empty();
        if is_session && take_one(&self.storage_failures) {
            return Err(self.storage_unavailable());
        }
        let start = self.begin(&request)?;
        let (sender, receiver) = mpsc::channel(4);
        let fake = self.clone();
        tokio::spawn(async move {
            let outcome = fake.send_text(&request, start, &sender).await;
            if is_session {
                fake.commit(&request, start, outcome.sent);
            }
            if let Some(last) = outcome.last {
                let _ = sender.send(last).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn generate_text(
        &self,
        _: Request<GenerateTextRequest>,
    ) -> Result<Response<GenerateTextResponse>, Status> {
        Err(Status::unimplemented("the fake server"))
    }

    async fn score(
        &self,
        request: Request<ScoreRequest>,
    ) -> Result<Response<ScoreResponse>, Status> {
        let text = request.into_inner().text;
        let chars = text.chars().count() as u64;
        self.received.lock().unwrap().scored.push(text);
        Ok(Response::new(ScoreResponse {
            chars: chars - 1,
            bits_per_char: self.bits_per_char.unwrap_or(2.0),
            loss: 2.0 * std::f64::consts::LN_2,
            perplexity: 4.0,
            ..Default::default()
        }))
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let mut upload = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let fake = self.clone();
        tokio::spawn(async move {
            let mut text = Vec::new();
            while let Ok(Some(message)) = upload.message().await {
                if let Some(score_stream_request::Payload::TextChunk(chunk)) = message.payload {
                    text.extend_from_slice(&chunk);
                }
                let so_far = ScoreStreamResponse {
                    chars: text.len() as u64,
                    ..Default::default()
                };
                let _ = sender.send(Ok(so_far)).await;
            }
            let text = String::from_utf8(text).unwrap();
            let score = ScoreStreamResponse {
                chars: text.chars().count() as u64 - 1,
                bits_per_char: fake.bits_per_char.unwrap_or(2.0),
                loss: 2.0 * std::f64::consts::LN_2,
                perplexity: 4.0,
                done: true,
                ..Default::default()
            };
            fake.received.lock().unwrap().scored.push(text);
            let _ = sender.send(Ok(score)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl FakeServer {
    /// Describes the only training.
    fn training(&self) -> Training {
        let state = if self.interrupts_training {
            State::Interrupted
        } else {
            State::Running
        };
        Training {
            training_id: "t1".into(),
            state: state.into(),
            ..Default::default()
        }
    }

    /// Returns the event with a sequence number, the same for every training.
    fn event(&self, sequence: u64, cancelled: bool) -> train_response::Event {
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
                sample: match self.sample {
                    Some(sample) => sample.into(),
                    None => format!("sample {sequence}"),
                },
                step: 5 * sequence,
                ..Default::default()
            }),
            _ => train_response::Event::Finished(TrainingFinished {
                state: if cancelled {
                    State::Cancelled.into()
                } else if self.interrupts_training {
                    State::Interrupted.into()
                } else {
                    State::Succeeded.into()
                },
                model: "m".into(),
                version: u64::from(!cancelled && !self.interrupts_training),
                train_loss: 1.5,
                ..Default::default()
            }),
        }
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
                    event: Some(fake.event(sequence, fake.wait_for_cancel)),
                };
                let _ = sender.send(Ok(response)).await;
                if let (0, Some(turn)) = (sequence, &fake.queued_until) {
                    turn.notified().await;
                }
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
            let event = match self.event(sequence, false) {
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
        let events = tokio_stream::iter(events);
        if self.watch_stalls {
            let silence = tokio_stream::pending();
            return Ok(Response::new(Box::pin(events.take(2).chain(silence))));
        }
        Ok(Response::new(Box::pin(events)))
    }

    async fn delete_training(
        &self,
        request: Request<DeleteTrainingRequest>,
    ) -> Result<Response<DeleteTrainingResponse>, Status> {
        let id = request.into_inner().training_id;
        self.received.lock().unwrap().deleted_trainings.push(id);
        Ok(Response::new(DeleteTrainingResponse {
            training: Some(self.training()),
        }))
    }

    async fn cancel_training(
        &self,
        request: Request<CancelTrainingRequest>,
    ) -> Result<Response<CancelTrainingResponse>, Status> {
        let id = request.into_inner().training_id;
        self.received.lock().unwrap().cancelled.push(id);
        self.cancelled.notify_one();
        let training = self.training();
        Ok(Response::new(CancelTrainingResponse {
            training: Some(training),
        }))
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
        Ok(Response::new(GetTrainingResponse {
            training: Some(self.training()),
        }))
    }

    async fn list_trainings(
        &self,
        _: Request<ListTrainingsRequest>,
    ) -> Result<Response<ListTrainingsResponse>, Status> {
        Ok(Response::new(ListTrainingsResponse {
            trainings: self.trainings.lock().unwrap().clone(),
        }))
    }
}
