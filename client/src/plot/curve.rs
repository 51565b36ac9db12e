//! Points of a curve, thinned to what a picture can show.

/// Most points of a curve: more than there are pixels would only make the
/// file large.
const MOST_POINTS: usize = 2000;

/// A line through points of (step, loss).
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    points: Vec<(f64, f64)>,
    /// One of so many points is kept.
    stride: u64,
    offered: u64,
}

impl Curve {
    pub(crate) fn new() -> Self {
        Self {
            points: Vec::new(),
            stride: 1,
            offered: 0,
        }
    }

    /// Adds a point. When there are too many, every second one goes. A step
    /// that was there already takes back what came after it: a training that
    /// was resumed goes on from an earlier checkpoint.
    pub(crate) fn push(&mut self, step: u64, loss: f64) {
        let step = step as f64;
        while self.points.last().is_some_and(|last| last.0 >= step) {
            self.points.pop();
        }
        self.offered += 1;
        if !loss.is_finite() || !self.offered.is_multiple_of(self.stride) {
            return;
        }
        self.points.push((step, loss));
        if self.points.len() > MOST_POINTS {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }

    /// The points that are kept, in the order of their steps.
    pub(crate) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_thinned_from_end_to_end() {
        let mut curve = Curve::new();
        for step in 0..100_000 {
            curve.push(step, 1.0);
        }
        assert!(curve.points.len() <= MOST_POINTS);
        assert!(curve.points.first().is_some_and(|point| point.0 < 100.0));
        assert!(curve.points.last().is_some_and(|point| point.0 > 99_000.0));
    }

    #[test]
    fn a_training_that_goes_back_to_a_checkpoint_takes_its_points_back() {
        let mut curve = Curve::new();
        for (step, loss) in [(10, 3.0), (20, 2.0), (30, 1.0), (20, 2.5)] {
            curve.push(step, loss);
        }
        assert_eq!(curve.points(), [(10.0, 3.0), (20.0, 2.5)]);
    }
}
