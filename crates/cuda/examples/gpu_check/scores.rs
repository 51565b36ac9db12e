//! Compares scores on the device with the CPU's float32 decode step, bit for
//! bit, and measures their speed.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use charlstm_cuda::{
    CudaBatch, CudaDecoder, CudaDevice, CudaError, CudaFloatNetwork, CudaNetwork, CudaScorer,
};
use charlstm_int8::{Shape, State};
use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{
    DecodeBatch, DecodeDevice, DecodeWeights, HiddenState, Int8Processor, Processor,
};
use charlstm_model::parameters::Parameters;

use super::random::{Numbers, random_network, random_parameters};
use super::speed::measure;
use super::{Outcome, Report, Size};

/// Most time that a score of [`TARGET_CHARS`] characters may take, for 2 x 512
/// with a vocabulary of 83, in milliseconds.
const TARGET_MS: f64 = 500.0;
const TARGET_CHARS: usize = 20_000;

/// A text, the state before it, and what the CPU makes of them.
struct Expected {
    tokens: Vec<u32>,
    begin: Vec<f32>,
    logits: Vec<u32>,
    end: Vec<u32>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn architecture(vocabulary_size: usize, hidden_size: usize, num_layers: usize) -> Architecture {
    Architecture {
        vocabulary_size,
        hidden_size,
        num_layers,
    }
}

impl Expected {
    fn new(parameters: &Parameters, numbers: &mut Numbers, characters: usize) -> Outcome<Self> {
        let architecture = parameters.architecture;
        let tokens: Vec<u32> = (0..characters)
            .map(|_| numbers.below(architecture.vocabulary_size) as u32)
            .collect();
        let begin = numbers.floats(architecture.state_len(), 1.0);
        let weights = Arc::new(DecodeWeights::on_processor(parameters));
        let mut batch = DecodeBatch::new(weights, 1)?;
        let mut state = HiddenState::Float32(begin.clone().into());
        let logits = bits(&batch.prefill_logits(&mut state, &tokens)?);
        let end = bits(state.float32());
        Ok(Self {
            tokens,
            begin,
            logits,
            end,
        })
    }

    /// Scores the text in parts of `length` characters.
    fn check(&self, scorer: &mut CudaScorer, length: usize) -> Outcome {
        let mut state = self.begin.clone();
        let mut logits = Vec::new();
        for part in self.tokens.chunks(length) {
            scorer.feed(&mut state, part, &mut logits)?;
        }
        let differing = |given: &[u32], expected: &[u32]| {
            let pairs = given.iter().zip(expected);
            pairs.filter(|(a, b)| a != b).count() + given.len().abs_diff(expected.len())
        };
        let in_logits = differing(&bits(&logits), &self.logits);
        let in_state = differing(&bits(&state), &self.end);
        if in_logits + in_state == 0 {
            return Ok(());
        }
        Err(format!("{in_logits} logits and {in_state} numbers of the state differ").into())
    }
}

/// Scores a text on two threads at the same time, while a batch takes decode
/// steps on a third.
fn check_concurrency(
    device: &CudaDevice,
    network: &Arc<CudaFloatNetwork>,
    expected: &Expected,
    hidden: usize,
    rounds: usize,
) -> Result<String, Box<dyn Error>> {
    let shape = Shape::new(78, hidden, 2)?;
    let int8 = random_network(&mut Numbers(1), &shape);
    let mut batch = CudaBatch::new(Arc::new(CudaNetwork::upload(device, &int8)?), 8)?;
    let slot = batch.push(&State::zeros(&shape))?;
    let is_done = AtomicBool::new(false);
    let start = Barrier::new(3);
    let (steps, outcomes) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    start.wait();
                    let scorer = CudaScorer::new(network.clone());
                    let mut scorer = scorer.map_err(|error| error.to_string())?;
                    for _ in 0..rounds {
                        let checked = expected.check(&mut scorer, 64);
                        checked.map_err(|error| error.to_string())?;
                    }
                    Ok(())
                })
            })
            .collect();
        let stepping = scope.spawn(|| -> Result<usize, CudaError> {
            start.wait();
            let mut steps = 0;
            while !is_done.load(Ordering::Relaxed) {
                batch.step(&[(slot, 1)])?;
                steps += 1;
            }
            Ok(steps)
        });
        let joined = threads.into_iter().map(|thread| thread.join());
        let outcomes: Vec<_> = joined.collect();
        is_done.store(true, Ordering::Relaxed);
        (stepping.join(), outcomes)
    });
    for outcome in outcomes {
        outcome.map_err(|_| "a thread panicked")??;
    }
    let steps = steps.map_err(|_| "a thread panicked")??;
    Ok(format!("{steps} concurrent decode steps"))
}

fn check_errors(network: &Arc<CudaFloatNetwork>) -> Result<String, Box<dyn Error>> {
    let architecture = network.architecture();
    let vocabulary = architecture.vocabulary_size as u32;
    let mut scorer = CudaScorer::new(network.clone())?;
    let mut state = vec![0.0; architecture.state_len()];
    let mut logits = vec![1.0];
    let mut short = vec![0.0; architecture.state_len() - 1];
    let seen = [
        matches!(
            scorer.feed(&mut state, &[0, vocabulary], &mut logits),
            Err(CudaError::InvalidToken { .. })
        ),
        matches!(
            scorer.feed(&mut short, &[0], &mut logits),
            Err(CudaError::StateShape { .. })
        ),
        state.iter().all(|&number| number == 0.0) && logits == [1.0],
        scorer.feed(&mut state, &[], &mut logits).is_ok() && logits.len() == 1,
        scorer.feed(&mut state, &[0], &mut logits).is_ok(),
    ];
    match seen.iter().position(|&seen| !seen) {
        None => Ok(String::new()),
        Some(place) => Err(format!("case {place} did not give its result").into()),
    }
}

/// The CPU with its scores on the GPU, as a server uses it: the comparison of
/// a loaded model must find no difference.
fn check_device(parameters: &Parameters, ordinal: usize) -> Result<String, Box<dyn Error>> {
    let events = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&events);
    let on_event = Box::new(move |_: charlstm_cuda::CudaEvent<'_>| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let decoder = CudaDecoder::open(ordinal, Int8Processor::default(), on_event)?;
    let scoring = decoder.scoring(Processor::default());
    let weights = Arc::new(scoring.prepare(parameters)?);
    let on_processor = Arc::new(DecodeWeights::on_processor(parameters));
    let score = |weights: &Arc<DecodeWeights>| -> Outcome<(Vec<u32>, HiddenState)> {
        let mut batch = DecodeBatch::new(Arc::clone(weights), 1)?;
        let mut state = weights.zero_state();
        let logits = batch.prefill_logits(&mut state, &[1, 2, 3, 4, 5])?;
        Ok((bits(&logits), state))
    };
    if weights.bytes() <= on_processor.bytes() {
        return Err("the model is not on the GPU".into());
    }
    if score(&weights)? != score(&on_processor)? {
        return Err("the score differs".into());
    }
    match events.load(Ordering::Relaxed) {
        0 => Ok(String::new()),
        count => Err(format!("{count} events were reported").into()),
    }
}

/// Checks the scores of several networks.
pub(super) fn scores(device: &CudaDevice, report: &mut Report, size: Size) -> Outcome {
    let is_full = size == Size::Full;
    let shapes: &[(usize, usize, usize)] = match size {
        Size::Tiny => &[(83, 64, 2), (530, 40, 3)],
        Size::Short => &[(83, 512, 2), (130, 100, 3)],
        Size::Full => &[
            (83, 512, 2),
            (1, 64, 1),
            (78, 64, 3),
            (130, 100, 3),
            (78, 1024, 3),
            (4002, 512, 2),
            (33, 2100, 1),
            (40_000, 64, 1),
        ],
    };
    // The sanitizer and the stand-in are slow.
    let characters = if is_full { 200 } else { 20 };
    for (seed, &(vocabulary, hidden, layers)) in shapes.iter().enumerate() {
        let mut numbers = Numbers(seed as u64 + 30);
        let architecture = architecture(vocabulary, hidden, layers);
        let parameters = random_parameters(&mut numbers, architecture);
        let expected = Expected::new(&parameters, &mut numbers, characters)?;
        let network = Arc::new(CudaFloatNetwork::upload(device, &parameters)?);
        let mut scorer = CudaScorer::new(network.clone())?;
        let name = format!("{layers} x {hidden}, vocabulary {vocabulary}");
        let lengths: &[usize] = if is_full {
            &[200, 200, 64, 33, 7, 1]
        } else {
            &[20, 7]
        };
        let mut outcome = Ok(());
        for &length in lengths {
            let checked = expected.check(&mut scorer, length);
            let checked = checked.map_err(|error| format!("parts of {length}: {error}").into());
            outcome = outcome.and(checked);
        }
        let outcome = outcome.map(|()| format!("parts of {lengths:?} equal"));
        report.check(&format!("score    {name}"), outcome)?;
        if seed == 0 {
            let rounds = if is_full { 20 } else { 1 };
            let outcome = check_concurrency(device, &network, &expected, hidden, rounds);
            report.check("score    on two threads, next to decode steps", outcome)?;
            let outcome = check_errors(&network);
            report.check("score    invalid calls give their errors", outcome)?;
            if size != Size::Short {
                let outcome = check_device(&parameters, device.info().ordinal);
                report.check("score    on the device that a server uses", outcome)?;
            }
        }
    }
    Ok(())
}

/// Measures scores.
pub(super) fn score_speed(device: &CudaDevice, report: &mut Report) -> Outcome {
    for (vocabulary, hidden, layers, characters) in [
        (83, 512, 2, TARGET_CHARS),
        (4002, 512, 2, 2_000),
        (78, 1024, 3, 2_000),
    ] {
        let mut numbers = Numbers(40);
        let architecture = architecture(vocabulary, hidden, layers);
        let parameters = random_parameters(&mut numbers, architecture);
        let network = Arc::new(CudaFloatNetwork::upload(device, &parameters)?);
        let mut scorer = CudaScorer::new(network.clone())?;
        let text: Vec<u32> = (0..characters)
            .map(|_| numbers.below(vocabulary) as u32)
            .collect();
        let mut logits = Vec::new();
        let (us, _) = measure(3, || {
            let mut state = vec![0.0; architecture.state_len()];
            // In chunks, as a server with nothing else to do feeds them.
            for chunk in text.chunks(64) {
                logits.clear();
                scorer.feed(&mut state, chunk, &mut logits)?;
            }
            Ok(())
        })?;
        let target = if characters == TARGET_CHARS {
            let met = if us / 1000.0 <= TARGET_MS {
                "yes"
            } else {
                "no"
            };
            format!("; target {TARGET_MS:.0} ms, met: {met}")
        } else {
            String::new()
        };
        report.line(&format!(
            "score of {characters} characters in float32, {layers} x {hidden}, vocabulary {vocabulary}: {:.1} ms, {:.2} us a character; network {} bytes on the device{target}",
            us / 1000.0,
            us / characters as f64,
            network.device_bytes(),
        ))?;
    }
    Ok(())
}
