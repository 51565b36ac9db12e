//! Adam on the device of the parameters: a few operations on one flat tensor.

use charlstm_bptt::optimizer::{BETA1, EPSILON, Update};
use charlstm_bptt::trainer::TrainerConfig;
use tch::{TchError, Tensor};

/// What the optimizer keeps between steps, on the device of the parameters and in
/// their order.
pub(super) struct DeviceOptimizer {
    pub(super) first_moments: Tensor,
    pub(super) second_moments: Tensor,
    /// Exponential moving average of the parameters, if there is one.
    pub(super) average: Option<Tensor>,
    /// What changes from step to step, on the device, so that a captured step reads
    /// it: see [`Self::set_factors`].
    factors: Tensor,
}

/// Number of values in `DeviceOptimizer::factors`.
const FACTORS: i64 = 3;

impl DeviceOptimizer {
    /// Starts at some parameters, with moments of zero.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn new(parameters: &Tensor, keeps_average: bool) -> Result<Self, TchError> {
        Ok(Self {
            first_moments: parameters.f_zeros_like()?,
            second_moments: parameters.f_zeros_like()?,
            average: keeps_average
                .then(|| parameters.f_detach_copy())
                .transpose()?,
            factors: parameters.f_new_zeros([FACTORS], (parameters.kind(), parameters.device()))?,
        })
    }

    /// Copies what is new in a step to the device: it must be called before each
    /// [`Self::step`].
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn set_factors(&mut self, update: &Update) -> Result<(), TchError> {
        let correction = |beta: f64| 1.0 - beta.powf(update.step as f64);
        let root = correction(update.beta2).sqrt();
        let rate = update.learning_rate / correction(BETA1);
        // Step: -rate * first / (sqrt(second) / root + EPSILON), multiplied by root.
        let factors: [f64; FACTORS as usize] = [
            f64::from(EPSILON) * root,
            -rate * root,
            1.0 - update.learning_rate * update.weight_decay,
        ];
        #[allow(clippy::cast_possible_truncation)]
        let factors = factors.map(|factor| factor as f32);
        self.factors.f_copy_(&Tensor::f_from_slice(&factors)?)
    }

    /// Takes a step along the gradient; returns its norm before clipping, on the
    /// device. Does not wait for the device. The arithmetic is that of
    /// `charlstm_bptt::optimizer`, in another order.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn step(
        &mut self,
        parameters: &mut Tensor,
        gradient: &Tensor,
        config: &TrainerConfig,
    ) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        let factor = |index| self.factors.f_select(0, index);
        let (epsilon, rate, decay) = (factor(0)?, factor(1)?, factor(2)?);
        let norm = gradient.f_norm()?;
        // As PyTorch's `clip_grad_norm_` computes it.
        let scale = norm
            .f_add_scalar(1e-6)?
            .f_reciprocal()?
            .f_mul_scalar(config.clip_norm)?
            .f_clamp_max(1.0)?;
        let gradient = gradient.f_mul(&scale)?;
        let mut first = self.first_moments.shallow_clone();
        let mut second = self.second_moments.shallow_clone();
        let _ = first.f_lerp_(&gradient, 1.0 - BETA1)?;
        let _ = second.f_lerp_(&gradient.f_square()?, 1.0 - config.beta2)?;
        let denominator = second.f_sqrt()?.f_add_(&epsilon)?;
        let change = first.f_mul(&rate)?;
        if config.weight_decay != 0.0 {
            let _ = parameters.f_mul_(&decay)?;
        }
        let _ = parameters.f_addcdiv_(&change, &denominator)?;
        if let (Some(average), Some(decay)) = (&mut self.average, config.average_decay) {
            let _ = average.f_lerp_(parameters, 1.0 - decay)?;
        }
        Ok(norm)
    }

    /// Returns handles to the same tensors.
    #[cfg(test)]
    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            first_moments: self.first_moments.shallow_clone(),
            second_moments: self.second_moments.shallow_clone(),
            average: self.average.as_ref().map(Tensor::shallow_clone),
            factors: self.factors.shallow_clone(),
        }
    }
}
