//! Tests of the kernels of scores: everything must have the bits of the CPU's
//! float32 decode step.

use std::fmt;
use std::sync::Arc;

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{
    DecodeBatch, DecodeDevice, DecodeError, DecodeWeights, HiddenState,
};
use charlstm_model::parameters::Parameters;

use super::random::random_parameters;
use super::*;
use crate::health::Health;
use crate::score::chunk::{pack_chunk, unpack_state};
use crate::score::launch::{
    CHUNK_HEADER, SCORE_CHUNK, ScoreAddresses, ScoreNetworkAddresses, ScoreSizes, score_chunk,
};
use crate::score::network::place_parameters;
use crate::score_device::{FloatWeights, Scorer, with_scores_on};

/// The float32 weights of a network in host memory.
struct HostWeights {
    sizes: ScoreSizes,
    addresses: ScoreNetworkAddresses,
    _weights: Vec<Vec<u128>>,
}

impl fmt::Debug for HostWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sizes.fmt(f)
    }
}

impl HostWeights {
    fn new(parameters: &Parameters) -> Self {
        let mut weights = Vec::new();
        let (sizes, addresses) = place_parameters(parameters, |values| {
            let memory = aligned_copy(&values);
            let address = memory.as_ptr() as u64;
            weights.push(memory);
            Ok(address)
        })
        .expect("a network of a supported size");
        Self {
            sizes,
            addresses,
            _weights: weights,
        }
    }
}

/// A scorer whose device is the host: as `CudaScorer`, with the kernels run by
/// the emulation.
struct HostScorer {
    network: Arc<HostWeights>,
    chunk: Vec<u128>,
    results: Vec<u128>,
    h: Vec<u128>,
    c: Vec<u128>,
    sums: Vec<u128>,
}

/// Memory for numbers, all zero.
fn zeros(numbers: usize) -> Vec<u128> {
    vec![0; numbers.div_ceil(4).max(1)]
}

impl HostScorer {
    fn new(network: Arc<HostWeights>) -> Self {
        let sizes = network.sizes;
        Self {
            chunk: zeros(CHUNK_HEADER + sizes.state_len()),
            results: zeros(sizes.state_len() + SCORE_CHUNK * sizes.vocabulary),
            h: zeros(sizes.layers * SCORE_CHUNK * sizes.columns()),
            c: zeros(sizes.layers * sizes.columns()),
            sums: zeros(2 * sizes.layers * sizes.rows()),
            network,
        }
    }

    /// Feeds a chunk with the launches for `characters` characters.
    fn feed_chunk(
        &mut self,
        kernels: &HostKernels,
        state: &mut [f32],
        tokens: &[u32],
        characters: usize,
    ) -> Vec<f32> {
        let sizes = self.network.sizes;
        let words = CHUNK_HEADER + sizes.state_len();
        // SAFETY: the memory has this many words.
        let chunk =
            unsafe { std::slice::from_raw_parts_mut(self.chunk.as_mut_ptr().cast::<u32>(), words) };
        pack_chunk(&sizes, tokens, state, chunk);
        let buffers = ScoreAddresses {
            chunk: self.chunk.as_ptr() as u64,
            results: self.results.as_mut_ptr() as u64,
            h: self.h.as_mut_ptr() as u64,
            c: self.c.as_mut_ptr() as u64,
            sums: self.sums.as_mut_ptr() as u64,
        };
        let numbers = sizes.state_len() + SCORE_CHUNK * sizes.vocabulary;
        // SAFETY: the memory has this many numbers.
        let results = unsafe {
            std::slice::from_raw_parts_mut(self.results.as_mut_ptr().cast::<f32>(), numbers)
        };
        results[sizes.state_len()..].fill(f32::NAN);
        for launch in score_chunk(&sizes, &self.network.addresses, &buffers, characters) {
            kernels.run(&launch);
        }
        unpack_state(&sizes, results, state);
        let (logits, unused) =
            results[sizes.state_len()..].split_at(tokens.len() * sizes.vocabulary);
        assert!(
            unused.iter().all(|x| x.is_nan()),
            "logits of characters that were not fed were written"
        );
        logits.to_vec()
    }
}

impl FloatWeights for HostWeights {
    fn device_bytes(&self) -> usize {
        0
    }

    fn scorer(self: Arc<Self>) -> Result<Box<dyn Scorer>, CudaError> {
        Ok(Box::new(HostScorer::new(self)))
    }
}

impl Scorer for HostScorer {
    fn feed(
        &mut self,
        state: &mut [f32],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let kernels = host_kernels().expect("the caller has them");
        let kernels = (*kernels).as_ref().expect("the caller has them");
        let mut left = tokens;
        while !left.is_empty() {
            let characters = launch::chunk_characters(left.len());
            let (now, later) = left.split_at(characters.min(left.len()));
            left = later;
            logits.extend(self.feed_chunk(kernels, state, now, characters));
        }
        Ok(())
    }
}

/// The CPU with scores by the emulated kernels.
#[derive(Debug)]
struct HostScoring;

impl DecodeDevice for HostScoring {
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        let fail = |event: crate::CudaEvent<'_>| panic!("{event:?}");
        with_scores_on(
            Some(Arc::new(HostWeights::new(parameters))),
            DecodeWeights::on_processor(parameters),
            &Arc::new(Health::new(Box::new(fail))),
        )
    }
}

#[test]
fn a_text_in_chunks_of_any_length_has_the_bits_of_the_cpu() {
    if host_kernels().is_none() {
        return;
    }
    let mut numbers = Numbers(12);
    let architecture = Architecture {
        vocabulary_size: 7,
        hidden_size: 12,
        num_layers: 2,
    };
    let parameters = random_parameters(&mut numbers, architecture);
    // Compares a short score, too.
    let weights = Arc::new(HostScoring.prepare(&parameters).expect("weights"));
    let on_processor = Arc::new(DecodeWeights::on_processor(&parameters));
    let text: Vec<u32> = (0..75).map(|_| numbers.below(7) as u32).collect();
    let score = |weights: &Arc<DecodeWeights>, length: usize| {
        let mut state = weights.zero_state();
        let mut batch = DecodeBatch::new(Arc::clone(weights), 1).expect("a batch");
        let mut logits = Vec::new();
        for chunk in text.chunks(length) {
            logits.extend(batch.prefill_logits(&mut state, chunk).expect("a score"));
        }
        (bits(&logits), state)
    };
    let expected = score(&on_processor, 75);
    for length in [75, 64, 31, 3] {
        assert_eq!(score(&weights, length), expected, "chunks of {length}");
    }
}

#[test]
fn scores_have_the_bits_of_the_cpu_for_every_kind_of_shape() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    let mut numbers = Numbers(11);
    for (vocabulary_size, hidden_size, num_layers) in [
        (1, 1, 1),
        (5, 63, 1),
        (83, 64, 2),
        (130, 65, 3),
        (32, 100, 2),
        (2, 200, 4),
        // More columns than are in shared memory at a time.
        (33, 600, 1),
        (3, 2100, 1),
    ] {
        let architecture = Architecture {
            vocabulary_size,
            hidden_size,
            num_layers,
        };
        let parameters = random_parameters(&mut numbers, architecture);
        // SAFETY: only sets a number.
        unsafe { kernels.function::<Schedule>("host_schedule")(numbers.next() as c_uint) };
        let weights = DecodeWeights::on_processor(&parameters);
        let mut batch = weights.backend(1).expect("a CPU");
        let mut scorer = HostScorer::new(Arc::new(HostWeights::new(&parameters)));
        let values = numbers.floats(architecture.state_len(), 1.0);
        let mut state = values.clone();
        let mut expected_state = HiddenState::Float32(values.into());
        // As many characters as the launches are for, and fewer.
        let most = if hidden_size > 1000 { 2 } else { 18 };
        for (length, characters) in [(most, most), (1, 4), (2, 8)] {
            let tokens: Vec<u32> = (0..length)
                .map(|_| numbers.below(vocabulary_size) as u32)
                .collect();
            let mut expected = Vec::new();
            batch
                .prefill(&mut expected_state, &tokens, Some(&mut expected))
                .expect("a CPU");
            let logits = scorer.feed_chunk(kernels, &mut state, &tokens, characters);
            let what = format!("{length} characters, {architecture:?}");
            assert_eq!(bits(&logits), bits(&expected), "logits, {what}");
            let expected_state = expected_state.float32();
            assert_eq!(bits(&state), bits(expected_state), "state, {what}");
        }
    }
}

#[test]
fn padding_changes_no_sum_not_even_one_of_minus_zero() {
    let Some(kernels) = host_kernels() else {
        return;
    };
    let Some(kernels) = &*kernels else { return };
    let architecture = Architecture {
        vocabulary_size: 3,
        hidden_size: 5,
        num_layers: 1,
    };
    let parameters = Parameters {
        architecture,
        values: vec![-0.0; architecture.parameter_count()],
    };
    let weights = DecodeWeights::on_processor(&parameters);
    let mut state = vec![0.25; architecture.state_len()];
    let mut expected_state = HiddenState::Float32(state.clone().into());
    let mut expected = Vec::new();
    let mut batch = weights.backend(1).expect("a CPU");
    batch
        .prefill(&mut expected_state, &[1, 2], Some(&mut expected))
        .expect("a CPU");
    assert!(expected.iter().all(|x| x.to_bits() == (-0.0_f32).to_bits()));
    let mut scorer = HostScorer::new(Arc::new(HostWeights::new(&parameters)));
    let logits = scorer.feed_chunk(kernels, &mut state, &[1, 2], 4);
    assert_eq!(bits(&logits), bits(&expected));
    assert_eq!(bits(&state), bits(expected_state.float32()));
}
