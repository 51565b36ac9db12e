//! Adam on flat rows of numbers, with its moments in our hands, so that a
//! training can be stopped and gone on with bit for bit.

/// Adam (Kingma and Ba, 2015), AdamW with a weight decay.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the first moments.
    pub beta1: f64,
    /// Decay of the second moments.
    pub beta2: f64,
    /// Decoupled weight decay (Loshchilov and Hutter, 2019); 0 is plain Adam.
    pub weight_decay: f64,
    /// First moments, one for each parameter.
    pub first_moments: Vec<f32>,
    /// Second moments, one for each parameter.
    pub second_moments: Vec<f32>,
}

/// Numbers under which another thread is not worth its start.
const LEAST_PART: usize = 1 << 16;

/// Keeps the division from running away where a moment is 0.
const EPSILON: f64 = 1e-8;

impl Adam {
    /// Moments of zero for `parameters` numbers.
    pub fn new(parameters: usize, beta2: f64, weight_decay: f64) -> Self {
        Self {
            beta1: 0.9,
            beta2,
            weight_decay,
            first_moments: vec![0.0; parameters],
            second_moments: vec![0.0; parameters],
        }
    }

    /// Changes the parameters by `scale * gradients`. `step` counts from 1.
    /// The numbers are divided among threads; how many makes no difference to
    /// the result.
    pub fn update(
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
        let part = move |parameters: &mut [f32],
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
        let size = parameters.len().div_ceil(threads.max(1)).max(LEAST_PART);
        let moments = self
            .first_moments
            .chunks_mut(size)
            .zip(self.second_moments.chunks_mut(size));
        let numbers = parameters.chunks_mut(size).zip(gradients.chunks(size));
        std::thread::scope(|scope| {
            let mut parts: Vec<_> = numbers.zip(moments).collect();
            // The last part is this thread's own.
            let own = parts.pop();
            for ((parameters, gradients), (firsts, seconds)) in parts {
                scope.spawn(move || part(parameters, gradients, firsts, seconds));
            }
            if let Some(((parameters, gradients), (firsts, seconds))) = own {
                part(parameters, gradients, firsts, seconds);
            }
        });
    }
}

/// Euclidean norm of all gradients together.
pub fn norm(gradients: &[f32]) -> f64 {
    // Partial sums of bounded length lose less than one long sum in single
    // precision, and are faster than one in double precision.
    gradients
        .chunks(1024)
        .map(|part| {
            let mut sums = [0.0f32; 8];
            for numbers in part.chunks(8) {
                for (sum, number) in sums.iter_mut().zip(numbers) {
                    *sum += number * number;
                }
            }
            sums.iter().map(|&sum| f64::from(sum)).sum::<f64>()
        })
        .sum::<f64>()
        .sqrt()
}

/// What to multiply gradients of this norm with so that their norm is at most
/// `limit`, as PyTorch's `clip_grad_norm_` computes it.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}
