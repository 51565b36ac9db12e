//! Data parallelism on the CPU: the rows of a batch are divided among shards,
//! each with a thread of its own that computes loss and gradient of its rows.
//! The gradients are summed in the order of the shards, so that the result
//! depends only on their number.
//!
//! Ownership passes through the channels: a request lends a shard the
//! parameters (an `Arc` that the shard drops before it replies) and gives it
//! its gradient buffer (which comes back with the reply). Between steps the
//! learner owns all of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use charlstm_model::learner::LearnError;
use charlstm_model::parameters::Parameters;
use tch::TchError;

use super::bptt::dropout::Dropout;
use super::bptt::{BatchShape, Bptt, StepDropout};
use super::error::TorchError;
use super::matrix::{Buffer, zeros};
use super::process_state::use_calling_thread_only;

/// What the learner asks of a shard.
enum ShardRequest {
    /// Compute loss and gradient of the shard's rows of a batch.
    Gradient {
        parameters: Arc<Buffer>,
        /// Overwritten and sent back.
        gradient: Buffer,
        /// `[time, rows]`.
        inputs: Vec<u32>,
        /// `[time, rows]`.
        targets: Vec<u32>,
        /// Start from hidden states of zero.
        reset_state: bool,
        /// Key of the dropout masks.
        key: u64,
    },
    /// Return the hidden states.
    State,
    /// Replace the hidden states.
    SetState(Vec<f32>),
}

/// What a shard replies, one reply for each request.
enum ShardReply {
    /// The summed loss of the shard's rows, in nats, and its gradient.
    Gradient {
        loss: Result<f64, TchError>,
        gradient: Buffer,
    },
    /// `[rows, layers, 2, hidden]`.
    State(Vec<f32>),
    StateSet,
}

/// The learner's side of a shard.
struct Shard {
    rows: Range<usize>,
    /// Empty while the shard computes.
    gradient: Buffer,
    /// `None` only while the shard is dropped.
    requests: Option<SyncSender<ShardRequest>>,
    replies: Receiver<ShardReply>,
    thread: Option<JoinHandle<()>>,
}

/// The shards, and the parameters that they compute with.
pub(super) struct DataParallel {
    /// Shared with the shards only during a step.
    parameters: Arc<Buffer>,
    shards: Vec<Shard>,
    time: usize,
    batch_size: usize,
}

impl DataParallel {
    /// Starts `threads` shards, at most one for each row of a batch of
    /// `batch_size` sequences of `time` characters.
    ///
    /// # Errors
    /// A thread could not be started.
    pub(super) fn new(
        initial: &Parameters,
        batch_size: usize,
        time: usize,
        dropout: f64,
        threads: usize,
    ) -> Result<Self, TorchError> {
        use_calling_thread_only();
        let mut parameters = zeros(initial.values.len());
        parameters.copy_from_slice(&initial.values);
        let count = threads.clamp(1, batch_size);
        let shards = (0..count)
            .map(|index| {
                let rows = index * batch_size / count..(index + 1) * batch_size / count;
                let shape = BatchShape {
                    architecture: initial.architecture,
                    rows: rows.len(),
                    time,
                };
                Shard::start(index, rows, shape, dropout, batch_size)
            })
            .collect::<Result<_, TorchError>>()?;
        Ok(Self {
            parameters: Arc::new(parameters),
            shards,
            time,
            batch_size,
        })
    }

    /// Returns the mean loss of a batch of token ids, `[time, batch]`, in nats
    /// per character; [`Self::parameters_and_gradient`] returns its gradient.
    /// Blocks until every shard has replied, also if one fails.
    ///
    /// # Errors
    /// A shard failed or panicked. No shard computes any more, but the hidden
    /// states and the gradient are undefined.
    pub(super) fn step(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        reset_state: bool,
        key: u64,
    ) -> Result<f64, TorchError> {
        let mut asked = Vec::with_capacity(self.shards.len());
        for shard in &mut self.shards {
            let request = ShardRequest::Gradient {
                parameters: Arc::clone(&self.parameters),
                gradient: std::mem::replace(&mut shard.gradient, zeros(0)),
                inputs: columns(inputs, self.batch_size, &shard.rows),
                targets: columns(targets, self.batch_size, &shard.rows),
                reset_state,
                key,
            };
            asked.push(shard.ask(request));
        }
        let mut losses = Vec::with_capacity(self.shards.len());
        for (shard, asked) in self.shards.iter_mut().zip(asked) {
            losses.push(asked.and_then(|()| shard.receive_gradient()));
        }
        let mut loss = 0.0;
        for part in losses {
            loss += part?;
        }
        let (first, others) = self.shards.split_first_mut().expect("at least one shard");
        for other in others {
            for (sum, value) in first.gradient.iter_mut().zip(other.gradient.iter()) {
                *sum += value;
            }
        }
        Ok(loss / (self.time * self.batch_size) as f64)
    }

    /// Returns the parameters, to be updated, and the gradient of the last
    /// step, both in the order of `charlstm_model::parameters::layout`.
    pub(super) fn parameters_and_gradient(&mut self) -> (&mut [f32], &[f32]) {
        let parameters = Arc::get_mut(&mut self.parameters)
            .expect("shards drop the parameters before they reply, and a step awaits all replies");
        (parameters, &self.shards[0].gradient)
    }

    /// Returns the parameters.
    pub(super) fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// Returns the hidden states of all rows, `[batch, layers, 2, hidden]`.
    ///
    /// # Errors
    /// A shard has panicked.
    pub(super) fn state(&self) -> Result<Vec<f32>, TorchError> {
        let mut state = Vec::new();
        for shard in &self.shards {
            shard.ask(ShardRequest::State)?;
            if let ShardReply::State(rows) = shard.receive()? {
                state.extend(rows);
            }
        }
        Ok(state)
    }

    /// Sets the hidden states of all rows, in the layout of [`Self::state`].
    ///
    /// # Errors
    /// A shard has panicked.
    pub(super) fn set_state(&mut self, state: &[f32]) -> Result<(), TorchError> {
        let row_len = state.len() / self.batch_size;
        for shard in &self.shards {
            let rows = &state[shard.rows.start * row_len..shard.rows.end * row_len];
            shard.ask(ShardRequest::SetState(rows.to_vec()))?;
            shard.receive()?;
        }
        Ok(())
    }
}

/// Returns some columns of a `[time, batch]` array.
fn columns(batch: &[u32], batch_size: usize, columns: &Range<usize>) -> Vec<u32> {
    batch
        .chunks_exact(batch_size)
        .flat_map(|time_step| &time_step[columns.clone()])
        .copied()
        .collect()
}

impl Shard {
    /// Starts the thread of the shard with this index.
    fn start(
        index: usize,
        rows: Range<usize>,
        shape: BatchShape,
        dropout: f64,
        batch_size: usize,
    ) -> Result<Self, TorchError> {
        let (requests, inbox) = sync_channel(1);
        let (outbox, replies) = sync_channel(1);
        let mut worker = ShardWorker {
            scale: 1.0 / (batch_size * shape.time) as f32,
            dropout: (dropout > 0.0).then(|| Dropout::new(dropout)),
            first_row: rows.start,
            bptt: Bptt::new(shape),
        };
        let thread = std::thread::Builder::new()
            .name(format!("train-{index}"))
            .spawn(move || {
                while let Ok(request) = inbox.recv() {
                    if outbox.send(worker.reply(request)).is_err() {
                        break;
                    }
                }
            })
            .map_err(LearnError::Thread)?;
        Ok(Self {
            rows,
            gradient: zeros(shape.architecture.parameter_count()),
            requests: Some(requests),
            replies,
            thread: Some(thread),
        })
    }

    fn ask(&self, request: ShardRequest) -> Result<(), TorchError> {
        let requests = self.requests.as_ref().ok_or(LearnError::Panicked)?;
        requests
            .send(request)
            .map_err(|_| LearnError::Panicked.into())
    }

    /// Blocks until the shard replies.
    fn receive(&self) -> Result<ShardReply, TorchError> {
        Ok(self.replies.recv().map_err(|_| LearnError::Panicked)?)
    }

    /// Takes the gradient buffer back; returns the loss.
    fn receive_gradient(&mut self) -> Result<f64, TorchError> {
        match self.receive()? {
            ShardReply::Gradient { loss, gradient } => {
                self.gradient = gradient;
                Ok(loss?)
            }
            ShardReply::State(_) | ShardReply::StateSet => {
                unreachable!("a shard replies to each request in turn")
            }
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // The thread ends when its inbox is closed.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook and as an error.
            let _ = thread.join();
        }
    }
}

/// What the thread of a shard owns.
struct ShardWorker {
    /// Scale of the gradient: 1 / characters of the whole batch.
    scale: f32,
    dropout: Option<Dropout>,
    first_row: usize,
    bptt: Bptt,
}

impl ShardWorker {
    /// Computes the reply to a request, of which nothing is left afterwards:
    /// the learner relies on the parameters being dropped here.
    fn reply(&mut self, request: ShardRequest) -> ShardReply {
        match request {
            ShardRequest::Gradient {
                parameters,
                mut gradient,
                inputs,
                targets,
                reset_state,
                key,
            } => {
                if reset_state {
                    self.bptt.clear_state();
                }
                let dropout = self.dropout.map(|dropout| StepDropout {
                    dropout,
                    key,
                    first_row: self.first_row,
                });
                let loss = self.bptt.loss_and_gradient(
                    &parameters,
                    &mut gradient,
                    &inputs,
                    &targets,
                    dropout,
                    self.scale,
                );
                ShardReply::Gradient { loss, gradient }
            }
            ShardRequest::State => ShardReply::State(self.bptt.state()),
            ShardRequest::SetState(state) => {
                self.bptt.set_state(&state);
                ShardReply::StateSet
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use charlstm_model::architecture::Architecture;
    use charlstm_model::initial::Initial;

    use super::*;

    const ARCHITECTURE: Architecture = Architecture {
        vocabulary_size: 5,
        hidden_size: 6,
        num_layers: 2,
    };
    const BATCH_SIZE: usize = 3;
    const TIME: usize = 4;

    fn shards() -> DataParallel {
        let initial = Initial::Uniform.parameters(ARCHITECTURE, 1);
        DataParallel::new(&initial, BATCH_SIZE, TIME, 0.2, 3).expect("threads")
    }

    fn tokens() -> Vec<u32> {
        (0..BATCH_SIZE * TIME)
            .map(|index| index as u32 % 5)
            .collect()
    }

    #[test]
    fn a_failed_step_waits_for_all_shards_and_leaves_no_reply_behind() {
        let expected = shards()
            .step(&tokens(), &tokens(), true, 7)
            .expect("a step");
        let mut shards = shards();
        // Token 9 is outside the vocabulary; the first column is the first shard's.
        let mut unknown = tokens();
        unknown[0] = 9;
        for _ in 0..3 {
            let error = shards
                .step(&unknown, &tokens(), true, 7)
                .expect_err("fails");
            assert!(matches!(error, TorchError::Torch(_)), "{error}");
            assert_eq!(
                shards.parameters_and_gradient().1.len(),
                ARCHITECTURE.parameter_count()
            );
        }
        let loss = shards.step(&tokens(), &tokens(), true, 7).expect("a step");
        assert_eq!(loss.to_bits(), expected.to_bits());
    }

    #[test]
    fn a_panic_in_a_shard_is_an_error_and_the_parameters_remain() {
        let mut shards = shards();
        // A target outside the vocabulary is a bug of the caller: it panics.
        let mut unknown = tokens();
        unknown[1] = 9;
        for _ in 0..2 {
            let error = shards
                .step(&tokens(), &unknown, true, 7)
                .expect_err("fails");
            assert!(
                matches!(error, TorchError::Learn(LearnError::Panicked)),
                "{error}"
            );
            let expected = Initial::Uniform.parameters(ARCHITECTURE, 1).values;
            assert_eq!(shards.parameters_and_gradient().0, expected);
        }
        assert!(shards.state().is_err());
    }
}
