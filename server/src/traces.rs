//! Exports traces in the OpenTelemetry protocol: one for each call, with a span
//! for each phase of a generation, and one for each run of a training, with a
//! span for each epoch.
//!
//! The spans of a call are made when it ends, from times that are recorded in
//! any case, so tracing costs nothing while text is generated.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{self as otel, Span, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use thiserror::Error;
use tonic::Code;
use tonic::codegen::http::HeaderMap;

use crate::metrics::code_name;
use crate::rpc::call_record::{CallFields, CallRecord, Moment};

/// Name of this program in traces.
const NAME: &str = "charlstm-server";

/// Maximum time for one export: a collector that does not answer must not delay
/// the shutdown for longer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Traces cannot be exported.
#[derive(Debug, Error)]
#[error("--otlp-endpoint {endpoint}: {reason}")]
pub struct TracesError {
    endpoint: String,
    reason: String,
}

/// Makes traces and exports them. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Tracing {
    exported: Option<Exported>,
}

#[derive(Clone, Debug)]
struct Exported {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Tracing {
    /// Exports to a collector, over gRPC; without an `endpoint`, makes no traces.
    /// Must be called in a tokio runtime. The collector need not run yet.
    ///
    /// # Errors
    /// The endpoint is not a URL.
    pub fn new(endpoint: Option<&str>) -> Result<Self, TracesError> {
        let Some(endpoint) = endpoint else {
            return Ok(Self::default());
        };
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| TracesError {
                endpoint: endpoint.to_owned(),
                reason: error.to_string(),
            })?;
        let resource = Resource::builder()
            .with_service_name(NAME)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer(NAME);
        Ok(Self {
            exported: Some(Exported { provider, tracer }),
        })
    }

    /// Begins the trace of a call, as a part of the client's trace if the
    /// headers name one (`traceparent`).
    pub fn call(&self, method: &str, headers: &HeaderMap) -> CallTrace {
        CallTrace(self.exported.as_ref().map(|exported| OpenCall {
            tracer: exported.tracer.clone(),
            parent: TraceContextPropagator::new().extract(&Headers(headers)),
            method: method.trim_start_matches('/').to_owned(),
        }))
    }

    /// Begins the trace of a run of a training.
    pub fn training(&self, id: &str, model: &str) -> TrainingTrace {
        TrainingTrace(self.exported.as_ref().map(|exported| {
            let mut span = exported.tracer.start("training");
            span.set_attribute(KeyValue::new("charlstm.training", id.to_owned()));
            span.set_attribute(KeyValue::new("charlstm.model", model.to_owned()));
            OpenTraining {
                tracer: exported.tracer.clone(),
                context: Context::new().with_span(span),
                accepted: Some(SystemTime::now()),
            }
        }))
    }

    /// Exports what is left. Blocks for at most the timeout of an export.
    pub fn shutdown(&self) {
        if let Some(exported) = &self.exported
            && let Err(error) = exported.provider.shutdown_with_timeout(EXPORT_TIMEOUT)
        {
            tracing::warn!(%error, "the last traces were not exported");
        }
    }
}

/// The headers of a request, for the propagator.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

/// The trace of a call.
#[derive(Debug)]
pub struct CallTrace(Option<OpenCall>);

#[derive(Debug)]
struct OpenCall {
    tracer: SdkTracer,
    parent: Context,
    method: String,
}

impl CallTrace {
    /// Makes the spans of the call, which ends now.
    pub fn end(
        &mut self,
        code: Code,
        since: Moment,
        peer: Option<SocketAddr>,
        record: &CallRecord,
        fields: &CallFields,
    ) {
        let Some(OpenCall {
            tracer,
            parent,
            method,
        }) = self.0.take()
        else {
            return;
        };
        let mut attributes = vec![
            KeyValue::new("charlstm.request_id", record.request_id().to_owned()),
            KeyValue::new(
                "charlstm.chars",
                i64::try_from(fields.chars).unwrap_or(i64::MAX),
            ),
        ];
        match method.split_once('/') {
            // The name of a service of gRPC has that of its package.
            Some((service, name)) if service.contains('.') => attributes.extend([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service.to_owned()),
                KeyValue::new("rpc.method", name.to_owned()),
                KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)),
            ]),
            _ => attributes.push(KeyValue::new("url.path", format!("/{method}"))),
        }
        let peer = peer.map(|peer| peer.ip().to_string());
        for (key, value) in [
            ("client.address", &peer),
            ("charlstm.principal", &fields.principal),
            ("charlstm.model", &fields.model),
            ("charlstm.session", &fields.session),
            ("charlstm.training", &fields.training),
        ] {
            if let Some(value) = value {
                attributes.push(KeyValue::new(key, value.clone()));
            }
        }
        let mut span = tracer
            .span_builder(method)
            .with_kind(otel::SpanKind::Server)
            .with_start_time(since.time)
            .with_attributes(attributes)
            .start_with_context(&tracer, &parent);
        if code != Code::Ok {
            span.set_status(otel::Status::error(code_name(code)));
        }
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        for (name, from, to) in phases(since.time, fields) {
            let span = tracer.span_builder(name).with_start_time(from);
            let mut span = span.start_with_context(&tracer, &context);
            if name == "send" {
                let messages = i64::try_from(fields.messages).unwrap_or(i64::MAX);
                let waited = fields.sending.as_secs_f64();
                span.set_attribute(KeyValue::new("charlstm.messages", messages));
                span.set_attribute(KeyValue::new("charlstm.transport_wait_seconds", waited));
            }
            span.end_with_timestamp(to);
        }
        span.end();
    }
}

/// The phases of a generation: it waits for a slot, its prompt is processed, its
/// text is computed and sent, and its session is committed. Text is sent while
/// the rest is computed.
fn phases(since: SystemTime, fields: &CallFields) -> Vec<(&'static str, SystemTime, SystemTime)> {
    let phases = &fields.phases;
    let time = |moment: Option<Moment>| moment.map(|moment| moment.time);
    let (started, first) = (time(phases.started), time(phases.first_text));
    let (last, finished) = (time(phases.last_text), time(phases.finished));
    let phase = |name, from: Option<SystemTime>, to: Option<SystemTime>| Some((name, from?, to?));
    [
        phase("queue", Some(since), started),
        phase("prefill", started, first),
        phase("decode", first, last),
        phase("send", first, finished.or(last)),
        phase("commit", last.or(started), finished),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The trace of a run of a training.
#[derive(Debug)]
pub struct TrainingTrace(Option<OpenTraining>);

#[derive(Debug)]
struct OpenTraining {
    tracer: SdkTracer,
    /// Has the span of the training.
    context: Context,
    /// Until the first step.
    accepted: Option<SystemTime>,
}

impl TrainingTrace {
    /// Records that the training has taken its first step.
    pub fn started(&mut self) {
        if let Some(open) = &mut self.0
            && let Some(accepted) = open.accepted.take()
        {
            open.span("queue", accepted, Vec::new());
        }
    }

    /// Records an epoch that took `seconds` and ends now.
    pub fn epoch(&mut self, number: u32, seconds: f64, train_loss: f64) {
        if let Some(open) = &self.0 {
            let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            let now = SystemTime::now();
            let from = now.checked_sub(duration).unwrap_or(now);
            let attributes = vec![
                KeyValue::new("charlstm.epoch", i64::from(number)),
                KeyValue::new("charlstm.train_loss", train_loss),
            ];
            open.span("epoch", from, attributes);
        }
    }

    /// Ends the span of the run.
    pub fn ended(&mut self, succeeded: bool, message: &str) {
        if let Some(open) = self.0.take() {
            let span = open.context.span();
            if !succeeded {
                span.set_status(otel::Status::error(message.to_owned()));
            }
            span.end();
        }
    }
}

impl OpenTraining {
    /// Records a span from a time until now.
    fn span(&self, name: &'static str, from: SystemTime, attributes: Vec<KeyValue>) {
        let span = self.tracer.span_builder(name).with_start_time(from);
        let span = span.with_attributes(attributes);
        span.start_with_context(&self.tracer, &self.context).end();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_the_client_is_continued_if_it_is_valid() {
        let is_continued = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            let context = TraceContextPropagator::new().extract(&Headers(&headers));
            context.span().span_context().is_valid()
        };
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_continued(valid));
        assert!(!is_continued("00-invalid"));
    }

    #[test]
    fn the_phases_of_a_generation_follow_each_other() {
        let record = CallRecord::new("id".to_owned(), false);
        let since = SystemTime::now();
        assert!(phases(since, &record.fields()).is_empty());
        record.started("m@1".to_owned());
        record.text("a", 1);
        record.text("b", 1);
        record.finished();
        let phases = phases(since, &record.fields());
        let names: Vec<_> = phases.iter().map(|(name, _, _)| *name).collect();
        assert_eq!(names, ["queue", "prefill", "decode", "send", "commit"]);
        for (name, from, to) in phases {
            assert!(from <= to, "{name}");
        }
    }
}
