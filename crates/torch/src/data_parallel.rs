//! The CPU's way to the gradient of a batch: its rows are divided among
//! threads, each of which makes the whole pass over its own, with one thread
//! of libtorch. Nothing is waited for until the gradients are added up, in a
//! fixed order, so that the result depends on the number of threads alone.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tch::TchError;

use super::shared_buffer::SharedBuffer;
use charlstm_model::learner::LearnError;

use super::bptt::dropout::Dropout;
use super::bptt::{Bptt, Masks, Shape};
use super::error::TorchError;
use super::shared_slices::ParameterViews;
use charlstm_model::parameters::Parameters;

/// What a shard is asked.
enum Request {
    /// Loss and gradient of its part of a batch, both `[time, rows]`.
    Step {
        inputs: Vec<u32>,
        targets: Vec<u32>,
        fresh: bool,
        key: u64,
    },
    /// Its carried state.
    State,
    /// Sets its carried state.
    SetState(Vec<f32>),
}

enum Reply {
    Loss(f64),
    State(Vec<f32>),
    Done,
}

struct Shard {
    rows: std::ops::Range<usize>,
    gradients: SharedBuffer,
    requests: Option<SyncSender<Request>>,
    replies: Receiver<Result<Reply, TchError>>,
    thread: Option<JoinHandle<()>>,
}

/// The threads, and the parameters that they share.
pub(super) struct DataParallel {
    parameters: SharedBuffer,
    shards: Vec<Shard>,
    time: usize,
    batch_size: usize,
}

impl DataParallel {
    /// Starts the threads, at most one for each row.
    pub(super) fn new(
        initial: &Parameters,
        batch_size: usize,
        time: usize,
        dropout: f64,
        threads: usize,
    ) -> Result<Self, TorchError> {
        // The threads are the parallelism; libtorch's own would only compete.
        tch::set_num_threads(1);
        let architecture = initial.architecture;
        let mut parameters = SharedBuffer::zeros(&[initial.values.len()])?;
        parameters.numbers_mut().copy_from_slice(&initial.values);
        let count = threads.clamp(1, batch_size);
        let shards = (0..count)
            .map(|number| {
                let rows = number * batch_size / count..(number + 1) * batch_size / count;
                let shape = Shape {
                    architecture,
                    rows: rows.len(),
                    time,
                };
                let parameters = parameters.share();
                Shard::start(number, rows, shape, parameters, dropout, batch_size)
            })
            .collect::<Result<_, TorchError>>()?;
        Ok(Self {
            parameters,
            shards,
            time,
            batch_size,
        })
    }

    /// Mean loss of a batch, `[time, batch]`, in nats per character. Its
    /// gradient is in [`Self::parts`] then.
    pub(super) fn step(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        fresh: bool,
        key: u64,
    ) -> Result<f64, TorchError> {
        for shard in &self.shards {
            shard.ask(Request::Step {
                inputs: self.columns(inputs, &shard.rows),
                targets: self.columns(targets, &shard.rows),
                fresh,
                key,
            })?;
        }
        let mut loss = 0.0;
        for shard in &self.shards {
            if let Reply::Loss(part) = shard.answer()? {
                loss += part;
            }
        }
        let (first, others) = self.shards.split_first_mut().expect("at least one shard");
        let sum = first.gradients.numbers_mut();
        for other in others {
            for (sum, number) in sum.iter_mut().zip(other.gradients.numbers()) {
                *sum += number;
            }
        }
        Ok(loss / (self.time * self.batch_size) as f64)
    }

    /// The parameters, to be changed, and the gradient of the last step.
    pub(super) fn parts(&mut self) -> (&mut [f32], &[f32]) {
        let gradients = self.shards[0].gradients.numbers();
        (self.parameters.numbers_mut(), gradients)
    }

    /// The parameters.
    pub(super) fn parameters(&self) -> &[f32] {
        self.parameters.numbers()
    }

    /// The carried state of all rows, `[batch, layers, 2, hidden]`.
    pub(super) fn state(&self) -> Result<Vec<f32>, TorchError> {
        let mut state = Vec::new();
        for shard in &self.shards {
            shard.ask(Request::State)?;
            if let Reply::State(part) = shard.answer()? {
                state.extend(part);
            }
        }
        Ok(state)
    }

    /// Sets the carried state of all rows.
    pub(super) fn set_state(&mut self, state: &[f32]) -> Result<(), TorchError> {
        let row = state.len() / self.batch_size;
        for shard in &self.shards {
            let part = &state[shard.rows.start * row..shard.rows.end * row];
            shard.ask(Request::SetState(part.to_vec()))?;
            shard.answer()?;
        }
        Ok(())
    }

    /// Some columns of `[time, batch]`.
    fn columns(&self, batch: &[u32], rows: &std::ops::Range<usize>) -> Vec<u32> {
        batch
            .chunks_exact(self.batch_size)
            .flat_map(|all| &all[rows.clone()])
            .copied()
            .collect()
    }
}

impl Shard {
    fn start(
        number: usize,
        rows: std::ops::Range<usize>,
        shape: Shape,
        parameters: SharedBuffer,
        dropout: f64,
        batch_size: usize,
    ) -> Result<Self, TorchError> {
        let gradients = SharedBuffer::zeros(&[parameters.numbers().len()])?;
        let own = gradients.share();
        let (requests, inbox) = sync_channel(1);
        let (outbox, replies) = sync_channel(1);
        let mut worker = Worker {
            scale: 1.0 / (batch_size * shape.time) as f32,
            dropout: (dropout > 0.0).then(|| Dropout::new(dropout)),
            first_row: rows.start,
            pass: Bptt::new(shape)?,
            weights: ParameterViews::of(&shape.architecture, parameters.tensor())?,
            gradients: ParameterViews::of(&shape.architecture, own.tensor())?,
        };
        let thread = std::thread::Builder::new()
            .name(format!("train-{number}"))
            .spawn(move || {
                while let Ok(request) = inbox.recv() {
                    if outbox.send(worker.answer(request)).is_err() {
                        break;
                    }
                }
            })
            .map_err(LearnError::Thread)?;
        Ok(Self {
            rows,
            gradients,
            requests: Some(requests),
            replies,
            thread: Some(thread),
        })
    }

    fn ask(&self, request: Request) -> Result<(), TorchError> {
        let requests = self.requests.as_ref().ok_or(LearnError::Panicked)?;
        requests
            .send(request)
            .map_err(|_| LearnError::Panicked.into())
    }

    fn answer(&self) -> Result<Reply, TorchError> {
        let reply = self.replies.recv().map_err(|_| LearnError::Panicked)?;
        Ok(reply?)
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // The thread ends when nobody can ask it any more.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has already said so.
            let _ = thread.join();
        }
    }
}

/// What a shard's thread owns.
struct Worker {
    scale: f32,
    dropout: Option<Dropout>,
    first_row: usize,
    pass: Bptt,
    weights: ParameterViews,
    gradients: ParameterViews,
}

impl Worker {
    fn answer(&mut self, request: Request) -> Result<Reply, TchError> {
        let _guard = tch::no_grad_guard();
        match request {
            Request::Step {
                inputs,
                targets,
                fresh,
                key,
            } => {
                if fresh {
                    self.pass.clear_state();
                }
                let masks = self.dropout.map(|dropout| Masks {
                    dropout,
                    key,
                    first_row: self.first_row,
                });
                let (weights, gradients) = (&self.weights, &self.gradients);
                self.pass
                    .run(weights, gradients, &inputs, &targets, masks, self.scale)
                    .map(Reply::Loss)
            }
            Request::State => Ok(Reply::State(self.pass.state())),
            Request::SetState(state) => {
                self.pass.set_state(&state);
                Ok(Reply::Done)
            }
        }
    }
}
