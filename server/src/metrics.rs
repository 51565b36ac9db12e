//! What the server counts about itself, in the text format of Prometheus.
//! Which door it is asked at is in `serve/metrics.rs`; who counts, counts into
//! a clone.
//!
//! What is counted as it happens has counters and histograms. What can be
//! looked up at any time (sessions, texts under way, trainings) are gauges,
//! set when somebody asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A gauge of a number that is not whole.
type Real = Gauge<f64, AtomicU64>;

/// A gRPC call that has ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    /// `/package.Service/Method`.
    method: String,
    /// Number of the status code.
    code: u32,
}

/// A state of trainings.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// What is looked up when somebody asks.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Sessions kept.
    pub sessions: usize,
    /// Bytes of all sessions.
    pub session_bytes: usize,
    /// Texts in the batch.
    pub running: usize,
    /// Texts that wait for a place in it.
    pub queued: usize,
    /// Steps of all batches since the start.
    pub steps: u64,
    /// Rows of all those steps.
    pub rows: u64,
    /// Model versions on disk.
    pub models: usize,
    /// Model versions in memory.
    pub models_loaded: usize,
    /// Trainings in each state.
    pub trainings: Vec<(&'static str, usize)>,
    /// The training that runs.
    pub training: Option<TrainingFigures>,
}

/// How the training that runs gets on.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrainingFigures {
    /// Loss of its last step, nats per character.
    pub loss: f64,
    /// Its speed.
    pub chars_per_second: f64,
    /// Part of its steps that are taken, 0 to 1.
    pub progress: f64,
}

/// All metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    calls: Family<CallLabels, Counter>,
    chars: Counter,
    first_char: Histogram,
    between_texts: Histogram,
    gauges: Gauges,
}

#[derive(Clone, Default)]
struct Gauges {
    sessions: Gauge,
    session_bytes: Gauge,
    running: Gauge,
    queued: Gauge,
    steps: Counter,
    rows: Counter,
    models: Gauge,
    models_loaded: Gauge,
    trainings: Family<StateLabels, Gauge>,
    loss: Real,
    chars_per_second: Real,
    progress: Real,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of a millisecond to some minutes: a character alone
        // takes less than a millisecond, one who waits in the queue takes
        // what he takes.
        let times = || Histogram::new(exponential_buckets(0.0001, 2.0, 21));
        let mut metrics = Self {
            registry: Arc::default(),
            calls: Family::default(),
            chars: Counter::default(),
            first_char: times(),
            between_texts: times(),
            gauges: Gauges::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics
    }
}

impl Metrics {
    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("charlstm");
        registry.register(
            "grpc_calls",
            "gRPC calls that ended, by method and number of the status code",
            self.calls.clone(),
        );
        registry.register(
            "generated_chars",
            "Characters handed to their readers",
            self.chars.clone(),
        );
        registry.register(
            "first_char_seconds",
            "Time from a Generate call to its first text",
            self.first_char.clone(),
        );
        registry.register(
            "between_texts_seconds",
            "Time from one message with text to the next of a Generate call",
            self.between_texts.clone(),
        );
        self.gauges.register(&mut registry);
        registry
    }

    /// Counts a call that has ended. `code` is the number of its status.
    pub fn call_ended(&self, method: &str, code: u32) {
        let method = method.to_owned();
        self.calls.get_or_create(&CallLabels { method, code }).inc();
    }

    /// Counts text that was handed to its reader. `waited` is the time since
    /// the call, for the `first` one, and since the last one for others.
    pub fn text_sent(&self, chars: u64, first: bool, waited: Duration) {
        self.chars.inc_by(chars);
        let times = if first {
            &self.first_char
        } else {
            &self.between_texts
        };
        times.observe(waited.as_secs_f64());
    }

    /// All metrics as text, with `figures` as they are now.
    ///
    /// # Errors
    /// None that a `String` gives.
    pub fn encode(&self, figures: &Figures) -> Result<String, fmt::Error> {
        self.gauges.set(figures);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl Gauges {
    fn register(&self, to: &mut Registry) {
        let gauges = [
            ("sessions", "Sessions kept", &self.sessions),
            (
                "session_bytes",
                "Bytes of all sessions",
                &self.session_bytes,
            ),
            ("generations_running", "Texts in the batch", &self.running),
            (
                "generations_queued",
                "Texts that wait for a place",
                &self.queued,
            ),
            ("models", "Model versions on disk", &self.models),
            (
                "models_loaded",
                "Model versions in memory",
                &self.models_loaded,
            ),
        ];
        for (name, help, gauge) in gauges {
            to.register(name, help, gauge.clone());
        }
        to.register("steps", "Steps of all batches", self.steps.clone());
        let help = "Rows of all steps; by steps, the mean size of a batch";
        to.register("step_rows", help, self.rows.clone());
        let help = "Trainings kept, by state";
        to.register("trainings", help, self.trainings.clone());
        let reals = [
            (
                "training_loss",
                "Loss of the last step, nats per character",
                &self.loss,
            ),
            (
                "training_chars_per_second",
                "Speed of the running training",
                &self.chars_per_second,
            ),
            (
                "training_progress",
                "Part of the running training that is done, 0 to 1",
                &self.progress,
            ),
        ];
        for (name, help, gauge) in reals {
            to.register(name, help, gauge.clone());
        }
    }

    fn set(&self, figures: &Figures) {
        let whole = |gauge: &Gauge, number: usize| {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        whole(&self.sessions, figures.sessions);
        whole(&self.session_bytes, figures.session_bytes);
        whole(&self.running, figures.running);
        whole(&self.queued, figures.queued);
        whole(&self.models, figures.models);
        whole(&self.models_loaded, figures.models_loaded);
        // Counted elsewhere; two who ask at once must not move them back.
        self.steps
            .inner()
            .fetch_max(figures.steps, std::sync::atomic::Ordering::Relaxed);
        self.rows
            .inner()
            .fetch_max(figures.rows, std::sync::atomic::Ordering::Relaxed);
        for &(state, count) in &figures.trainings {
            whole(&self.trainings.get_or_create(&StateLabels { state }), count);
        }
        let training = figures.training.unwrap_or_default();
        self.loss.set(training.loss);
        self.chars_per_second.set(training.chars_per_second);
        self.progress.set(training.progress);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_and_what_is_looked_up_stand_in_the_text() {
        let metrics = Metrics::default();
        metrics.clone().call_ended("/a.B/C", 5);
        metrics.text_sent(1, true, Duration::from_millis(3));
        metrics.text_sent(4, false, Duration::from_millis(1));
        let figures = Figures {
            sessions: 7,
            steps: 9,
            trainings: vec![("running", 1), ("failed", 0)],
            training: Some(TrainingFigures {
                loss: 1.5,
                ..TrainingFigures::default()
            }),
            ..Figures::default()
        };
        let text = metrics.encode(&figures).expect("texts take everything");
        for line in [
            "charlstm_grpc_calls_total{method=\"/a.B/C\",code=\"5\"} 1",
            "charlstm_generated_chars_total 5",
            "charlstm_first_char_seconds_count 1",
            "charlstm_between_texts_seconds_count 1",
            "charlstm_sessions 7",
            "charlstm_steps_total 9",
            "charlstm_trainings{state=\"running\"} 1",
            "charlstm_training_loss 1.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_training_that_is_over_leaves_no_figures_behind() {
        let metrics = Metrics::default();
        let training = Some(TrainingFigures {
            loss: 1.5,
            ..TrainingFigures::default()
        });
        let running = Figures {
            training,
            ..Figures::default()
        };
        metrics.encode(&running).expect("texts take everything");
        let text = metrics.encode(&Figures::default());
        assert!(
            text.expect("as before")
                .contains("charlstm_training_loss 0")
        );
    }
}
