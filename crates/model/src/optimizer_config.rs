//! Initialisation, optimizer and learning rate schedule of a training. The
//! presets, which also have plain sizes such as the batch size, are in
//! `charlstm_training::spec`.

use super::initial::Initial;

/// The settings of a preset that are not plain sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Rule for the initial parameters.
    pub initial: Initial,
    /// Decay rate of Adam's second moments.
    pub beta2: f64,
    /// Decoupled weight decay; 0 is plain Adam.
    pub weight_decay: f64,
    /// Learning rate schedule.
    pub schedule: Schedule,
    /// Whether each epoch cuts the text into sequences at another offset, as if
    /// its end were joined to its beginning.
    pub rotate: bool,
}

impl OptimizerConfig {
    /// The notebook's settings: PyTorch's initialisation, Adam at a constant
    /// rate, the text cut at the same offsets in each epoch.
    pub const NOTEBOOK: Self = Self {
        initial: Initial::Uniform,
        beta2: 0.999,
        weight_decay: 0.0,
        schedule: Schedule::Constant,
        rotate: false,
    };

    /// Settings that learn faster. The initialisation matters most: it passes
    /// the signal through all layers from the first step on. The weight decay is
    /// that of trainings of version 0.1, whose stored specs name none.
    pub const FAST: Self = Self {
        initial: Initial::Orthogonal,
        beta2: 0.99,
        weight_decay: 0.01,
        schedule: Schedule::WarmUpCosine,
        rotate: true,
    };
}

/// Learning rate schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The same rate in every step.
    Constant,
    /// Linear warm-up, then decay along half a cosine (Loshchilov and Hutter,
    /// 2017) to 1 % of the peak after the last step.
    WarmUpCosine,
}

/// Maximum number of warm-up steps.
const MAX_WARM_UP_STEPS: u64 = 100;
/// A warm-up takes at most one step of this many, so that a short training
/// reaches its peak rate.
const STEPS_PER_WARM_UP_STEP: u64 = 20;
/// Factor of the learning rate at the end.
const FINAL_FACTOR: f64 = 0.01;

impl Schedule {
    /// Returns the factor of the peak learning rate at `step`, counted from 0,
    /// of `total` steps.
    pub fn factor(self, step: u64, total: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::WarmUpCosine => {
                let warm_up = MAX_WARM_UP_STEPS.min(total / STEPS_PER_WARM_UP_STEP);
                if step < warm_up {
                    return (step + 1) as f64 / (warm_up + 1) as f64;
                }
                let done = (step - warm_up) as f64 / (total - warm_up).max(1) as f64;
                let cosine = (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) / 2.0;
                FINAL_FACTOR + (1.0 - FINAL_FACTOR) * cosine
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_decays_to_one_percent() {
        let factor = |step| Schedule::WarmUpCosine.factor(step, 4000);
        assert!(factor(0) > 0.0 && factor(0) < 0.02);
        assert!((1..100).all(|step| factor(step) > factor(step - 1)));
        assert!((factor(100) - 1.0).abs() < 1e-12);
        assert!((101..4000).all(|step| factor(step) < factor(step - 1)));
        assert!((factor(4000) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn a_training_of_one_step_uses_the_peak_rate() {
        assert!((Schedule::WarmUpCosine.factor(0, 1) - 1.0).abs() < 1e-12);
    }
}
