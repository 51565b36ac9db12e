//! The Prometheus metrics of the server. `serve/metrics.rs` serves them over
//! HTTP; `docs/metrics.md` lists them.
//!
//! Names, labels and units are an interface that dashboards and alerts depend
//! on: the `grpc_server_*` metrics follow the conventions of gRPC interceptors
//! for Prometheus, with status codes by name.
//!
//! Events are counted in [`Metrics`] when they occur. Values that can be looked
//! up at any time (sessions, queue, trainings) are passed as [`ServerStats`]
//! when the metrics are read.

pub(crate) mod connections;
pub(crate) mod principals;
pub(crate) mod process;
mod replicas;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use charlstm_engine::{COMMIT_BUCKETS, CommitTimes, PromptCacheStats};
use charlstm_proto::{METHODS, Method};
use charlstm_replicas::sessions::LeaseCounters;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use self::connections::ConnectionMetrics;
use self::principals::PrincipalStats;

/// Label value for each part of a method that is not in the contract. Callers
/// choose the path of a request, so unknown paths must not become labels: each
/// one would occupy memory until the server stops.
const UNKNOWN: &str = "unknown";

/// Label of the HTTP API in place of the name of a gRPC service.
const HTTP: &str = "http";

/// Paths of the HTTP API, as labels. The last one has an id in its place.
const HTTP_PATHS: [&str; 3] = ["/v1/completions", "/v1/models", "/openapi.json"];
const HTTP_MODEL_PATH: &str = "/v1/models/{id}";

/// A method of the contract, or a path of the HTTP API.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MethodLabels {
    /// `unary`, `client_stream`, `server_stream`, `bidi_stream` or `http`.
    grpc_type: &'static str,
    /// `package.Service`, or `http`.
    grpc_service: &'static str,
    /// The method, or the path of the HTTP API.
    grpc_method: &'static str,
}

/// A method and the status that its call ended with.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HandledLabels {
    #[prometheus(flatten)]
    method: MethodLabels,
    /// Name of the status code, such as `NOT_FOUND`.
    grpc_code: &'static str,
}

/// State of a training.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// A call that was counted as started.
#[derive(Clone, Copy, Debug)]
pub struct StartedCall {
    method: MethodLabels,
    since: Instant,
}

/// Values that are looked up when the metrics are read.
#[derive(Clone, Debug, Default)]
pub struct ServerStats {
    /// Number of sessions.
    pub sessions: u64,
    /// Size of all stored sessions, in bytes.
    pub session_bytes: u64,
    /// Number of generations that have a slot in the batch.
    pub generations_running: usize,
    /// Number of generations waiting for a slot.
    pub generations_queued: usize,
    /// Decode steps since the server started.
    pub decode_steps: u64,
    /// Rows of all these steps.
    pub batch_rows: u64,
    /// Characters processed in prefill since the server started.
    pub prefill_chars: u64,
    /// Use of the prompt cache.
    pub prompt_cache: PromptCacheStats,
    /// Number of model versions on disk.
    pub models: usize,
    /// Number of model versions in memory.
    pub models_loaded: usize,
    /// Number of trainings in each state.
    pub trainings: Vec<(&'static str, usize)>,
    /// The running training.
    pub training: Option<TrainingStats>,
    /// How long commits of sessions have taken.
    pub commits: CommitTimes,
    /// What happened to the leases of sessions; zeros without a database.
    pub leases: LeaseCounters,
    /// What principals use.
    pub(crate) principals: Vec<PrincipalStats>,
}

/// Progress of the running training.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrainingStats {
    /// Loss of the last reported step, in nats per character.
    pub loss: f64,
    /// Training speed, in characters per second.
    pub chars_per_second: f64,
    /// Completed fraction of the training, 0 to 1.
    pub progress: f64,
}

/// All metrics. Clones share their values.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    methods: Arc<HashMap<&'static str, MethodLabels>>,
    calls_started: Family<MethodLabels, Counter>,
    calls_handled: Family<HandledLabels, Counter>,
    call_duration: Family<MethodLabels, Histogram>,
    generated_chars: Counter,
    time_to_first_char: Histogram,
    inter_char: Histogram,
    connections: ConnectionMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            methods: Arc::new(METHODS.iter().map(labels_by_path).collect()),
            calls_started: Family::default(),
            calls_handled: Family::default(),
            call_duration: Family::new_with_constructor(call_duration),
            generated_chars: Counter::default(),
            time_to_first_char: char_latency(),
            inter_char: char_latency(),
            connections: ConnectionMetrics::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics
    }
}

impl Metrics {
    fn register(&self) -> Registry {
        let mut registry = Registry::default();
        let grpc = registry.sub_registry_with_prefix("grpc_server");
        grpc.register("started", "Started gRPC calls", self.calls_started.clone());
        grpc.register(
            "handled",
            "Completed gRPC calls, by status code",
            self.calls_handled.clone(),
        );
        grpc.register_with_unit(
            "handling",
            "Duration of gRPC calls, from the request to the end of the response stream",
            Unit::Seconds,
            self.call_duration.clone(),
        );

        let own = registry.sub_registry_with_prefix("charlstm");
        own.register_with_unit(
            "generated",
            "Generated characters sent to clients",
            Unit::Other("chars".to_owned()),
            self.generated_chars.clone(),
        );
        own.register_with_unit(
            "time_to_first_char",
            "Time from a Generate call to its first text, including queueing and prefill",
            Unit::Seconds,
            self.time_to_first_char.clone(),
        );
        own.register_with_unit(
            "inter_char",
            "Time between two consecutive text messages of a Generate call",
            Unit::Seconds,
            self.inter_char.clone(),
        );
        self.connections.register(own);
        registry
    }

    /// Returns the metrics of connections.
    pub(crate) fn connections(&self) -> ConnectionMetrics {
        self.connections.clone()
    }

    /// Counts a call to the method at `path`, `/package.Service/Method`, or to a
    /// path of the HTTP API, as started. Every other path has the same labels.
    pub fn call_started(&self, path: &str) -> StartedCall {
        let known = self.methods.get(path).copied().or_else(|| http_path(path));
        let method = known.unwrap_or(MethodLabels {
            grpc_type: UNKNOWN,
            grpc_service: UNKNOWN,
            grpc_method: UNKNOWN,
        });
        self.calls_started.get_or_create(&method).inc();
        StartedCall {
            method,
            since: Instant::now(),
        }
    }

    /// Counts a call as completed with a status code, and records its duration.
    pub fn call_handled(&self, call: StartedCall, code: Code) {
        let labels = HandledLabels {
            method: call.method,
            grpc_code: code_name(code),
        };
        self.calls_handled.get_or_create(&labels).inc();
        self.call_duration
            .get_or_create(&call.method)
            .observe(call.since.elapsed().as_secs_f64());
    }

    /// Counts text that was handed to the transport. `waited` is the time since
    /// the call if this is its `first` text, and since the previous text
    /// otherwise.
    pub fn text_sent(&self, chars: u64, first: bool, waited: Duration) {
        self.generated_chars.inc_by(chars);
        let latency = if first {
            &self.time_to_first_char
        } else {
            &self.inter_char
        };
        latency.observe(waited.as_secs_f64());
    }

    /// Encodes all metrics in the OpenMetrics text format, with the current
    /// `stats` and those of the process and the disk of `data_dir`.
    ///
    /// # Errors
    /// None in practice: writing to a `String` does not fail.
    pub fn encode(&self, stats: &ServerStats, data_dir: &Path) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode_registry(&mut out, &self.registry)?;
        text::encode_registry(&mut out, &stats.register())?;
        let mut process = Registry::default();
        process::register(&mut process, data_dir);
        text::encode_registry(&mut out, &process)?;
        text::encode_eof(&mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl ServerStats {
    /// A registry with these values.
    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("charlstm");
        let mut gauge = |name: &str, help: &str, value: u64| {
            registry.register(name, help, ConstGauge::new(value));
        };
        gauge("sessions", "Sessions", self.sessions);
        gauge(
            "generations_running",
            "Generations with a slot in the batch",
            self.generations_running as u64,
        );
        gauge(
            "generations_queued",
            "Generations waiting for a slot in the batch",
            self.generations_queued as u64,
        );
        gauge("models", "Model versions on disk", self.models as u64);
        gauge(
            "models_loaded",
            "Model versions in memory",
            self.models_loaded as u64,
        );

        registry.register(
            "decode_steps",
            "Decode steps of all batches",
            ConstCounter::new(self.decode_steps),
        );
        let batch_rows = BatchRows {
            steps: self.decode_steps,
            rows: self.batch_rows,
        };
        registry.register(
            "batch_rows",
            "Rows of the batch in each decode step",
            batch_rows,
        );

        registry.register_with_unit(
            "prefill",
            "Prompt characters processed in prefill",
            Unit::Other("chars".to_owned()),
            ConstCounter::new(self.prefill_chars),
        );
        registry.register(
            "prompt_cache_hits",
            "Prompts of which a part was found in the prompt cache",
            ConstCounter::new(self.prompt_cache.hits),
        );
        registry.register(
            "prompt_cache_misses",
            "Prompts of which nothing was found in the prompt cache",
            ConstCounter::new(self.prompt_cache.misses),
        );
        registry.register_with_unit(
            "prompt_cache",
            "Memory that the prompt cache takes",
            Unit::Bytes,
            ConstGauge::new(self.prompt_cache.bytes),
        );

        registry.register_with_unit(
            "session",
            "Size of all stored sessions",
            Unit::Bytes,
            ConstGauge::new(self.session_bytes),
        );

        registry.register_with_unit(
            "session_commit",
            "Time until the new state of a session is on stable storage",
            Unit::Seconds,
            CommitHistogram(self.commits.clone()),
        );
        replicas::register(&mut registry, &self.leases);
        principals::register(&mut registry, &self.principals);

        let trainings = Family::<StateLabels, Gauge>::default();
        for &(state, count) in &self.trainings {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            trainings.get_or_create(&StateLabels { state }).set(count);
        }
        registry.register("trainings", "Trainings, by state", trainings);

        let mut training_gauge = |name: &str, unit: &str, help: &str, value: f64| {
            let unit = Unit::Other(unit.to_owned());
            registry.register_with_unit(name, help, unit, ConstGauge::new(value));
        };
        let training = self.training.unwrap_or_default();
        training_gauge(
            "training_loss",
            "nats_per_char",
            "Loss of the last reported step of the running training",
            training.loss,
        );
        training_gauge(
            "training",
            "chars_per_second",
            "Speed of the running training",
            training.chars_per_second,
        );
        training_gauge(
            "training_progress",
            "ratio",
            "Completed fraction of the running training",
            training.progress,
        );
        registry
    }
}

/// The number of rows of each decode step, as a histogram. Its steps are
/// counted by the workers of the engine, which keep the sum only: it has a
/// single bucket, and its mean is `_sum` divided by `_count`.
#[derive(Debug)]
struct BatchRows {
    steps: u64,
    rows: u64,
}

impl EncodeMetric for BatchRows {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let buckets = [(f64::INFINITY, self.steps)];
        encoder.encode_histogram::<NoLabelSet>(self.rows as f64, self.steps, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Durations of commits, which the engine counts.
#[derive(Debug)]
struct CommitHistogram(CommitTimes);

impl EncodeMetric for CommitHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Self(times) = self;
        let counted = times.counts.iter().sum::<u64>();
        let buckets: Vec<(f64, u64)> = COMMIT_BUCKETS
            .into_iter()
            .zip(times.counts)
            .chain([(f64::INFINITY, times.count.saturating_sub(counted))])
            .collect();
        encoder.encode_histogram::<NoLabelSet>(times.seconds, times.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn labels_by_path(method: &Method) -> (&'static str, MethodLabels) {
    let labels = MethodLabels {
        grpc_type: match (method.client_streaming, method.server_streaming) {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        },
        grpc_service: method.service,
        grpc_method: method.name,
    };
    (method.path, labels)
}

/// Returns the labels of a path of the HTTP API.
fn http_path(path: &str) -> Option<MethodLabels> {
    let fixed = HTTP_PATHS.into_iter().find(|known| *known == path);
    let is_model = || {
        let id = path.strip_prefix("/v1/models/")?;
        (!id.is_empty() && !id.contains('/')).then_some(HTTP_MODEL_PATH)
    };
    Some(MethodLabels {
        grpc_type: HTTP,
        grpc_service: HTTP,
        grpc_method: fixed.or_else(is_model)?,
    })
}

/// Buckets from 0.1 ms (a decode step of a small model) to 105 s (a full queue).
fn char_latency() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 21))
}

/// Buckets from 1 ms (a unary call) to 4.7 h (the stream of a training).
fn call_duration() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 13))
}

/// Name of a status code in the gRPC specification.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests;
