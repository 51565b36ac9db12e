//! Feeds prompts between the decode steps of running generations.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use charlstm_model::decode_step::{Chunk, DecodeError};
use charlstm_repository::LoadedModel;

use super::Worker;
use super::batches::batch_of;
use crate::event::FinishReason;
use crate::job::Job;
use crate::scheduler::Schedulable;

impl Worker {
    /// Prefills as many characters as the running generations allow. What a
    /// device feeds at once to several sequences counts once.
    pub(super) fn prefill(&mut self) {
        let mut left = self.prefill_budget.chunk_chars(self.scheduler.running());
        while left > 0 {
            let Some(first) = self.scheduler.next_to_prefill() else {
                break;
            };
            let model = Arc::clone(first.model());
            let mut jobs = vec![first];
            match self.prefill_chunks(&model, &mut jobs, left) {
                Ok(chars) => {
                    left = left.saturating_sub(chars);
                    for job in jobs {
                        self.after_chunk(job);
                    }
                }
                Err(error) => {
                    self.drop_batch(&model, &error);
                    for job in jobs {
                        self.scheduler.free_slot(job.caller());
                        self.fail(job, &error);
                    }
                }
            }
        }
    }

    /// Adds the next jobs of the same model to the first one, as many as the
    /// device feeds at once, and feeds one chunk of each prompt. Returns the number
    /// of characters of the longest.
    fn prefill_chunks(
        &mut self,
        model: &Arc<LoadedModel>,
        jobs: &mut Vec<Job>,
        max_chars: usize,
    ) -> Result<usize, DecodeError> {
        let begin = Instant::now();
        let slots = self.config.slots;
        let batch = batch_of(&mut self.batches, model, slots)?;
        let width = batch.rows().prefill_width();
        let is_same = |job: &Job| Arc::ptr_eq(&job.model().weights, &model.weights);
        while jobs.len() < width && self.scheduler.peek_to_prefill().is_some_and(is_same) {
            jobs.extend(self.scheduler.next_to_prefill());
        }
        let mut fed = vec![0; jobs.len()];
        let mut chunks: Vec<Chunk<'_>> = Vec::with_capacity(jobs.len());
        for (job, fed) in jobs.iter_mut().zip(&mut fed) {
            if let Some(chunk) = job.next_chunk(max_chars) {
                *fed = chunk.1.len();
                chunks.push(chunk);
            }
        }
        if !chunks.is_empty() {
            batch.rows().prefill_all(&mut chunks)?;
        }
        for (job, &fed) in jobs.iter_mut().zip(&fed) {
            job.advance_prefill(fed);
        }
        let longest = fed.iter().copied().max().unwrap_or(0);
        let all: usize = fed.iter().sum();
        self.load
            .prefill_chars
            .fetch_add(all as u64, Ordering::Relaxed);
        self.prefill_budget.prefilled(longest, begin.elapsed());
        Ok(longest)
    }

    /// Sends a job where it continues after a chunk of prefill.
    fn after_chunk(&mut self, job: Job) {
        if !job.is_prefilled() {
            self.scheduler.continue_prefill(job);
        } else if job.is_prompt_only() {
            self.scheduler.free_slot(job.caller());
            self.finish(job, FinishReason::Length);
        } else {
            let model = Arc::clone(job.model());
            match batch_of(&mut self.batches, &model, self.config.slots) {
                Ok(batch) => batch.push(job),
                Err(error) => {
                    self.scheduler.free_slot(job.caller());
                    self.fail(job, &error);
                }
            }
        }
    }
}
