//! Adam on the device of the parameters: a few operations on one flat tensor.

use charlstm_bptt::optimizer::{BETA1, EPSILON, Update};
use tch::{TchError, Tensor};

/// What the optimizer keeps between steps, on the device of the parameters and in
/// their order.
pub(super) struct DeviceOptimizer {
    pub(super) first_moments: Tensor,
    pub(super) second_moments: Tensor,
    /// Exponential moving average of the parameters, if there is one.
    pub(super) average: Option<Tensor>,
}

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
        })
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
        update: &Update,
    ) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        let norm = gradient.f_norm()?;
        // As PyTorch's `clip_grad_norm_` computes it.
        let scale = norm
            .f_add_scalar(1e-6)?
            .f_reciprocal()?
            .f_mul_scalar(update.clip_norm)?
            .f_clamp_max(1.0)?;
        let gradient = gradient.f_mul(&scale)?;
        let mut first = self.first_moments.shallow_clone();
        let mut second = self.second_moments.shallow_clone();
        let _ = first.f_lerp_(&gradient, 1.0 - BETA1)?;
        let _ = second.f_lerp_(&gradient.f_square()?, 1.0 - update.beta2)?;
        let correction = |beta: f64| 1.0 - beta.powf(update.step as f64);
        let root = correction(update.beta2).sqrt();
        let rate = update.learning_rate / correction(BETA1);
        // rate * first / (sqrt(second) / root + EPSILON), multiplied by root.
        let denominator = second.f_sqrt()?.f_add_scalar_(f64::from(EPSILON) * root)?;
        let change = first.f_mul_scalar(-rate * root)?;
        let decay = update.learning_rate * update.weight_decay;
        if decay != 0.0 {
            let _ = parameters.f_mul_scalar_(1.0 - decay)?;
        }
        let _ = parameters.f_addcdiv_(&change, &denominator)?;
        if let Some(average) = &mut self.average {
            let _ = average.f_lerp_(parameters, 1.0 - update.average_decay)?;
        }
        Ok(norm)
    }
}
