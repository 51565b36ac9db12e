//! Adam on flat buffers, computed by a team: norm of the gradient, clipping, the
//! update and the average of the weights.

use pulp::Arch;

use super::shared_buffer::SharedBuffer;
use super::team::Member;

/// Parameters that are summed and updated at a time. The norm is summed in parts
/// of this size, whatever the number of threads.
const PARAMETERS_AT_ONCE: usize = 1 << 14;

/// Keeps the quotient finite if a second moment is 0.
pub const EPSILON: f32 = 1e-8;

/// Decay rate of the first moments.
pub const BETA1: f64 = 0.9;

/// The parameters and everything that a step changes besides the hidden states.
pub(crate) struct Optimizer {
    /// In the order of `charlstm_model::parameters::layout`.
    pub(crate) parameters: SharedBuffer<f32>,
    pub(crate) first_moments: SharedBuffer<f32>,
    pub(crate) second_moments: SharedBuffer<f32>,
    /// Exponential moving average of the parameters; empty if there is none.
    pub(crate) average: SharedBuffer<f32>,
    len: usize,
    /// Sums of squares of the parts of the gradient.
    squares: SharedBuffer<f64>,
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Counted from 1.
    pub step: u64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Maximum norm of the gradient; a longer one is scaled down to it.
    pub clip_norm: f64,
    /// Decay rate of the second moments.
    pub beta2: f64,
    /// Decoupled weight decay (Loshchilov and Hutter, 2019); 0 is plain Adam
    /// (Kingma and Ba, 2015).
    pub weight_decay: f64,
    /// Decay rate of the average of the parameters, if there is one.
    pub average_decay: f64,
}

/// What the optimizer changes, each in the order of
/// `charlstm_model::parameters::layout`.
#[derive(Debug, PartialEq)]
pub struct OptimizerState {
    /// The parameters.
    pub parameters: Vec<f32>,
    /// First moments of Adam.
    pub first_moments: Vec<f32>,
    /// Second moments of Adam.
    pub second_moments: Vec<f32>,
    /// The moving average of the parameters; empty if there is none.
    pub average: Vec<f32>,
}

impl Optimizer {
    /// Starts at some parameters, with moments of zero.
    pub(crate) fn new(parameters: &[f32], keeps_average: bool) -> Self {
        let len = parameters.len();
        let copy = |is_needed| {
            let mut buffer = SharedBuffer::new(if is_needed { len } else { 0 });
            if is_needed {
                buffer.all().copy_from_slice(parameters);
            }
            buffer
        };
        Self {
            parameters: copy(true),
            first_moments: SharedBuffer::new(len),
            second_moments: SharedBuffer::new(len),
            average: copy(keeps_average),
            len,
            squares: SharedBuffer::new(len.div_ceil(PARAMETERS_AT_ONCE)),
        }
    }

    /// Copies parameters, moments and average.
    pub(crate) fn state(&mut self) -> OptimizerState {
        OptimizerState {
            parameters: self.parameters.all().to_vec(),
            first_moments: self.first_moments.all().to_vec(),
            second_moments: self.second_moments.all().to_vec(),
            average: self.average.all().to_vec(),
        }
    }

    /// Replaces parameters, moments and average.
    ///
    /// # Panics
    /// If one of them has another length.
    pub(crate) fn set_state(&mut self, state: &OptimizerState) {
        self.parameters.all().copy_from_slice(&state.parameters);
        self.first_moments
            .all()
            .copy_from_slice(&state.first_moments);
        self.second_moments
            .all()
            .copy_from_slice(&state.second_moments);
        self.average.all().copy_from_slice(&state.average);
    }

    /// Takes a step along the gradient, which all members have computed before
    /// the last barrier. Has a barrier within, but not at its end. Returns the
    /// norm of the gradient before clipping.
    pub(crate) fn update(
        &self,
        arch: Arch,
        member: &Member<'_>,
        gradient: &SharedBuffer<f32>,
        update: &Update,
    ) -> f64 {
        let parts = self.len.div_ceil(PARAMETERS_AT_ONCE);
        let share = member.share(parts);
        let range = |part: usize| {
            part * PARAMETERS_AT_ONCE..((part + 1) * PARAMETERS_AT_ONCE).min(self.len)
        };
        for part in share.clone() {
            // SAFETY: the gradient is only read; each member has its own parts.
            unsafe {
                let gradient = gradient.part(range(part));
                let sum = arch.dispatch(
                    #[inline(always)]
                    || sum_of_squares(gradient),
                );
                self.squares.part_mut(part..part + 1)[0] = sum;
            }
        }
        member.barrier();
        // SAFETY: only read after the barrier.
        let norm = unsafe { self.squares.part(0..parts) }
            .iter()
            .sum::<f64>()
            .sqrt();
        // As PyTorch's `clip_grad_norm_` computes it.
        let scale = (update.clip_norm / (norm + 1e-6)).min(1.0) as f32;
        let correction = |beta: f64| 1.0 - beta.powf(update.step as f64);
        let factors = Factors {
            scale,
            rate: (update.learning_rate / correction(BETA1)) as f32,
            root: correction(update.beta2).sqrt() as f32,
            keep: (1.0 - update.learning_rate * update.weight_decay) as f32,
            beta1: BETA1 as f32,
            beta2: update.beta2 as f32,
        };
        let keeps_average = self.average.len() > 0;
        for part in share {
            let range = range(part);
            // SAFETY: each member has its own parts.
            unsafe {
                let parameters = self.parameters.part_mut(range.clone());
                let gradient = gradient.part(range.clone());
                let firsts = self.first_moments.part_mut(range.clone());
                let seconds = self.second_moments.part_mut(range.clone());
                // The bits do not depend on the registers: there are no sums.
                arch.dispatch(
                    #[inline(always)]
                    || factors.update(parameters, gradient, firsts, seconds),
                );
                if keeps_average {
                    let decay = update.average_decay as f32;
                    let average = self.average.part_mut(range);
                    arch.dispatch(
                        #[inline(always)]
                        || {
                            for (average, parameter) in average.iter_mut().zip(&*parameters) {
                                *average += (1.0 - decay) * (parameter - *average);
                            }
                        },
                    );
                }
            }
        }
        norm
    }
}

struct Factors {
    scale: f32,
    rate: f32,
    root: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
}

impl Factors {
    #[inline(always)]
    fn update(
        &self,
        parameters: &mut [f32],
        gradients: &[f32],
        firsts: &mut [f32],
        seconds: &mut [f32],
    ) {
        let &Self {
            scale,
            rate,
            root,
            keep,
            beta1,
            beta2,
        } = self;
        let moments = firsts.iter_mut().zip(seconds);
        for ((parameter, gradient), (first, second)) in
            parameters.iter_mut().zip(gradients).zip(moments)
        {
            let gradient = gradient * scale;
            *first = beta1 * *first + (1.0 - beta1) * gradient;
            *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
            let denominator = second.sqrt() / root + EPSILON;
            *parameter = keep * *parameter - rate * *first / denominator;
        }
    }
}

/// Short partial sums lose less precision than one long sum in float32, and are
/// faster than a sum in float64.
#[inline(always)]
fn sum_of_squares(values: &[f32]) -> f64 {
    values
        .chunks(1024)
        .map(|part| {
            let mut sums = [0.0f32; 8];
            for values in part.chunks(8) {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value * value;
                }
            }
            sums.iter().map(|&sum| f64::from(sum)).sum::<f64>()
        })
        .sum::<f64>()
}
