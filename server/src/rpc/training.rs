//! `charlstm.v1.TrainingService`: uploads, event streams, and the list of
//! trainings. What a training is and does is in `training`.

mod convert;

use std::pin::Pin;
use std::sync::Arc;

use charlstm_proto::v1::training_service_server::TrainingService;
use charlstm_proto::v1::{
    CancelTrainingRequest, CancelTrainingResponse, GetTrainingRequest, GetTrainingResponse,
    ListTrainingsRequest, ListTrainingsResponse, ResumeTrainingRequest, ResumeTrainingResponse,
    StartTrainingRequest, StartTrainingResponse, TrainRequest, TrainResponse, WatchTrainingRequest,
    WatchTrainingResponse, train_request,
};
use futures_util::Stream;
use futures_util::stream::unfold;
use tonic::{Request, Response, Status, Streaming};

use super::status::training as status;
use charlstm_training::history::Watcher;
use charlstm_training::job::Job;
use charlstm_training::jobs::{Jobs, JobsError, Upload};

#[cfg(test)]
mod tests;

/// The service, over the trainings of the server.
#[derive(Clone)]
pub struct TrainingRpc {
    jobs: Jobs,
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl TrainingRpc {
    /// The service over these trainings.
    pub fn new(jobs: Jobs) -> Self {
        Self { jobs }
    }

    /// Does something that blocks on the disk or computes, beside the threads
    /// that serve.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
    ) -> Result<T, Status> {
        let jobs = self.jobs.clone();
        tokio::task::spawn_blocking(move || work(&jobs))
            .await
            .map_err(|error| status::of_blocking_work(&error))?
            .map_err(|error| status::of_jobs(&error))
    }

    async fn push(&self, mut upload: Upload, chunk: prost::bytes::Bytes) -> Result<Upload, Status> {
        self.beside(move |_| {
            upload.push(&chunk)?;
            Ok(upload)
        })
        .await
    }

    /// Starts the training, bound to a stream where its spec says so. The
    /// binding is made where the training is: a client that leaves in between
    /// leaves nothing behind.
    async fn start(&self, upload: Upload) -> Result<(Arc<Job>, CancelOnDrop), Status> {
        self.beside(move |jobs| {
            let job = jobs.start(upload)?;
            let bound = job.facts().spec.cancel_on_disconnect;
            let guard = CancelOnDrop(bound.then(|| (jobs.clone(), job.id().to_owned())));
            Ok((job, guard))
        })
        .await
    }
}

#[tonic::async_trait]
impl TrainingService for TrainingRpc {
    type TrainStream = EventStream<TrainResponse>;
    type WatchTrainingStream = EventStream<WatchTrainingResponse>;

    async fn train(
        &self,
        request: Request<Streaming<TrainRequest>>,
    ) -> Result<Response<Self::TrainStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|first| first.payload);
        let Some(train_request::Payload::Spec(spec)) = first else {
            return Err(status::spec_missing());
        };
        let spec = convert::spec_from(spec);
        let mut upload = self.beside(move |jobs| jobs.begin(&spec)).await?;
        // The next message is read once this one is taken in: a client that
        // is faster than the server waits.
        while let Some(message) = messages.message().await? {
            let Some(train_request::Payload::CorpusChunk(chunk)) = message.payload else {
                return Err(status::chunk_missing());
            };
            upload = self.push(upload, chunk).await?;
        }
        let (job, guard) = self.start(upload).await?;
        let stream = events(job, 0, guard, convert::train_response);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn start_training(
        &self,
        request: Request<StartTrainingRequest>,
    ) -> Result<Response<StartTrainingResponse>, Status> {
        let request = request.into_inner();
        let mut spec = convert::spec_from(request.spec.ok_or_else(status::spec_missing)?);
        // No stream started it that could break.
        spec.cancel_on_disconnect = None;
        let upload = self.beside(move |jobs| jobs.begin(&spec)).await?;
        let upload = self.push(upload, request.corpus).await?;
        let (job, _guard) = self.start(upload).await?;
        Ok(Response::new(StartTrainingResponse {
            training_id: job.id().to_owned(),
        }))
    }

    async fn watch_training(
        &self,
        request: Request<WatchTrainingRequest>,
    ) -> Result<Response<Self::WatchTrainingStream>, Status> {
        let request = request.into_inner();
        let job = self.get(&request.training_id)?;
        let from = request.from_sequence.unwrap_or(0);
        let stream = events(job, from, CancelOnDrop(None), convert::watch_response);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn resume_training(
        &self,
        request: Request<ResumeTrainingRequest>,
    ) -> Result<Response<ResumeTrainingResponse>, Status> {
        let id = request.into_inner().training_id;
        let job = self.beside(move |jobs| jobs.resume(&id)).await?;
        Ok(Response::new(ResumeTrainingResponse {
            training: Some(convert::training(&job)),
        }))
    }

    async fn get_training(
        &self,
        request: Request<GetTrainingRequest>,
    ) -> Result<Response<GetTrainingResponse>, Status> {
        let job = self.get(&request.into_inner().training_id)?;
        Ok(Response::new(GetTrainingResponse {
            training: Some(convert::training(&job)),
        }))
    }

    async fn list_trainings(
        &self,
        _request: Request<ListTrainingsRequest>,
    ) -> Result<Response<ListTrainingsResponse>, Status> {
        let jobs = self.jobs.list();
        Ok(Response::new(ListTrainingsResponse {
            trainings: jobs.iter().map(|job| convert::training(job)).collect(),
        }))
    }

    async fn cancel_training(
        &self,
        request: Request<CancelTrainingRequest>,
    ) -> Result<Response<CancelTrainingResponse>, Status> {
        let id = request.into_inner().training_id;
        let training = convert::training(&*self.get(&id)?);
        self.beside(move |jobs| jobs.cancel(&id)).await?;
        Ok(Response::new(CancelTrainingResponse {
            training: Some(training),
        }))
    }
}

impl TrainingRpc {
    fn get(&self, id: &str) -> Result<Arc<Job>, Status> {
        self.jobs.get(id).map_err(|error| status::of_jobs(&error))
    }
}

/// The events of a training as messages, read only as fast as the client
/// takes them.
fn events<T>(
    job: Arc<Job>,
    from_sequence: u64,
    guard: CancelOnDrop,
    message: fn(&Job, &charlstm_training::events::Event) -> T,
) -> impl Stream<Item = Result<T, Status>> {
    let watcher: Watcher = job.watch(from_sequence);
    unfold(
        (watcher, guard, job),
        move |(mut watcher, guard, job)| async move {
            let Some(event) = watcher.next().await else {
                guard.disarm();
                return None;
            };
            let message = message(&job, &event);
            Some((Ok(message), (watcher, guard, job)))
        },
    )
}

/// Cancels a training when the stream that started it is let go before its
/// end.
struct CancelOnDrop(Option<(Jobs, String)>);

impl CancelOnDrop {
    /// The training has ended by itself.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some((jobs, id)) = self.0.take() else {
            return;
        };
        // Cancelling one that waits writes its last event to the disk.
        let cancel = move || {
            if let Err(error) = jobs.cancel(&id) {
                tracing::warn!(%error, id, "a training could not be cancelled");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(cancel)),
            Err(_) => cancel(),
        }
    }
}
