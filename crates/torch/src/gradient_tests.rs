//! Compares the gradients of `charlstm-bptt` with libtorch's automatic
//! differentiation.

use charlstm_bptt::dropout::{Dropout, INPUT_KEY, RECURRENT_KEY, mask_key};
use charlstm_bptt::instructions::Instructions;
use charlstm_bptt::trainer::{self, StepInput, TrainerConfig};
use charlstm_model::architecture::Architecture;
use charlstm_model::initial::Initial;
use charlstm_model::parameters::{Parameters, layout};
use tch::{Device, TchError, Tensor};

use crate::autograd::{AutogradNetwork, Drops, to_host};
use crate::process_state::use_calling_thread_only;

/// Parameters large enough that every gate leaves its linear range.
fn parameters(architecture: Architecture) -> Parameters {
    let mut parameters = Initial::Uniform.parameters(architecture, 11);
    parameters.values.iter_mut().for_each(|value| *value *= 2.0);
    parameters
}

fn tokens(count: usize, vocabulary: usize, salt: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i * 7 + i * 3 + salt) % vocabulary) as u32)
        .collect()
}

fn config(sizes: [usize; 5], dropout: f64) -> TrainerConfig {
    let [
        vocabulary_size,
        hidden_size,
        num_layers,
        batch_size,
        sequence_length,
    ] = sizes;
    TrainerConfig {
        architecture: Architecture {
            vocabulary_size,
            hidden_size,
            num_layers,
        },
        batch_size,
        sequence_length,
        dropout,
        locked_dropout: false,
        recurrent_dropout: 0.0,
        input_dropout: 0.0,
        beta2: 0.999,
        weight_decay: 0.0,
        clip_norm: 5.0,
        average_decay: None,
    }
}

/// Drops what `charlstm-bptt` drops in the step with this key.
struct SameDrops<'a> {
    config: &'a TrainerConfig,
    key: u64,
}

impl SameDrops<'_> {
    /// Returns the factors of `len` values.
    fn factors(&self, probability: f64, key_parts: &[u64], len: usize) -> Vec<f32> {
        let dropout = Dropout::new(probability);
        let mut mask = vec![0; len];
        dropout.draw(&mut mask, mask_key(self.key, key_parts));
        mask.iter().map(|&keep| dropout.factor(keep)).collect()
    }
}

impl Drops for SameDrops<'_> {
    fn inputs(&self, one_hot: Tensor) -> Result<Tensor, TchError> {
        let probability = self.config.input_dropout;
        if probability == 0.0 {
            return Ok(one_hot);
        }
        let factors: Vec<f32> = (0..self.config.architecture.vocabulary_size as u64)
            .flat_map(|token| self.factors(probability, &[INPUT_KEY, token], 1))
            .collect();
        one_hot.f_mul(&Tensor::from_slice(&factors))
    }

    fn recurrent(&self, layer: usize, weight: &Tensor) -> Result<Option<Tensor>, TchError> {
        let probability = self.config.recurrent_dropout;
        if probability == 0.0 {
            return Ok(None);
        }
        let hidden = self.config.architecture.hidden_size;
        let factors: Vec<f32> = (0..4 * hidden as u64)
            .flat_map(|row| {
                let key = [RECURRENT_KEY, layer as u64, row];
                self.factors(probability, &key, hidden)
            })
            .collect();
        Ok(Some(Tensor::from_slice(&factors).view_as(weight)))
    }

    fn output(&self, layer: usize, output: Tensor) -> Result<Tensor, TchError> {
        let probability = self.config.dropout;
        if probability == 0.0 {
            return Ok(output);
        }
        let mut factors = Vec::new();
        for time in 0..self.config.sequence_length as u64 {
            let time = if self.config.locked_dropout { 0 } else { time };
            for row in 0..self.config.batch_size as u64 {
                let hidden = self.config.architecture.hidden_size;
                factors.extend(self.factors(probability, &[layer as u64, time, row], hidden));
            }
        }
        output.f_mul(&Tensor::from_slice(&factors).view_as(&output))
    }
}

/// Compares two consecutive batches under the same dropout masks. All values may
/// differ by `tolerance` of their norm.
fn compare(config: TrainerConfig, instructions: Instructions, threads: usize, tolerance: f64) {
    use_calling_thread_only();
    let architecture = config.architecture;
    let parameters = parameters(architecture);
    let count = config.batch_size * config.sequence_length;
    let vocabulary = architecture.vocabulary_size;
    let mut network = AutogradNetwork::new(&parameters, Device::Cpu).expect("a network");
    let mut state = network.zero_state(config.batch_size).expect("a state");
    let mut trainer =
        trainer::start(config, instructions, &parameters.values, threads).expect("threads");
    for step in 0..2u64 {
        let inputs = tokens(count, vocabulary, step as usize);
        let targets = tokens(count, vocabulary, 5);
        let outcome = trainer
            .step(StepInput {
                inputs: &inputs,
                targets: &targets,
                reset_state: step == 0,
                key: step,
                step: step + 1,
                // The parameters stay as they are.
                learning_rate: 0.0,
            })
            .expect("a step");
        let to_tensor = |tokens: &[u32]| {
            let tokens: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
            Tensor::from_slice(&tokens).view([-1, config.batch_size as i64])
        };
        let expected = Tensor::zeros_like(network.flat());
        let loss = network
            .gradient(
                &to_tensor(&inputs),
                &to_tensor(&targets),
                &mut state,
                &SameDrops {
                    config: &config,
                    key: step,
                },
                &expected,
            )
            .expect("a gradient")
            .double_value(&[]);
        let expected = to_host(&expected).expect("a gradient");
        let what = format!("{config:?} {instructions:?} {threads} threads, step {step}");
        assert!(
            (outcome.loss / loss - 1.0).abs() < tolerance,
            "{what}: {} {loss}",
            outcome.loss
        );
        let gradient = trainer.gradient().expect("a gradient");
        for view in layout(&architecture) {
            let (ours, theirs) = (&gradient[view.range.clone()], &expected[view.range]);
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let difference = norm(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
            let size = norm(&mut theirs.iter().copied());
            assert!(
                difference <= tolerance * size,
                "{what}: {}: {difference} of {size}",
                view.name
            );
        }
    }
}

/// Returns the tolerance for some instructions: bfloat16 has 8 significant bits.
fn tolerance(instructions: Instructions) -> f64 {
    match instructions {
        Instructions::Float32(_) => 1e-5,
        _ => 3e-2,
    }
}

#[test]
fn gradients_match_automatic_differentiation_for_all_instructions_and_thread_counts() {
    for instructions in Instructions::available() {
        for sizes in [
            [2, 1, 1, 1, 1],
            [5, 3, 1, 2, 4],
            [11, 16, 2, 3, 7],
            [30, 19, 3, 4, 9],
            [13, 24, 4, 2, 12],
            [78, 128, 2, 40, 9],
        ] {
            for threads in [1, 2, 3] {
                compare(
                    config(sizes, 0.0),
                    instructions,
                    threads,
                    tolerance(instructions),
                );
            }
        }
    }
}

#[test]
fn gradients_with_dropout_match_automatic_differentiation_under_the_same_masks() {
    for instructions in Instructions::available() {
        for sizes in [[5, 3, 1, 2, 4], [13, 24, 4, 2, 12], [78, 70, 2, 8, 25]] {
            for dropout in [0.5, 0.2] {
                let mut config = config(sizes, dropout);
                compare(config, instructions, 2, tolerance(instructions));
                config.locked_dropout = true;
                compare(config, instructions, 2, tolerance(instructions));
                config.recurrent_dropout = 0.3;
                config.input_dropout = 0.2;
                compare(config, instructions, 2, tolerance(instructions));
            }
        }
    }
}
