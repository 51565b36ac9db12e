//! The services of one server: those of charlstm, each behind the layers and
//! with its own health, and the health and reflection services.

use std::convert::Infallible;

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::service::{LayerExt, Routes, RoutesBuilder};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;

use super::ServeError;
use crate::rpc::layers::Layers;
use crate::rpc::layers::deadline::DeadlineService;
use crate::rpc::layers::protocol::ProtocolService;

pub(super) struct Services {
    layers: Layers,
    routes: RoutesBuilder,
    reporter: HealthReporter,
    /// The names of the services that have a health; the empty name is the
    /// server as a whole.
    names: Vec<&'static str>,
}

impl Services {
    pub(super) fn new(layers: Layers) -> Result<Self, ServeError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(charlstm_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // With it, a generic tool can show the details of an error.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let mut routes = Routes::builder();
        routes
            // Without authentication: load balancers have no token.
            .add_service(health);
        // Not in flight: a shutdown does not wait for tools that keep a stream of
        // reflection open.
        let admitted = ServiceBuilder::new()
            .layer(layers.call_log.clone())
            .layer(layers.auth.clone());
        let v1 = reflection().build_v1().map_err(super::network)?;
        // For older tools.
        let v1alpha = reflection().build_v1alpha().map_err(super::network)?;
        routes
            .add_service(admitted.clone().named_layer(v1))
            .add_service(admitted.named_layer(v1alpha));
        Ok(Self {
            layers,
            routes,
            reporter,
            names: vec![""],
        })
    }

    /// Adds a service with its own health, behind the layers.
    pub(super) fn add<S>(&mut self, service: S)
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let layers = self.layers.clone();
        let request_body = layers.request_body;
        let layers = ServiceBuilder::new()
            .layer(layers.call_metrics)
            .layer(layers.call_log)
            .layer_fn(ProtocolService::new)
            .layer_fn(DeadlineService::new)
            .layer(layers.auth)
            .map_request(move |request| request_body.wrap(request))
            .layer(layers.in_flight);
        self.names.push(S::NAME);
        self.routes.add_service(layers.named_layer(service));
    }

    /// Reports all services as serving, and returns their routes.
    pub(super) async fn finish(self) -> (Routes, Health) {
        let health = Health {
            reporter: self.reporter,
            names: self.names,
        };
        health.report(ServingStatus::Serving).await;
        (self.routes.routes().prepare(), health)
    }
}

/// What `grpc.health.v1` reports.
pub(super) struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
}

impl Health {
    /// Reports all services as not serving, so that load balancers send no
    /// more calls.
    pub(super) async fn stop(&self) {
        self.report(ServingStatus::NotServing).await;
    }

    async fn report(&self, status: ServingStatus) {
        for name in &self.names {
            self.reporter.set_service_status(*name, status).await;
        }
    }
}
