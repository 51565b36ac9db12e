//! The texts of one model that are stepped together.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::job::{Drawn, Job, Next};
use charlstm_model::decode_step::{DecodeBatch, DecodeError};
use charlstm_model::sampler::Sampler;
use charlstm_repository::LoadedModel;

/// The running texts of one model and the stepper that holds their states.
/// Row `i` of the stepper is job `i`.
pub(super) struct Batch {
    model: Arc<LoadedModel>,
    stepper: DecodeBatch,
    jobs: Vec<Job>,
    tokens: Vec<u32>,
    drawn: Vec<Drawn>,
}

impl Batch {
    /// An empty batch of at most `rows` texts.
    pub(super) fn new(model: Arc<LoadedModel>, rows: usize) -> Result<Self, DecodeError> {
        let stepper = DecodeBatch::new(Arc::clone(&model.weights), rows)?;
        Ok(Self {
            model,
            stepper,
            jobs: Vec::with_capacity(rows),
            tokens: Vec::with_capacity(rows),
            drawn: Vec::with_capacity(rows),
        })
    }

    /// The model.
    pub(super) fn model(&self) -> &Arc<LoadedModel> {
        &self.model
    }

    /// The stepper, for priming and scoring beside the rows.
    pub(super) fn stepper(&mut self) -> &mut DecodeBatch {
        &mut self.stepper
    }

    /// Texts in it.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// True where no text runs.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Adds a primed text.
    pub(super) fn push(&mut self, job: Job) {
        self.stepper.push(job.state());
        self.jobs.push(job);
    }

    /// Takes out those for whom `leaves` says so, each with its state.
    pub(super) fn take_out(&mut self, leaves: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut out = Vec::new();
        // From the end, so that what moves into a gap was looked at already.
        for row in (0..self.jobs.len()).rev() {
            if leaves(&self.jobs[row]) {
                out.push(self.swap_remove(row));
            }
        }
        out
    }

    fn swap_remove(&mut self, row: usize) -> Job {
        let mut job = self.jobs.swap_remove(row);
        job.set_state(self.stepper.swap_remove(row));
        job
    }

    /// One character more for every text. Those that do not go on are given
    /// back with what becomes of them, out of the batch.
    pub(super) fn step(
        &mut self,
        sampler: &mut Sampler,
        now: Instant,
        readers: &mut Vec<Waker>,
    ) -> Result<Vec<(Job, Next)>, DecodeError> {
        self.tokens.clear();
        self.tokens.extend(self.jobs.iter().map(Job::last));
        let logits = self.stepper.step(&self.tokens)?;
        let width = logits.len() / self.jobs.len();
        self.drawn.clear();
        let rows = self.jobs.iter_mut().zip(logits.chunks_exact(width));
        self.drawn
            .extend(rows.map(|(job, logits)| job.draw(sampler, logits)));

        let mut out = Vec::new();
        for row in (0..self.jobs.len()).rev() {
            let stepper = &self.stepper;
            let hidden = || stepper.state(row);
            match self.jobs[row].take(self.drawn[row], hidden, now, readers) {
                Next::Continue => {}
                next => out.push((self.swap_remove(row), next)),
            }
        }
        Ok(out)
    }
}
