//! `TrainingService`: corpus uploads, event streams, and the list of trainings.
//! What a training is and does is in `charlstm_training`.

mod convert;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use charlstm_proto::v1 as pb;
use charlstm_proto::v1::training_service_server::{TrainingService, TrainingServiceServer};
use futures_util::Stream;
use futures_util::stream::unfold;
use tonic::{Request, Response, Status, Streaming};

use super::call_record::CallRecord;
use super::principal::{Principal, Role};
use super::status::internal;
use super::status::training as status;
use super::transfers::Transfers;
use crate::training_log::TrainingLog;
use charlstm_training::events::Event;
use charlstm_training::history::Watcher;
use charlstm_training::job::Job;
use charlstm_training::jobs::{Jobs, JobsError, Upload};
use charlstm_training::spec::TrainingSpec;

#[cfg(test)]
mod tests;

/// The service, over the trainings of the server.
#[derive(Clone)]
pub struct TrainingRpc {
    jobs: Jobs,
    log: TrainingLog,
    transfers: Transfers,
}

type EventStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl TrainingRpc {
    /// Returns the service on these trainings, ready to be added to a server.
    /// What happens to trainings is written to `log`; uploads are counted in
    /// `transfers`.
    pub fn server(
        jobs: Jobs,
        log: TrainingLog,
        transfers: Transfers,
    ) -> TrainingServiceServer<Self> {
        TrainingServiceServer::new(Self {
            jobs,
            log,
            transfers,
        })
    }

    /// Runs work that blocks on the disk or computes on a thread that may block.
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
    ) -> Result<T, Status> {
        let jobs = self.jobs.clone();
        tokio::task::spawn_blocking(move || work(&jobs))
            .await
            .map_err(|error| internal(&error))?
            .map_err(|error| status::of_jobs(&error))
    }

    async fn push(&self, mut upload: Upload, chunk: Bytes) -> Result<Upload, Status> {
        self.run_blocking(move |_| {
            upload.push(&chunk)?;
            Ok(upload)
        })
        .await
    }

    /// Starts the training of a complete upload, bound to the stream if its
    /// spec asks for that. The binding exists as soon as the training does: no
    /// training is left behind if the client disconnects in between.
    async fn start(
        &self,
        upload: Upload,
        record: &CallRecord,
    ) -> Result<(Arc<Job>, CancelOnDrop), Status> {
        let started = self.run_blocking(move |jobs| {
            let job = jobs.start(upload)?;
            let is_bound = job.metadata().spec.cancel_on_disconnect;
            let run = job.summary().run;
            let guard = CancelOnDrop(is_bound.then(|| BoundRun {
                jobs: jobs.clone(),
                id: job.id().to_owned(),
                run,
            }));
            Ok((job, guard))
        });
        let (job, guard) = started.await?;
        record.training(job.id());
        self.log.follow(Arc::clone(&job));
        Ok((job, guard))
    }
}

#[tonic::async_trait]
impl TrainingService for TrainingRpc {
    type TrainStream = EventStream<pb::TrainResponse>;
    type WatchTrainingStream = EventStream<pb::WatchTrainingResponse>;

    async fn train(
        &self,
        request: Request<Streaming<pb::TrainRequest>>,
    ) -> Result<Response<Self::TrainStream>, Status> {
        let principal = Principal::of(&request)?;
        let record = CallRecord::of(request.extensions());
        let transfer = self.transfers.begin(&request)?;
        let mut messages = request.into_inner();
        let first = transfer.wait(messages.message()).await?;
        let first = first.and_then(|first| first.payload);
        let Some(pb::train_request::Payload::Spec(spec)) = first else {
            return Err(status::spec_missing());
        };
        let mut upload = self.begin(convert::spec_from(spec), &principal).await?;
        // The next message is read after this one is processed: a client that
        // is faster than the server has to wait.
        while let Some(message) = transfer.wait(messages.message()).await? {
            let Some(pb::train_request::Payload::CorpusChunk(chunk)) = message.payload else {
                return Err(status::chunk_missing());
            };
            transfer.received(chunk.len())?;
            upload = self.push(upload, chunk).await?;
        }
        let (job, guard) = self.start(upload, &record).await?;
        let stream = events(job, 0, guard, convert::train_response);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn start_training(
        &self,
        request: Request<pb::StartTrainingRequest>,
    ) -> Result<Response<pb::StartTrainingResponse>, Status> {
        let principal = Principal::of(&request)?;
        let record = CallRecord::of(request.extensions());
        let transfer = self.transfers.begin(&request)?;
        let request = request.into_inner();
        transfer.received(request.corpus.len())?;
        let mut spec = convert::spec_from(request.spec.ok_or_else(status::spec_missing)?);
        // There is no stream that could break.
        spec.cancel_on_disconnect = None;
        let upload = self.begin(spec, &principal).await?;
        let upload = self.push(upload, request.corpus).await?;
        let (job, _guard) = self.start(upload, &record).await?;
        Ok(Response::new(pb::StartTrainingResponse {
            training_id: job.id().to_owned(),
        }))
    }

    async fn watch_training(
        &self,
        request: Request<pb::WatchTrainingRequest>,
    ) -> Result<Response<Self::WatchTrainingStream>, Status> {
        let job = self.find(&request, &request.get_ref().training_id).await?;
        let request = request.into_inner();
        let from = request.from_sequence.unwrap_or(0);
        let stream = events(job, from, CancelOnDrop(None), convert::watch_response);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn resume_training(
        &self,
        request: Request<pb::ResumeTrainingRequest>,
    ) -> Result<Response<pb::ResumeTrainingResponse>, Status> {
        let requester = Principal::of(&request)?.requester();
        let job = self.find(&request, &request.get_ref().training_id).await?;
        let id = job.id().to_owned();
        let resumed = self.run_blocking(move |jobs| jobs.resume(&id, &requester));
        let job = resumed.await?;
        self.log.follow(Arc::clone(&job));
        Ok(Response::new(pb::ResumeTrainingResponse {
            training: Some(convert::training(&job)),
        }))
    }

    async fn get_training(
        &self,
        request: Request<pb::GetTrainingRequest>,
    ) -> Result<Response<pb::GetTrainingResponse>, Status> {
        let job = self.find(&request, &request.get_ref().training_id).await?;
        Ok(Response::new(pb::GetTrainingResponse {
            training: Some(convert::training(&job)),
        }))
    }

    async fn list_trainings(
        &self,
        request: Request<pb::ListTrainingsRequest>,
    ) -> Result<Response<pb::ListTrainingsResponse>, Status> {
        let principal = Principal::of(&request)?;
        let owner = principal.owner_to_list(request.get_ref().owner.as_deref())?;
        let jobs = self.jobs.list();
        let listed = jobs
            .iter()
            .filter(|job| owner.as_ref().is_none_or(|owner| job.owner() == owner));
        Ok(Response::new(pb::ListTrainingsResponse {
            trainings: listed.map(|job| convert::training(job)).collect(),
        }))
    }

    async fn cancel_training(
        &self,
        request: Request<pb::CancelTrainingRequest>,
    ) -> Result<Response<pb::CancelTrainingResponse>, Status> {
        let job = self.find(&request, &request.get_ref().training_id).await?;
        let id = job.id().to_owned();
        let job = self.run_blocking(move |jobs| jobs.cancel(&id)).await?;
        Ok(Response::new(pb::CancelTrainingResponse {
            training: Some(convert::training(&job)),
        }))
    }

    async fn delete_training(
        &self,
        request: Request<pb::DeleteTrainingRequest>,
    ) -> Result<Response<pb::DeleteTrainingResponse>, Status> {
        let job = self.find(&request, &request.get_ref().training_id).await?;
        let id = job.id().to_owned();
        let job = self.run_blocking(move |jobs| jobs.delete(&id)).await?;
        Ok(Response::new(pb::DeleteTrainingResponse {
            training: Some(convert::training(&job)),
        }))
    }
}

impl TrainingRpc {
    /// Returns a training of the caller; for an administrator, any.
    async fn find<T: Sync>(&self, request: &Request<T>, id: &str) -> Result<Arc<Job>, Status> {
        CallRecord::of(request.extensions()).training(id);
        let principal = Principal::of(request)?;
        let mut found = self.jobs.get(id);
        if found.is_err() {
            // Another replica may have accepted it a moment ago.
            self.run_blocking(Jobs::refresh).await?;
            found = self.jobs.get(id);
        }
        let found = found.and_then(|job| {
            match principal.is_admin() || job.owner() == principal.owner() {
                true => Ok(job),
                // As if there were none.
                false => Err(JobsError::not_found(id)),
            }
        });
        found.map_err(|error| status::of_jobs(&error))
    }

    /// Validates a spec, before its corpus is received.
    async fn begin(&self, spec: TrainingSpec, principal: &Principal) -> Result<Upload, Status> {
        if spec.init_from.is_some() {
            // It reads a model.
            principal.require(Role::Generate)?;
        }
        let requester = principal.requester();
        self.run_blocking(move |jobs| jobs.begin(&spec, requester))
            .await
    }
}

/// Returns the events of a training as messages. They are read only as fast as
/// the client receives them.
fn events<T>(
    job: Arc<Job>,
    from_sequence: u64,
    guard: CancelOnDrop,
    message: fn(&Job, &Event) -> T,
) -> impl Stream<Item = Result<T, Status>> {
    let watcher: Watcher = job.watch(from_sequence);
    unfold(Some((watcher, guard, job)), move |state| async move {
        let (mut watcher, guard, job) = state?;
        let Some(event) = watcher.next().await else {
            guard.disarm();
            let is_elsewhere = job.history().is_closed() && !job.summary().state.has_ended();
            return is_elsewhere.then(|| (Err(status::continues_elsewhere()), None));
        };
        let message = message(&job, &event);
        Some((Ok(message), Some((watcher, guard, job))))
    })
}

/// Cancels a training if the stream that started it is dropped before its end.
struct CancelOnDrop(Option<BoundRun>);

/// The run of a training that a stream has started. Once the training has been
/// resumed, its later runs are not bound to that stream.
struct BoundRun {
    jobs: Jobs,
    id: String,
    run: u32,
}

impl CancelOnDrop {
    /// Keeps the training from being cancelled: it has ended.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(BoundRun { jobs, id, run }) = self.0.take() else {
            return;
        };
        // Cancelling a waiting training writes its last event to the disk.
        let cancel = move || {
            if let Err(error) = jobs.cancel_run(&id, run) {
                tracing::warn!(%error, id, "cannot cancel a training");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(cancel)),
            Err(_) => cancel(),
        }
    }
}
