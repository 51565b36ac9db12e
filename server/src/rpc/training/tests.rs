//! Tests of the service over a real connection, with a fake learner.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use charlstm_proto::v1::training_service_client::TrainingServiceClient;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::service::LayerExt;
use tonic::transport::{Channel, Server};
use tonic_types::StatusExt;

use super::*;
use crate::access::AccessControl;
use crate::rpc::layers::auth::AuthLayer;
use crate::traces::Tracing;
use charlstm_training::events::State;
use charlstm_training::fake::{FakeLearners, FakeModels, Hold};
use charlstm_training::job::StopRequest;
use charlstm_training::jobs::JobsConfig;
use pb::{train_request, train_response, watch_training_response};

/// Reached only if what a test waits for never happens.
const LIMIT: Duration = Duration::from_secs(60);

struct Fixture {
    client: TrainingServiceClient<Channel>,
    jobs: Jobs,
    learners: Arc<FakeLearners>,
    _folder: tempfile::TempDir,
}

impl Fixture {
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
        let log = TrainingLog::new(Tracing::default());
        let training = TrainingRpc::server(jobs.clone(), log, Transfers::new(u64::MAX));
        let service = AuthLayer::new(Arc::new(AccessControl::open())).named_layer(training);
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            client: TrainingServiceClient::connect(address).await.unwrap(),
            jobs,
            learners,
            _folder: folder,
        }
    }

    async fn train(
        &mut self,
        messages: Vec<pb::TrainRequest>,
    ) -> Result<Vec<pb::TrainResponse>, Status> {
        let call = async {
            let stream = self.client.train(stream::iter(messages)).await?;
            let mut stream = stream.into_inner();
            let mut events = Vec::new();
            while let Some(event) = stream.message().await? {
                events.push(event);
            }
            Ok(events)
        };
        tokio::time::timeout(LIMIT, call).await.unwrap()
    }

    async fn rejection(&mut self, messages: Vec<pb::TrainRequest>) -> Status {
        self.train(messages).await.unwrap_err()
    }

    fn hold(&self, step: u64) -> Hold {
        self.learners.hold_before_step(step)
    }
}

fn small() -> pb::TrainingSpec {
    pb::TrainingSpec {
        model: "m".to_owned(),
        hidden_size: Some(2),
        num_layers: Some(1),
        batch_size: Some(1),
        sequence_length: Some(2),
        epochs: Some(2),
        recipe: Some("notebook".to_owned()),
        ..pb::TrainingSpec::default()
    }
}

fn spec(spec: pb::TrainingSpec) -> pb::TrainRequest {
    pb::TrainRequest {
        payload: Some(train_request::Payload::Spec(spec)),
    }
}

fn chunk(bytes: &'static [u8]) -> pb::TrainRequest {
    pb::TrainRequest {
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

async fn end(job: &Job) -> State {
    let mut watcher = job.watch(0);
    let all = async { while watcher.next().await.is_some() {} };
    tokio::time::timeout(LIMIT, all).await.unwrap();
    job.summary().state
}

#[tokio::test]
async fn a_corpus_in_chunks_that_split_a_character_is_trained_on() {
    let mut fixture = Fixture::new().await;
    let messages = vec![
        spec(small()),
        chunk(b"ab\xc3"),
        chunk(b"\xa9a"),
        chunk(b"b"),
    ];
    let events = fixture.train(messages).await.unwrap();
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
    assert_eq!(finished.state(), pb::State::Succeeded);
    assert_eq!((finished.model.as_str(), finished.version), ("m", 1));
}

#[tokio::test]
async fn an_invalid_spec_is_rejected_before_the_corpus_arrives() {
    let mut fixture = Fixture::new().await;
    let bad = pb::TrainingSpec {
        learning_rate: Some(f64::NAN),
        ..small()
    };
    // The stream never ends: only an early rejection answers.
    let messages: BoxStream<'static, pb::TrainRequest> =
        stream::iter([spec(bad)]).chain(stream::pending()).boxed();
    let call = fixture.client.train(messages);
    let status = tokio::time::timeout(LIMIT, call)
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
async fn an_invalid_corpus_is_rejected_with_the_reason() {
    let mut fixture = Fixture::new().await;
    for (messages, text) in [
        (vec![spec(small())], "the corpus is empty"),
        (
            vec![spec(small()), chunk(b"ab\xe2\x82"), chunk(b"a")],
            "not valid UTF-8 at byte 2",
        ),
        (vec![spec(small()), chunk(b"a")], "needs at least 2"),
        (vec![chunk(b"abc")], "spec: must be in the first message"),
        (vec![], "spec: must be in the first message"),
        (vec![spec(small()), spec(small())], "must be a corpus_chunk"),
    ] {
        let status = fixture.rejection(messages).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    assert!(fixture.jobs.list().is_empty());
}

#[tokio::test]
async fn a_training_is_started_in_one_message_and_watched_from_any_event() {
    let mut fixture = Fixture::new().await;
    let request = pb::StartTrainingRequest {
        spec: Some(small()),
        corpus: b"abababab".as_slice().into(),
    };
    let training_id = fixture
        .client
        .start_training(request)
        .await
        .unwrap()
        .into_inner()
        .training_id;
    let mut watched = Vec::new();
    for from_sequence in [None, Some(2)] {
        let request = pb::WatchTrainingRequest {
            training_id: training_id.clone(),
            from_sequence,
        };
        let stream = fixture
            .client
            .watch_training(request)
            .await
            .unwrap()
            .into_inner();
        let events: Vec<pb::WatchTrainingResponse> = stream.map(Result::unwrap).collect().await;
        watched.push(events);
    }
    assert_eq!(watched[0][2..], watched[1]);
    assert!(matches!(
        watched[1].last().unwrap().event,
        Some(watch_training_response::Event::Finished(_))
    ));
    let list = fixture
        .client
        .list_trainings(pb::ListTrainingsRequest { owner: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.trainings.len(), 1);
    assert_eq!(list.trainings[0].state(), pb::State::Succeeded);
    assert_eq!(list.trainings[0].epochs_completed, 2);
    let again = fixture
        .client
        .resume_training(pb::ResumeTrainingRequest { training_id })
        .await;
    assert_eq!(again.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_unknown_training_is_not_found() {
    let mut fixture = Fixture::new().await;
    let training_id = "t-0".to_owned();
    let get = fixture
        .client
        .get_training(pb::GetTrainingRequest { training_id })
        .await;
    let status = get.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "TRAINING_NOT_FOUND"
    );
}

#[tokio::test]
async fn a_training_outlives_its_stream_unless_it_is_bound_to_it() {
    let mut fixture = Fixture::new().await;
    for (bound, state) in [(false, State::Succeeded), (true, State::Cancelled)] {
        let hold = fixture.hold(2);
        let request = pb::TrainingSpec {
            cancel_on_disconnect: Some(bound),
            ..small()
        };
        let messages = stream::iter([spec(request), chunk(b"abababab")]);
        let mut events = fixture.client.train(messages).await.unwrap().into_inner();
        let id = events.message().await.unwrap().unwrap().training_id;
        let hold = reached(hold).await;
        drop(events);
        let job = fixture.jobs.get(&id).unwrap();
        if bound {
            // The server notices the end of the stream at some later moment.
            let cancelled = async {
                while job.stop_request() == StopRequest::Nothing {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(LIMIT, cancelled).await.unwrap();
        }
        hold.release();
        assert_eq!(end(&job).await, state);
    }
}

#[tokio::test]
async fn a_cancelled_training_reports_it_and_continues_when_resumed() {
    let mut fixture = Fixture::new().await;
    let hold = fixture.hold(2);
    let request = pb::StartTrainingRequest {
        spec: Some(small()),
        corpus: b"abababab".as_slice().into(),
    };
    let training_id = fixture
        .client
        .start_training(request)
        .await
        .unwrap()
        .into_inner()
        .training_id;
    let hold = reached(hold).await;
    let request = pb::CancelTrainingRequest {
        training_id: training_id.clone(),
    };
    let after = fixture
        .client
        .cancel_training(request)
        .await
        .unwrap()
        .into_inner();
    // It runs until its checkpoint is saved.
    assert_eq!(after.training.unwrap().state(), pb::State::Running);
    let delete = pb::DeleteTrainingRequest {
        training_id: training_id.clone(),
    };
    let status = fixture.client.delete_training(delete.clone()).await;
    assert_eq!(status.unwrap_err().code(), Code::FailedPrecondition);
    hold.release();
    let job = fixture.jobs.get(&training_id).unwrap();
    assert_eq!(end(&job).await, State::Cancelled);
    let request = pb::ResumeTrainingRequest { training_id };
    fixture.client.resume_training(request).await.unwrap();
    assert_eq!(end(&job).await, State::Succeeded);
    let deleted = fixture
        .client
        .delete_training(delete.clone())
        .await
        .unwrap();
    let training = deleted.into_inner().training.unwrap();
    assert_eq!(training.state(), pb::State::Succeeded);
    let status = fixture.client.delete_training(delete).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
}
