//! The generations of one model that take their decode steps together.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use charlstm_model::decode_step::{DecodeBatch, DecodeError};
use charlstm_model::sampler::Sampler;
use charlstm_repository::LoadedModel;

use crate::caller::CallerId;
use crate::job::{Drawn, Job, Next, Outbox};
use crate::scheduler::Schedulable;

/// The running jobs of one model, and the decode batch that holds their
/// states. Row `i` of the decode batch is job `i`.
pub(crate) struct Batch {
    model: Arc<LoadedModel>,
    rows: DecodeBatch,
    jobs: Vec<Job>,
    tokens: Vec<u32>,
    drawn: Vec<Drawn>,
}

impl Batch {
    /// Creates an empty batch for at most `max_rows` jobs.
    ///
    /// # Errors
    /// The device failed or has too little memory.
    pub(crate) fn new(model: Arc<LoadedModel>, max_rows: usize) -> Result<Self, DecodeError> {
        let rows = DecodeBatch::new(Arc::clone(&model.weights), max_rows)?;
        Ok(Self {
            model,
            rows,
            jobs: Vec::with_capacity(max_rows),
            tokens: Vec::with_capacity(max_rows),
            drawn: Vec::with_capacity(max_rows),
        })
    }

    /// The model.
    pub(crate) fn model(&self) -> &Arc<LoadedModel> {
        &self.model
    }

    /// The decode batch, for prefill and scoring next to its rows.
    pub(crate) fn rows(&mut self) -> &mut DecodeBatch {
        &mut self.rows
    }

    /// Number of jobs.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// True if no job is running.
    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Starts or ends the second thread for single rows.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn set_partner(&mut self, wanted: bool) -> io::Result<()> {
        self.rows.set_partner(wanted)
    }

    /// Adds a job whose prefill is complete.
    pub(crate) fn push(&mut self, job: Job) {
        self.rows.push(job.state());
        self.jobs.push(job);
    }

    /// Removes the jobs that match, each with its state.
    pub(crate) fn remove_if(&mut self, matches: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut removed = Vec::new();
        // From the end, so that the job that moves into a gap was checked.
        for row in (0..self.jobs.len()).rev() {
            if matches(&self.jobs[row]) {
                removed.push(self.swap_remove(row));
            }
        }
        removed
    }

    /// The jobs of a batch whose device has failed, without their states.
    pub(crate) fn into_jobs(self) -> Vec<Job> {
        self.jobs
    }

    /// Removes the row of a caller that has had its slot for the shortest time,
    /// of those that have had it since step `since` or longer.
    pub(crate) fn take_row_of(&mut self, caller: &CallerId, since: u64) -> Option<Job> {
        let jobs = self.jobs.iter().enumerate();
        let (row, _) = jobs
            .filter(|(_, job)| job.caller() == caller && job.slot_since() <= since)
            .max_by_key(|(_, job)| job.slot_since())?;
        Some(self.swap_remove(row))
    }

    fn swap_remove(&mut self, row: usize) -> Job {
        let mut job = self.jobs.swap_remove(row);
        job.set_state(self.rows.swap_remove(row));
        job
    }

    /// Takes a decode step: one more character for every job. Returns the jobs
    /// that leave the batch, with what follows for each.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn step(
        &mut self,
        sampler: &mut Sampler,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Result<Vec<(Job, Next)>, DecodeError> {
        self.tokens.clear();
        self.tokens.extend(self.jobs.iter().map(Job::last));
        self.drawn.clear();
        if self.rows.selects_highest() && self.jobs.iter().all(Job::needs_only_highest) {
            let highest = self.rows.step_highest(&self.tokens)?;
            let jobs = self.jobs.iter_mut().enumerate();
            self.drawn
                .extend(jobs.map(|(row, job)| job.draw_of_highest(sampler, &highest.row(row))));
        } else {
            let logits = self.rows.step(&self.tokens)?;
            let width = logits.len() / self.jobs.len();
            let rows = self.jobs.iter_mut().zip(logits.chunks_exact(width));
            self.drawn
                .extend(rows.map(|(job, logits)| job.draw(sampler, logits)));
        }

        let mut leaving = Vec::new();
        for row in (0..self.jobs.len()).rev() {
            let rows = &self.rows;
            let state = || rows.state(row);
            match self.jobs[row].take(self.drawn[row], state, now, outbox) {
                Next::Continue => {}
                next => leaving.push((self.swap_remove(row), next)),
            }
        }
        Ok(leaving)
    }
}
