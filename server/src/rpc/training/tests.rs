//! Tests of the service over a real connection, with a fake learner.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use charlstm_proto::v1::training_service_server::TrainingServiceServer;
use charlstm_proto::v1::{self, train_response, watch_training_response};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Server};
use tonic_types::StatusExt;

use super::*;
use charlstm_training::fake::{FakeLearners, FakeModels, Hold};
use charlstm_training::jobs::JobsConfig;

const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    client: TrainingServiceClient<Channel>,
    jobs: Jobs,
    learners: Arc<FakeLearners>,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let learners = Arc::new(FakeLearners::default());
        let jobs = Jobs::open(
            JobsConfig::new(folder.path().to_owned()),
            Arc::clone(&learners) as Arc<dyn charlstm_model::learner::LearnerFactory>,
            Arc::new(FakeModels::default()),
            Box::new(|_| Ok(String::new())),
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = TrainingServiceServer::new(TrainingRpc::new(jobs.clone()));
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            client: TrainingServiceClient::connect(address).await.unwrap(),
            jobs,
            learners,
            _folder: folder,
        }
    }

    async fn train(&mut self, messages: Vec<TrainRequest>) -> Result<Vec<TrainResponse>, Status> {
        let call = async {
            let stream = self.client.train(stream::iter(messages)).await?;
            let mut stream = stream.into_inner();
            let mut events = Vec::new();
            while let Some(event) = stream.message().await? {
                events.push(event);
            }
            Ok(events)
        };
        tokio::time::timeout(PATIENCE, call).await.unwrap()
    }

    async fn refusal(&mut self, messages: Vec<TrainRequest>) -> Status {
        self.train(messages).await.unwrap_err()
    }

    fn hold(&self, step: u64) -> Hold {
        self.learners.hold_before_step(step)
    }
}

fn small() -> v1::TrainingSpec {
    v1::TrainingSpec {
        model: "m".to_owned(),
        hidden_size: Some(2),
        num_layers: Some(1),
        batch_size: Some(1),
        sequence_length: Some(2),
        epochs: Some(2),
        recipe: Some("notebook".to_owned()),
        ..v1::TrainingSpec::default()
    }
}

fn spec(spec: v1::TrainingSpec) -> TrainRequest {
    TrainRequest {
        payload: Some(train_request::Payload::Spec(spec)),
    }
}

fn chunk(bytes: &'static [u8]) -> TrainRequest {
    TrainRequest {
        payload: Some(train_request::Payload::CorpusChunk(bytes.into())),
    }
}

async fn reached(hold: Hold) -> Hold {
    let wait = move || {
        hold.wait_until_reached();
        hold
    };
    tokio::task::spawn_blocking(wait).await.unwrap()
}

async fn end(job: &Job) -> charlstm_training::events::State {
    let mut watcher = job.watch(0);
    let all = async { while watcher.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    job.summary().state
}

#[tokio::test]
async fn a_text_in_chunks_that_split_a_character_is_trained_on() {
    let mut bench = Bench::new().await;
    let messages = vec![
        spec(small()),
        chunk(b"ab\xc3"),
        chunk(b"\xa9a"),
        chunk(b"b"),
    ];
    let events = bench.train(messages).await.unwrap();
    let Some(train_response::Event::Accepted(accepted)) = &events[0].event else {
        panic!("the first event is {:?}", events[0]);
    };
    assert_eq!((accepted.corpus_chars, accepted.vocabulary_size), (5, 3));
    let resolved = accepted.resolved_spec.as_ref().unwrap();
    assert_eq!(resolved.recipe.as_deref(), Some("notebook"));
    assert!(resolved.seed.is_some());
    let Some(train_response::Event::Finished(finished)) = &events.last().unwrap().event else {
        panic!("the last event is {:?}", events.last());
    };
    assert_eq!(finished.state(), v1::State::Succeeded);
    assert_eq!((finished.model.as_str(), finished.version), ("m", 1));
}

#[tokio::test]
async fn a_bad_spec_is_refused_while_the_corpus_is_still_to_come() {
    let mut bench = Bench::new().await;
    let bad = v1::TrainingSpec {
        learning_rate: Some(f64::NAN),
        ..small()
    };
    // The stream never ends: only an early refusal answers.
    let messages: BoxStream<'static, TrainRequest> =
        stream::iter([spec(bad)]).chain(stream::pending()).boxed();
    let call = bench.client.train(messages);
    let status = tokio::time::timeout(PATIENCE, call)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "learning_rate");
    assert!(
        status.message().contains("over 0, at most 1, not NaN"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_bad_corpus_is_refused_and_says_why() {
    let mut bench = Bench::new().await;
    for (messages, text) in [
        (vec![spec(small())], "the corpus is empty"),
        (
            vec![spec(small()), chunk(b"ab\xe2\x82"), chunk(b"a")],
            "not valid UTF-8 at byte 2",
        ),
        (vec![spec(small()), chunk(b"a")], "at least 2 characters"),
        (vec![chunk(b"abc")], "spec: must be in the first message"),
        (vec![], "spec: must be in the first message"),
        (vec![spec(small()), spec(small())], "must be a corpus_chunk"),
    ] {
        let status = bench.refusal(messages).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    assert!(bench.jobs.list().is_empty());
}

#[tokio::test]
async fn a_training_is_started_in_one_message_and_watched_from_any_event() {
    let mut bench = Bench::new().await;
    let request = v1::StartTrainingRequest {
        spec: Some(small()),
        corpus: b"abababab".as_slice().into(),
    };
    let training_id = bench
        .client
        .start_training(request)
        .await
        .unwrap()
        .into_inner()
        .training_id;
    let mut watched = Vec::new();
    for from_sequence in [None, Some(2)] {
        let request = WatchTrainingRequest {
            training_id: training_id.clone(),
            from_sequence,
        };
        let stream = bench
            .client
            .watch_training(request)
            .await
            .unwrap()
            .into_inner();
        let events: Vec<WatchTrainingResponse> = stream.map(Result::unwrap).collect().await;
        watched.push(events);
    }
    assert_eq!(watched[0][2..], watched[1]);
    assert!(matches!(
        watched[1].last().unwrap().event,
        Some(watch_training_response::Event::Finished(_))
    ));
    let list = bench
        .client
        .list_trainings(ListTrainingsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.trainings.len(), 1);
    assert_eq!(list.trainings[0].state(), v1::State::Succeeded);
    assert_eq!(list.trainings[0].epochs_completed, 2);
    let again = bench
        .client
        .resume_training(ResumeTrainingRequest { training_id })
        .await;
    assert_eq!(again.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_unknown_training_is_not_found() {
    let mut bench = Bench::new().await;
    let training_id = "t-0".to_owned();
    let get = bench
        .client
        .get_training(GetTrainingRequest { training_id })
        .await;
    let status = get.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "TRAINING_NOT_FOUND"
    );
}

#[tokio::test]
async fn a_training_outlives_its_stream_unless_it_was_bound_to_it() {
    let mut bench = Bench::new().await;
    for (bound, state) in [
        (false, charlstm_training::events::State::Succeeded),
        (true, charlstm_training::events::State::Cancelled),
    ] {
        let hold = bench.hold(2);
        let request = v1::TrainingSpec {
            cancel_on_disconnect: Some(bound),
            ..small()
        };
        let messages = stream::iter([spec(request), chunk(b"abababab")]);
        let mut events = bench.client.train(messages).await.unwrap().into_inner();
        let id = events.message().await.unwrap().unwrap().training_id;
        let hold = reached(hold).await;
        drop(events);
        let job = bench.jobs.get(&id).unwrap();
        if bound {
            // The server hears of the end of the stream at some later moment.
            while job.stop_request() == charlstm_training::job::StopRequest::Nothing {
                tokio::task::yield_now().await;
            }
        }
        hold.release();
        assert_eq!(end(&job).await, state);
    }
}

#[tokio::test]
async fn a_cancelled_training_says_so_and_goes_on_when_resumed() {
    let mut bench = Bench::new().await;
    let hold = bench.hold(2);
    let request = v1::StartTrainingRequest {
        spec: Some(small()),
        corpus: b"abababab".as_slice().into(),
    };
    let training_id = bench
        .client
        .start_training(request)
        .await
        .unwrap()
        .into_inner()
        .training_id;
    let hold = reached(hold).await;
    let request = CancelTrainingRequest {
        training_id: training_id.clone(),
    };
    let before = bench
        .client
        .cancel_training(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(before.training.unwrap().state(), v1::State::Running);
    hold.release();
    let job = bench.jobs.get(&training_id).unwrap();
    assert_eq!(end(&job).await, charlstm_training::events::State::Cancelled);
    let request = ResumeTrainingRequest { training_id };
    bench.client.resume_training(request).await.unwrap();
    assert_eq!(end(&job).await, charlstm_training::events::State::Succeeded);
}
