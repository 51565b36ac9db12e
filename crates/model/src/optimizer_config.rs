//! How a training begins and moves: what sets one recipe apart from another
//! beside plain numbers such as the batch size. Which recipe has which
//! numbers is in `training::spec`.

use super::initial::Initial;

/// Initial parameters, optimizer, learning rate over time, order of the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Where the parameters begin.
    pub initial: Initial,
    /// Decay of Adam's second moments.
    pub beta2: f64,
    /// Decoupled weight decay; 0 is plain Adam.
    pub weight_decay: f64,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Whether each epoch cuts the text into rows at another place, as if it
    /// were a ring.
    pub rotate: bool,
}

impl OptimizerConfig {
    /// The notebook's: PyTorch's initialisation, Adam at a constant rate, the
    /// text cut at the same places each time.
    pub const NOTEBOOK: Self = Self {
        initial: Initial::Uniform,
        beta2: 0.999,
        weight_decay: 0.0,
        schedule: Schedule::Constant,
        rotate: false,
    };

    /// Ours. An initialisation that lets the signal through from the first
    /// step on matters most.
    pub const FAST: Self = Self {
        initial: Initial::Orthogonal,
        beta2: 0.99,
        weight_decay: 0.01,
        schedule: Schedule::WarmUpCosine,
        rotate: true,
    };
}

/// The learning rate over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The same all along.
    Constant,
    /// Up in a straight line over the first steps, then down along half a
    /// cosine (Loshchilov and Hutter, 2017) to a hundredth at the last step.
    WarmUpCosine,
}

/// Most steps of a warm-up.
const WARM_UP: u64 = 100;
/// Share of all steps that a warm-up takes at most.
const WARM_UP_SHARE: u64 = 20;
/// What is left of the learning rate at the end.
const LAST: f64 = 0.01;

impl Schedule {
    /// What to multiply the learning rate with at a step, from 0, of so many.
    pub fn factor(self, step: u64, total: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::WarmUpCosine => {
                let warm_up = WARM_UP.min(total / WARM_UP_SHARE);
                if step < warm_up {
                    return (step + 1) as f64 / (warm_up + 1) as f64;
                }
                let done = (step - warm_up) as f64 / (total - warm_up).max(1) as f64;
                let cosine = (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) / 2.0;
                LAST + (1.0 - LAST) * cosine
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_a_hundredth() {
        let factor = |step| Schedule::WarmUpCosine.factor(step, 4000);
        assert!(factor(0) > 0.0 && factor(0) < 0.02);
        assert!((1..100).all(|step| factor(step) > factor(step - 1)));
        assert!((factor(100) - 1.0).abs() < 1e-12);
        assert!((101..4000).all(|step| factor(step) < factor(step - 1)));
        assert!((factor(4000) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn a_training_of_one_step_takes_it_at_the_full_rate() {
        assert!((Schedule::WarmUpCosine.factor(0, 1) - 1.0).abs() < 1e-12);
    }
}
