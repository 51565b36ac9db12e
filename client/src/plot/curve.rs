//! Collects the points of a curve and thins them to what a chart can show.

/// Maximum number of points: more points than pixels only enlarge the file.
const MAX_POINTS: usize = 2000;

/// A line through points of (step, loss).
#[derive(Clone, Debug)]
pub(super) struct Curve {
    points: Vec<(f64, f64)>,
    /// Every `stride`-th point is kept.
    stride: u64,
    /// Number of points that were pushed.
    pushed: u64,
}

impl Curve {
    pub(super) fn new() -> Self {
        Self {
            points: Vec::new(),
            stride: 1,
            pushed: 0,
        }
    }

    /// Adds a point. Above the maximum, every second point is removed. A step
    /// at or before the last one first removes the points from there on: a
    /// resumed or rolled back training repeats the steps after its checkpoint.
    pub(super) fn push(&mut self, step: f64, loss: f64) {
        while self.points.last().is_some_and(|last| last.0 >= step) {
            self.points.pop();
        }
        self.pushed += 1;
        if !loss.is_finite() || !self.pushed.is_multiple_of(self.stride) {
            return;
        }
        self.points.push((step, loss));
        if self.points.len() > MAX_POINTS {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }

    /// Returns the remaining points in the order of their steps.
    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_thinned_over_its_whole_length() {
        let mut curve = Curve::new();
        for step in 0..100_000 {
            curve.push(f64::from(step), 1.0);
        }
        assert!(curve.points.len() <= MAX_POINTS);
        assert!(curve.points.first().is_some_and(|point| point.0 < 100.0));
        assert!(curve.points.last().is_some_and(|point| point.0 > 99_000.0));
    }

    #[test]
    fn repeated_steps_replace_the_points_after_the_checkpoint() {
        let mut curve = Curve::new();
        for (step, loss) in [(10.0, 3.0), (20.0, 2.0), (30.0, 1.0), (20.0, 2.5)] {
            curve.push(step, loss);
        }
        assert_eq!(curve.points(), [(10.0, 3.0), (20.0, 2.5)]);
    }
}
