//! How often the rows of callers that have more jobs than others may join a
//! step.

use std::time::Duration;

use crate::prefill_budget::blend;

/// Part of the time that may be spent on such rows: others keep 0.94 of their
/// speed, and the slots that they leave free are not wasted.
const SURPLUS_PART: f64 = 0.06;

/// Bounds the time of steps with surplus rows. The caller measures the times.
#[derive(Debug, Default)]
pub(crate) struct SurplusBudget {
    /// Mean duration of a step without surplus rows, in seconds; 0 until one
    /// was measured.
    step_seconds: f64,
    /// Time that surplus rows have taken and that was not compensated yet, in
    /// seconds.
    debt: f64,
}

impl SurplusBudget {
    /// Whether surplus rows may join the next step.
    pub(crate) fn is_due(&self) -> bool {
        self.debt <= 0.0 && self.step_seconds > 0.0
    }

    /// Records the duration of a step.
    pub(crate) fn stepped(&mut self, time: Duration, with_surplus: bool) {
        let seconds = time.as_secs_f64();
        if with_surplus {
            self.debt += (seconds - self.step_seconds).max(0.0);
            return;
        }
        blend(&mut self.step_seconds, seconds);
        self.debt = (self.debt - seconds * SURPLUS_PART / (1.0 - SURPLUS_PART)).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surplus_rows_take_their_part_of_the_time() {
        let mut budget = SurplusBudget::default();
        assert!(!budget.is_due(), "not before a step was measured");
        let (mut plain, mut surplus) = (0.0, 0.0);
        for _ in 0..10_000 {
            if budget.is_due() {
                budget.stepped(Duration::from_millis(8), true);
                surplus += 7.0;
                plain += 1.0;
            } else {
                budget.stepped(Duration::from_millis(1), false);
                plain += 1.0;
            }
        }
        let part = surplus / (plain + surplus);
        assert!((0.05..0.07).contains(&part), "{part}");
    }
}
