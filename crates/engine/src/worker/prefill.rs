//! Feeds prompts between the decode steps of running generations.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use charlstm_model::decode_step::DecodeError;

use super::Worker;
use super::batches::batch_of;
use crate::event::FinishReason;
use crate::job::Job;
use crate::scheduler::Schedulable;

impl Worker {
    /// Prefills as many characters as the running generations allow.
    pub(super) fn prefill(&mut self) {
        let mut left = self.prefill_budget.chunk_chars(self.scheduler.running());
        while left > 0 {
            let Some(mut job) = self.scheduler.next_to_prefill() else {
                break;
            };
            match self.prefill_chunk(&mut job, left) {
                Ok(chars) => {
                    left = left.saturating_sub(chars);
                    self.after_chunk(job);
                }
                Err(error) => {
                    self.drop_batch(&Arc::clone(job.model()), &error);
                    self.scheduler.free_slot(job.caller());
                    self.fail(job, &error);
                }
            }
        }
    }

    /// Feeds one chunk of a prompt. Returns its number of characters.
    fn prefill_chunk(&mut self, job: &mut Job, max_chars: usize) -> Result<usize, DecodeError> {
        if job.is_prefilled() {
            return Ok(0);
        }
        let begin = Instant::now();
        let slots = self.config.slots;
        let batch = batch_of(&mut self.batches, job.model(), slots)?;
        let chars = match job.next_chunk(max_chars) {
            Some((state, chunk)) => {
                batch.rows().prefill(state, chunk)?;
                chunk.len()
            }
            None => 0,
        };
        job.advance_prefill(chars);
        self.load
            .prefill_chars
            .fetch_add(chars as u64, Ordering::Relaxed);
        self.prefill_budget.prefilled(chars, begin.elapsed());
        Ok(chars)
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
