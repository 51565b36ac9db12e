//! A GPU as a device of [`charlstm_model::decode_step`], with the CPU to fall
//! back on: both compute the same bits, so nobody sees in a text where it was
//! generated.

use std::cell::RefCell;
use std::sync::Arc;

use charlstm_int8::State;
use charlstm_model::decode_step::check::same_results;
use charlstm_model::decode_step::{
    Arithmetic, BatchBackend, Chunk, DecodeDevice, DecodeError, DecodeWeights, HiddenState,
    HighestOfRows, Int8Processor, Processor, WeightLayout, quantise,
};
use charlstm_model::parameters::Parameters;

use crate::batch::{CudaBatch, Slot};
use crate::device::CudaDevice;
use crate::error::CudaError;
use crate::health::{Health, OnEvent};
use crate::network::CudaNetwork;
use crate::score_device::CudaScoring;

/// From this size of the vocabulary on, the device selects the highest logits where
/// they are enough: fewer than all are copied and sampled from.
const MIN_SELECTED_VOCABULARY: usize = 512;

/// Sequences that are prefilled at once. With 64 of them, a prefill feeds 38 times as
/// many characters in the same time as with one (docs/gpu.md).
const PREFILL_WIDTH: usize = 64;

/// A GPU that computes int8 decode steps. If it fails, the generations that it
/// was computing end with an error, and all later ones run on the CPU.
#[derive(Clone, Debug)]
pub struct CudaDecoder {
    device: CudaDevice,
    health: Arc<Health>,
    processor: Int8Processor,
}

impl CudaDecoder {
    /// Opens GPU number `ordinal`. Blocks while its kernels are compiled: up to
    /// ten seconds. `processor` computes what the GPU cannot.
    ///
    /// # Errors
    /// A library is missing, or the GPU cannot be used.
    pub fn open(
        ordinal: usize,
        processor: Int8Processor,
        on_event: OnEvent,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            device: CudaDevice::open(ordinal)?,
            health: Arc::new(Health::new(on_event)),
            processor,
        })
    }

    /// Returns the float32 decode step of the CPU with its scores on this GPU,
    /// which has failed for both if it fails for one.
    pub fn scoring(&self, processor: Processor) -> CudaScoring {
        CudaScoring::new(self.device.clone(), Arc::clone(&self.health), processor)
    }
}

impl DecodeDevice for CudaDecoder {
    /// A model that the GPU cannot hold or index runs on the CPU. A GPU whose
    /// results differ from those of the CPU has failed.
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let architecture = parameters.architecture;
        let network = quantise(parameters)?;
        let on_processor = Arc::new(self.processor.lay_out(architecture, &network)?);
        let layout = CudaWeights {
            uploaded: self.health.upload(
                || CudaNetwork::upload(&self.device, &network),
                Health::avoid,
            ),
            on_processor: Arc::clone(&on_processor),
            health: Arc::clone(&self.health),
        };
        let is_on_gpu = layout.uploaded.is_some();
        let weights = DecodeWeights::new(architecture, Box::new(layout));
        // An error has been reported by then.
        if is_on_gpu && let Ok(false) = same_results(&weights, &on_processor) {
            drop(self.health.report(CudaError::WrongResults));
        }
        Ok(weights)
    }
}

/// The weights of a model on the GPU, and on the CPU for when it fails.
#[derive(Debug)]
struct CudaWeights {
    uploaded: Option<Arc<CudaNetwork>>,
    on_processor: Arc<DecodeWeights>,
    health: Arc<Health>,
}

impl WeightLayout for CudaWeights {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::INT8
    }

    fn bytes(&self) -> usize {
        match &self.uploaded {
            Some(network) => network.device_bytes(),
            None => self.on_processor.bytes(),
        }
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        if let Some(network) = &self.uploaded
            && self.health.is_usable()
        {
            // More, for the sequences that are being prefilled.
            match CudaBatch::new(Arc::clone(network), max_rows + PREFILL_WIDTH) {
                Ok(batch) => {
                    return Ok(Box::new(CudaRows {
                        batch: RefCell::new(batch),
                        slots: Vec::with_capacity(max_rows),
                        inputs: Vec::with_capacity(max_rows),
                        health: Arc::clone(&self.health),
                    }));
                }
                Err(error) => self.health.avoid(error),
            }
        }
        self.on_processor.backend(max_rows)
    }
}

/// The rows of a batch on the GPU. A row beyond those in use keeps its slot.
struct CudaRows {
    /// Reading a state from the GPU needs its stream.
    batch: RefCell<CudaBatch>,
    slots: Vec<Slot>,
    inputs: Vec<(Slot, u32)>,
    health: Arc<Health>,
}

impl CudaRows {
    fn set_inputs(&mut self, tokens: &[u32]) {
        self.inputs.clear();
        let rows = self.slots.iter().copied().zip(tokens.iter().copied());
        self.inputs.extend(rows);
    }

    fn done<T>(&self, result: Result<T, CudaError>) -> Result<T, DecodeError> {
        result.map_err(|error| self.health.report(error))
    }
}

impl BatchBackend for CudaRows {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        let batch = self.batch.get_mut();
        let written = match self.slots.get(row) {
            Some(&slot) => batch.write(slot, state.int8()),
            None => batch.push(state.int8()).map(|slot| self.slots.push(slot)),
        };
        self.done(written)
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        let state = self.batch.borrow_mut().read(self.slots[row]);
        self.done(state).map(HiddenState::Int8)
    }

    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        self.slots.swap(from, to);
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        self.set_inputs(tokens);
        let health = &self.health;
        let logits = self.batch.get_mut().step(&self.inputs);
        logits.map_err(|error| health.report(error))
    }

    fn selects_highest(&self) -> bool {
        self.batch.borrow().network().shape().vocabulary_size() >= MIN_SELECTED_VOCABULARY
    }

    fn step_highest(&mut self, tokens: &[u32]) -> Result<HighestOfRows<'_>, DecodeError> {
        self.set_inputs(tokens);
        let health = &self.health;
        let highest = self.batch.get_mut().step_top(&self.inputs);
        highest.map_err(|error| health.report(error))
    }

    fn prefill_width(&self) -> usize {
        PREFILL_WIDTH
    }

    fn prefill_all(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), DecodeError> {
        let fed = feed_all(self.batch.get_mut(), chunks);
        for ((state, _), fed) in chunks.iter_mut().zip(self.done(fed)?) {
            **state = HiddenState::Int8(fed);
        }
        Ok(())
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        let fed = feed(self.batch.get_mut(), state.int8(), tokens, logits);
        *state = HiddenState::Int8(self.done(fed)?);
        Ok(())
    }
}

/// Feeds chunks to sequences that are not in the batch, all at once; returns
/// their states.
fn feed_all(batch: &mut CudaBatch, chunks: &[Chunk<'_>]) -> Result<Vec<State>, CudaError> {
    let slots = chunks
        .iter()
        .map(|(state, _)| batch.push(state.int8()))
        .collect::<Result<Vec<Slot>, CudaError>>()?;
    let rows: Vec<(Slot, &[u32])> = slots
        .iter()
        .zip(chunks)
        .map(|(&slot, (_, tokens))| (slot, *tokens))
        .collect();
    batch.prefill(&rows)?;
    let states = batch.read_all(&slots)?;
    for slot in slots {
        batch.remove(slot)?;
    }
    Ok(states)
}

/// Feeds characters to a sequence that is not in the batch.
fn feed(
    batch: &mut CudaBatch,
    state: &State,
    tokens: &[u32],
    logits: Option<&mut Vec<f32>>,
) -> Result<State, CudaError> {
    let slot = batch.push(state)?;
    match logits {
        None => batch.prefill(&[(slot, tokens)])?,
        Some(logits) => logits.extend(batch.prefill_logits(slot, tokens)?),
    }
    let state = batch.read(slot)?;
    batch.remove(slot)?;
    Ok(state)
}
