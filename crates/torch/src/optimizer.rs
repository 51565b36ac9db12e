//! Adam on flat slices, with its moments in our own memory: libtorch's
//! optimizers cannot save theirs, and a resumed training must continue bit for
//! bit.

/// Adam (Kingma and Ba, 2015), or AdamW if the weight decay is not 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Adam {
    /// Decay rate of the first moments.
    pub(crate) beta1: f64,
    /// Decay rate of the second moments.
    pub(crate) beta2: f64,
    /// Decoupled weight decay (Loshchilov and Hutter, 2019); 0 is plain Adam.
    pub(crate) weight_decay: f64,
    /// First moments, one for each parameter.
    pub(crate) first_moments: Vec<f32>,
    /// Second moments, one for each parameter.
    pub(crate) second_moments: Vec<f32>,
}

/// Minimum number of parameters for each thread: fewer take less time than
/// starting the thread.
const MIN_PARAMETERS_PER_THREAD: usize = 1 << 16;

/// Keeps the quotient finite if a second moment is 0.
const EPSILON: f64 = 1e-8;

impl Adam {
    /// Creates an optimizer for `parameters` parameters, with moments of zero.
    pub(crate) fn new(parameters: usize, beta2: f64, weight_decay: f64) -> Self {
        Self {
            beta1: 0.9,
            beta2,
            weight_decay,
            first_moments: vec![0.0; parameters],
            second_moments: vec![0.0; parameters],
        }
    }

    /// Updates the parameters by a step along `scale * gradients`. `step`
    /// counts from 1. The work is divided among up to `threads` threads; their
    /// number does not change the result. Blocks until it is done.
    pub(crate) fn update(
        &mut self,
        parameters: &mut [f32],
        gradients: &[f32],
        scale: f64,
        learning_rate: f64,
        step: u64,
        threads: usize,
    ) {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let rate = (learning_rate / correction(self.beta1)) as f32;
        let root = correction(self.beta2).sqrt() as f32;
        let keep = (1.0 - learning_rate * self.weight_decay) as f32;
        let (beta1, beta2, scale) = (self.beta1 as f32, self.beta2 as f32, scale as f32);
        let update_part = move |parameters: &mut [f32],
                                gradients: &[f32],
                                firsts: &mut [f32],
                                seconds: &mut [f32]| {
            let moments = firsts.iter_mut().zip(seconds);
            for ((parameter, gradient), (first, second)) in
                parameters.iter_mut().zip(gradients).zip(moments)
            {
                let gradient = gradient * scale;
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                let denominator = second.sqrt() / root + EPSILON as f32;
                *parameter = keep * *parameter - rate * *first / denominator;
            }
        };
        let size = parameters
            .len()
            .div_ceil(threads.max(1))
            .max(MIN_PARAMETERS_PER_THREAD);
        let moments = self
            .first_moments
            .chunks_mut(size)
            .zip(self.second_moments.chunks_mut(size));
        let values = parameters.chunks_mut(size).zip(gradients.chunks(size));
        std::thread::scope(|scope| {
            let mut parts: Vec<_> = values.zip(moments).collect();
            // The calling thread takes the last part.
            let own = parts.pop();
            for ((parameters, gradients), (firsts, seconds)) in parts {
                scope.spawn(move || update_part(parameters, gradients, firsts, seconds));
            }
            if let Some(((parameters, gradients), (firsts, seconds))) = own {
                update_part(parameters, gradients, firsts, seconds);
            }
        });
    }
}

/// Returns the Euclidean norm of all gradients.
pub(crate) fn norm(gradients: &[f32]) -> f64 {
    // Short partial sums lose less precision than one long sum in float32, and
    // are faster than a sum in float64.
    gradients
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
        .sqrt()
}

/// Returns the factor that reduces gradients of norm `norm` to a norm of at
/// most `limit`, as PyTorch's `clip_grad_norm_` computes it.
pub(crate) fn clip_scale(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}
