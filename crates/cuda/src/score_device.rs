//! The float32 decode step of the CPU with scores on a GPU, as a device of
//! [`charlstm_model::decode_step`]. Only a prefill with logits, which nothing
//! but a score asks for, runs on the GPU; steps and prefills of sessions stay
//! on the CPU. Both compute the same bits.

use std::fmt;
use std::io;
use std::sync::Arc;

use charlstm_model::decode_step::{
    Arithmetic, BatchBackend, Chunk, DecodeDevice, DecodeError, DecodeWeights, HiddenState,
    HighestOfRows, Processor, WeightLayout,
};
use charlstm_model::parameters::Parameters;

use crate::device::CudaDevice;
use crate::error::CudaError;
use crate::health::Health;
use crate::score::{CudaFloatNetwork, CudaScorer};

/// Characters of the comparison with the CPU when a model is loaded: of two
/// chunks.
const COMPARED_CHARS: usize = 20;

/// The float32 weights of a model on a GPU; simulated in tests.
pub(crate) trait FloatWeights: fmt::Debug + Send + Sync {
    /// Bytes of device memory that the weights take.
    fn device_bytes(&self) -> usize;

    /// Creates what scores texts, one thread at a time.
    fn scorer(self: Arc<Self>) -> Result<Box<dyn Scorer>, CudaError>;
}

/// [`CudaScorer`]; simulated in tests.
pub(crate) trait Scorer: Send {
    /// [`CudaScorer::feed`].
    fn feed(
        &mut self,
        state: &mut [f32],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError>;
}

impl FloatWeights for CudaFloatNetwork {
    fn device_bytes(&self) -> usize {
        self.device_bytes()
    }

    fn scorer(self: Arc<Self>) -> Result<Box<dyn Scorer>, CudaError> {
        Ok(Box::new(CudaScorer::new(self)?))
    }
}

impl Scorer for CudaScorer {
    fn feed(
        &mut self,
        state: &mut [f32],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        self.feed(state, tokens, logits)
    }
}

/// The CPU's float32 decode step, with scores on a GPU. If the GPU fails, the
/// scores continue on the CPU, with the same results.
#[derive(Clone, Debug)]
pub struct CudaScoring {
    device: CudaDevice,
    health: Arc<Health>,
    processor: Processor,
}

impl CudaScoring {
    pub(crate) fn new(device: CudaDevice, health: Arc<Health>, processor: Processor) -> Self {
        Self {
            device,
            health,
            processor,
        }
    }
}

impl DecodeDevice for CudaScoring {
    /// A model that the GPU cannot hold or index is scored on the CPU. A GPU
    /// whose results differ from those of the CPU has failed.
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let on_processor = self.processor.prepare(parameters)?;
        let uploaded = self.health.upload(
            || CudaFloatNetwork::upload(&self.device, parameters),
            Health::avoid_scores,
        );
        let uploaded = uploaded.map(|network| network as Arc<dyn FloatWeights>);
        with_scores_on(uploaded, on_processor, &self.health)
    }
}

/// Adds scores on a GPU to weights on the CPU, after a comparison of both.
pub(crate) fn with_scores_on(
    uploaded: Option<Arc<dyn FloatWeights>>,
    on_processor: DecodeWeights,
    health: &Arc<Health>,
) -> Result<DecodeWeights, DecodeError> {
    let uploaded = match uploaded {
        Some(uploaded) if is_correct(&uploaded, &on_processor, health)? => Some(uploaded),
        _ => None,
    };
    let architecture = *on_processor.architecture();
    let layout = ScoringWeights {
        uploaded,
        on_processor,
        health: Arc::clone(health),
    };
    Ok(DecodeWeights::new(architecture, Box::new(layout)))
}

/// Whether the score of a short text has the bits of the CPU. Reports why not.
fn is_correct(
    uploaded: &Arc<dyn FloatWeights>,
    on_processor: &DecodeWeights,
    health: &Health,
) -> Result<bool, DecodeError> {
    let vocabulary = on_processor.architecture().vocabulary_size;
    let text: Vec<u32> = (0..COMPARED_CHARS)
        .map(|at| ((at * 17 + 1) % vocabulary) as u32)
        .collect();
    let mut expected_state = on_processor.zero_state();
    let mut state = expected_state.float32().to_vec();
    let (mut expected, mut logits) = (Vec::new(), Vec::new());
    let mut batch = on_processor.backend(1)?;
    batch.prefill(&mut expected_state, &text, Some(&mut expected))?;
    let scored = Arc::clone(uploaded)
        .scorer()
        .and_then(|mut scorer| scorer.feed(&mut state, &text, &mut logits));
    match scored {
        Err(error) => {
            health.avoid_scores(error);
            Ok(false)
        }
        Ok(()) if same(&logits, &expected) && same(&state, expected_state.float32()) => Ok(true),
        Ok(()) => {
            drop(health.report(CudaError::WrongResults));
            Ok(false)
        }
    }
}

/// Whether two results have the same bits. All NaN are the same: a network
/// whose weights are not finite has them.
fn same(a: &[f32], b: &[f32]) -> bool {
    let is_same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(is_same)
}

/// The weights of a model on the CPU, and on the GPU for its scores.
#[derive(Debug)]
struct ScoringWeights {
    uploaded: Option<Arc<dyn FloatWeights>>,
    on_processor: DecodeWeights,
    health: Arc<Health>,
}

impl WeightLayout for ScoringWeights {
    fn arithmetic(&self) -> Arithmetic {
        self.on_processor.arithmetic()
    }

    fn bytes(&self) -> usize {
        let uploaded = self.uploaded.as_ref();
        self.on_processor.bytes() + uploaded.map_or(0, |uploaded| uploaded.device_bytes())
    }

    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        Ok(Box::new(ScoringRows {
            on_processor: self.on_processor.backend(max_rows)?,
            uploaded: self.uploaded.clone(),
            scorer: None,
            health: Arc::clone(&self.health),
        }))
    }
}

/// The rows of a batch on the CPU, and scores on the GPU.
struct ScoringRows {
    on_processor: Box<dyn BatchBackend>,
    /// `None` if this batch scores on the CPU.
    uploaded: Option<Arc<dyn FloatWeights>>,
    /// Created for the first score.
    scorer: Option<Box<dyn Scorer>>,
    health: Arc<Health>,
}

impl ScoringRows {
    /// Feeds a chunk of a text on the GPU. `None` if it has to be fed on the
    /// CPU; `state` and `logits` are as before then.
    fn score(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Option<()> {
        let uploaded = self.uploaded.as_ref()?;
        let scored = if self.health.is_usable() {
            self.feed(&Arc::clone(uploaded), state, tokens, logits)
        } else {
            None
        };
        if scored.is_none() {
            self.uploaded = None;
            self.scorer = None;
        }
        scored
    }

    fn feed(
        &mut self,
        uploaded: &Arc<dyn FloatWeights>,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Option<()> {
        let scorer = match &mut self.scorer {
            Some(scorer) => scorer,
            None => match Arc::clone(uploaded).scorer() {
                Ok(scorer) => self.scorer.insert(scorer),
                Err(error) => {
                    self.health.avoid_scores(error);
                    return None;
                }
            },
        };
        let mut values: Box<[f32]> = state.float32().into();
        if let Err(error) = scorer.feed(&mut values, tokens, logits) {
            // The score continues on the CPU.
            drop(self.health.report(error));
            return None;
        }
        *state = HiddenState::Float32(values);
        Some(())
    }
}

impl BatchBackend for ScoringRows {
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError> {
        self.on_processor.write(row, state)
    }

    fn read(&self, row: usize) -> Result<HiddenState, DecodeError> {
        self.on_processor.read(row)
    }

    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError> {
        self.on_processor.move_last(from, to)
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        self.on_processor.step(tokens)
    }

    fn selects_highest(&self) -> bool {
        self.on_processor.selects_highest()
    }

    fn step_highest(&mut self, tokens: &[u32]) -> Result<HighestOfRows<'_>, DecodeError> {
        self.on_processor.step_highest(tokens)
    }

    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        match logits {
            None => self.on_processor.prefill(state, tokens, None),
            Some(logits) => match self.score(state, tokens, logits) {
                Some(()) => Ok(()),
                None => self.on_processor.prefill(state, tokens, Some(logits)),
            },
        }
    }

    fn prefill_width(&self) -> usize {
        self.on_processor.prefill_width()
    }

    fn prefill_all(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), DecodeError> {
        self.on_processor.prefill_all(chunks)
    }

    fn set_partner(&mut self, wanted: bool) -> io::Result<()> {
        self.on_processor.set_partner(wanted)
    }
}

#[cfg(test)]
mod tests;
