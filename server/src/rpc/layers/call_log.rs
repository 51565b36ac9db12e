//! Gives each call an id, and reports it when it ends: one line in the log, and a
//! trace if traces are exported.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;
use tracing::{Instrument, Span};

use super::excerpt;
use super::observed_call::{CallObserver, ObservedCall};
use crate::metrics::code_name;
use crate::rpc::call_record::{CallRecord, Moment, REQUEST_ID, request_id};
use crate::rpc::peer::Peer;
use crate::rpc::status;
use crate::traces::{CallTrace, Tracing};

/// Logs each call when it ends, also those that an inner layer rejects.
#[derive(Clone, Debug)]
pub struct CallLogLayer {
    logs_text: bool,
    tracing: Tracing,
}

impl CallLogLayer {
    /// With `logs_text`, prompts and texts are logged, too.
    pub fn new(logs_text: bool, tracing: Tracing) -> Self {
        Self { logs_text, tracing }
    }
}

impl<S> Layer<S> for CallLogLayer {
    type Service = CallLogService<S>;

    fn layer(&self, inner: S) -> CallLogService<S> {
        CallLogService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service behind a [`CallLogLayer`].
#[derive(Clone, Debug)]
pub struct CallLogService<S> {
    inner: S,
    layer: CallLogLayer,
}

impl<S> Service<http::Request<Body>> for CallLogService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let record = CallRecord::new(request_id(request.headers()), self.layer.logs_text);
        let method = excerpt(request.uri().path()).to_owned();
        let trace = self.layer.tracing.call(&method, request.headers());
        // What is logged during the call has its id.
        let span = tracing::info_span!("call", request_id = record.request_id());
        let call = ObservedCall::new(LoggedCall {
            peer: Peer::of(request.extensions()).address,
            record: record.clone(),
            method,
            since: Moment::now(),
            trace,
            span: span.clone(),
        });
        request.extensions_mut().insert(record);
        let response = span.in_scope(|| self.inner.call(request));
        let response = response.instrument(span);
        let logged = response.map(|response| {
            let mut response = response?;
            if let Ok(id) = call.observer().record.request_id().parse() {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            Ok(call.respond(response))
        });
        logged.boxed()
    }
}

/// What is logged of a call when it ends.
struct LoggedCall {
    record: CallRecord,
    method: String,
    peer: Option<SocketAddr>,
    since: Moment,
    trace: CallTrace,
    span: Span,
}

impl CallObserver for LoggedCall {
    /// Logs the call. Adds the id of the request to the status of an internal
    /// error, if it is in these headers: the log has more under it.
    fn ended(&mut self, code: Code, headers: Option<&mut http::HeaderMap>) {
        if code == Code::Internal
            && let Some(headers) = headers
        {
            status::add_request_id(headers, self.record.request_id());
        }
        self.log(code);
    }

    fn poll<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.span.in_scope(poll)
    }
}

impl LoggedCall {
    fn log(&mut self, code: Code) {
        let fields = self.record.fields();
        let since = self.since.instant;
        let millis = |moment: Option<Moment>| {
            let passed = moment?.instant.saturating_duration_since(since);
            Some(passed.as_secs_f64() * 1e3)
        };
        let texts = self
            .record
            .logs_text()
            .then_some((&fields.prompt, &fields.text));
        let event = match fields.rejection {
            None => "call",
            Some(_) => "call rejected",
        };
        tracing::info!(
            method = self.method,
            code = code_name(code),
            peer = self.peer.map(tracing::field::display),
            principal = fields.principal,
            request_id = self.record.request_id(),
            model = fields.model,
            session = fields.session,
            training = fields.training,
            chars = (fields.chars > 0).then_some(fields.chars),
            queue_ms = millis(fields.phases.started),
            first_char_ms = millis(fields.phases.first_text),
            duration_ms = since.elapsed().as_secs_f64() * 1e3,
            prompt = texts.map(|(prompt, _)| prompt),
            text = texts.map(|(_, text)| text),
            reason = fields.rejection,
            "{event}"
        );
        self.trace
            .end(code, self.since, self.peer, &self.record, &fields);
    }
}
