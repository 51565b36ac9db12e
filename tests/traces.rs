//! Traces, received by a collector of the test.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::support::http_call;
use crate::support::wire::{self, Wire};

/// Keeps the spans that it receives.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans);
        self.spans.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts a collector, and returns its address.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, url)
    }

    fn named(&self, name: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        let named = spans.iter().filter(|span| span.name == name);
        named.cloned().collect()
    }

    fn children(&self, parent: &Span) -> Vec<String> {
        let spans = self.spans.lock().unwrap();
        let children = spans.iter().filter(|span| {
            span.parent_span_id == parent.span_id && span.trace_id == parent.trace_id
        });
        let mut names: Vec<_> = children.map(|span| span.name.clone()).collect();
        names.sort();
        names
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_trainings_are_exported_as_traces() {
    let (collector, url) = Collector::start().await;
    let mut wire = Wire::start(&["--otlp-endpoint", &url]).await;
    let mut request = Request::new(wire::start("tale", 9));
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let context = format!("00-{trace}-{parent}-01").parse().unwrap();
    request.metadata_mut().insert("traceparent", context);
    let response = wire.generation.generate(request).await.unwrap();
    wire::rest(&mut response.into_inner()).await.unwrap();
    let (http_trace, http_parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let context = format!("00-{http_trace}-{http_parent}-01");
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", context.as_str()),
    ];
    let body = r#"{"model": "verse", "prompt": "arma ", "max_tokens": 9}"#;
    let (status, _) = http_call::send(&wire.server, "POST /v1/completions", &headers, body);
    assert_eq!(status, 200);
    let Wire { server, .. } = wire;
    // Exports what is left.
    tokio::task::spawn_blocking(move || server.stop())
        .await
        .unwrap();

    let calls = collector.named("charlstm.v1.GenerationService/Generate");
    let [call] = &calls[..] else {
        panic!("{} spans of the call", calls.len());
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&call.trace_id), trace, "the trace of the client");
    assert_eq!(hex(&call.parent_span_id), parent);
    let phases = ["commit", "decode", "prefill", "queue", "send"];
    assert_eq!(collector.children(call), phases);

    let calls = collector.named("v1/completions");
    let [call] = &calls[..] else {
        panic!("{} spans of the call over HTTP", calls.len());
    };
    assert_eq!(hex(&call.trace_id), http_trace, "the trace of the client");
    assert_eq!(hex(&call.parent_span_id), http_parent);
    assert_eq!(collector.children(call), phases);

    let trainings = collector.named("training");
    let [training] = &trainings[..] else {
        panic!("{} spans of the training", trainings.len());
    };
    assert!(training.parent_span_id.is_empty(), "a trace of its own");
    assert_ne!(training.trace_id, call.trace_id);
    let children = collector.children(training);
    assert_eq!(children, ["epoch", "epoch", "queue"]);
}
