//! How a training is accepted: its spec is validated, its corpus is uploaded and
//! split, and it joins the queue.

use std::fs;
use std::sync::Arc;

use charlstm_model::corpus::Corpus;
use charlstm_store::unix_time;

use super::folder::new_id;
use super::upload::MAX_UPLOADS;
use super::{Jobs, JobsError, Requester, Shared, Upload, lock};
use crate::job::{Job, NewJob};
use crate::memory;
use crate::spec::{ResolvedSpec, SpecError, TrainingSpec};

impl Jobs {
    /// Validates a spec, before its corpus is uploaded.
    ///
    /// # Errors
    /// The spec is not valid, the model of `init_from` is unknown, the name of
    /// the model belongs to another principal, the queue is full, a quota of the
    /// requester is reached, too many corpora are being uploaded, or the folder
    /// is not writable.
    pub fn begin(&self, spec: &TrainingSpec, requester: Requester) -> Result<Upload, JobsError> {
        let learners = &self.shared.context.learners;
        learners.check_supported()?;
        let mut resolved = spec.resolve(learners.fastest_precision(), rand::random)?;
        let models = &self.shared.context.models;
        models.check_publisher(&resolved.model, &requester.publisher)?;
        self.shared
            .check_space_in_queue(&lock(&self.shared.state), &requester)?;
        let permit = Arc::clone(&self.shared.uploads)
            .try_acquire_owned()
            .map_err(|_| JobsError::TooManyUploads { limit: MAX_UPLOADS })?;
        let initial = match resolved.init_from.take() {
            None => None,
            Some(reference) => {
                let model = self.shared.context.models.describe(&reference)?;
                resolved.inherit(spec, &model.id, &model.architecture)?;
                Some(model)
            }
        };
        let config = &self.shared.config;
        // It has no name, so that nothing is left of it if the server is killed.
        let spill = tempfile::tempfile_in(&config.folder)?;
        let max_bytes = config.max_corpus_bytes;
        Ok(Upload::new(
            permit,
            requester,
            spec.clone(),
            resolved,
            initial,
            spill,
            max_bytes,
        ))
    }

    /// Completes the corpus and queues the training.
    ///
    /// # Errors
    /// The corpus cannot be trained on, memory is not sufficient, the queue is
    /// full, a quota of the requester is reached, or the disk fails. Nothing is
    /// left of the training then.
    pub fn start(&self, upload: Upload) -> Result<Arc<Job>, JobsError> {
        let (mut corpus, mut spec) = (upload.reader.finish()?, upload.spec);
        if let Some(initial) = upload.initial {
            let unknown = corpus.unknown_to(&initial.vocabulary);
            if !unknown.is_empty() && !spec.extend_vocabulary {
                let model = initial.id;
                return Err(JobsError::UnknownCharacters { model, unknown });
            }
            corpus.recode(&initial.vocabulary)?;
        }
        check_prime(&spec, &corpus)?;
        let split = corpus.split(
            spec.validation_fraction,
            spec.batch_size as usize,
            spec.sequence_length as usize,
        )?;
        spec.adapt_to_length(&upload.requested, split.training.len());
        let needed = memory::estimate_bytes(&spec, corpus.vocabulary.len());
        self.shared.check_memory(needed)?;
        self.shared
            .check_space_in_queue(&lock(&self.shared.state), &upload.requester)?;
        let created_unix_ms = unix_time::now_ms();
        let new = NewJob {
            id: &new_id(created_unix_ms),
            created_unix_ms,
            publisher: upload.requester.publisher.clone(),
            spec,
            corpus: &corpus,
            split: &split,
        };
        if let Some(sharing) = &self.shared.sharing {
            let job = self.shared.start_shared(sharing, &new, &upload.requester)?;
            self.shared.delete_old();
            return Ok(job);
        }
        let device = self.shared.context.learners.device();
        let job = Arc::new(Job::create(&self.shared.config.folder, new, device)?);
        self.shared.enqueue_new(&job, &upload.requester)?;
        self.shared.delete_old();
        Ok(job)
    }
}

impl Shared {
    /// Rejects a training that can never fit, or that would start now and does
    /// not fit now. For one that has to wait, what is free now says nothing;
    /// the trainer checks it again in any case.
    fn check_memory(&self, needed_bytes: u64) -> Result<(), JobsError> {
        let memory = (self.config.memory)();
        memory.check_total(needed_bytes)?;
        if self.sharing.is_some() {
            // Which replica will run it is not known.
            return Ok(());
        }
        let state = lock(&self.state);
        if state.running.is_none() && state.queue.is_empty() {
            memory.check_available(needed_bytes)?;
        }
        Ok(())
    }

    /// Adds a new training to the list and the queue.
    fn enqueue_new(&self, job: &Arc<Job>, requester: &Requester) -> Result<(), JobsError> {
        let mut state = lock(&self.state);
        if let Err(error) = self.check_space_in_queue(&state, requester) {
            drop(state);
            // It was not reported to any client yet.
            fs::remove_dir_all(job.folder())?;
            return Err(error);
        }
        state.jobs.insert(job.id().to_owned(), Arc::clone(job));
        state.queue.push_back(Arc::clone(job));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

fn check_prime(spec: &ResolvedSpec, corpus: &Corpus) -> Result<(), JobsError> {
    let prime = spec.sample_prime.as_deref().unwrap_or_default();
    corpus
        .vocabulary
        .encode(prime)
        .map_err(|unknown| SpecError::new("sample_prime", unknown.to_string()))?;
    Ok(())
}
