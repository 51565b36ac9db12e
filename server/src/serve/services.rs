//! The set of services of one server, each behind the door and with its own
//! health, and what every gRPC server has beside them: health and reflection.

use std::convert::Infallible;

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::ServeError;
use crate::rpc::admission::{Admitted, Door};

pub(super) struct Services {
    door: Door,
    routes: RoutesBuilder,
    reporter: HealthReporter,
    /// Those that have a health; the empty name is the server as a whole.
    names: Vec<&'static str>,
}

impl Services {
    pub(super) fn new(door: Door) -> Result<Self, ServeError> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(charlstm_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // With it a generic tool can show what an error carries.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let mut routes = Routes::builder();
        routes
            .add_service(health)
            .add_service(reflection().build_v1().map_err(super::network)?)
            // What older tools ask for.
            .add_service(reflection().build_v1alpha().map_err(super::network)?);
        Ok(Self {
            door,
            routes,
            reporter,
            names: vec![""],
        })
    }

    /// Adds a service.
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
        self.names.push(S::NAME);
        self.routes
            .add_service(Admitted::new(service, self.door.clone()));
    }

    /// Reports all as serving.
    pub(super) async fn finish(self) -> (Routes, Health) {
        let health = Health {
            reporter: self.reporter,
            names: self.names,
        };
        health.report(ServingStatus::Serving).await;
        (self.routes.routes().prepare(), health)
    }
}

/// What `grpc.health.v1` tells.
pub(super) struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
}

impl Health {
    /// Reports all as not serving: whoever balances load sends no more here.
    pub(super) async fn stop(&self) {
        self.report(ServingStatus::NotServing).await;
    }

    async fn report(&self, status: ServingStatus) {
        for name in &self.names {
            self.reporter.set_service_status(*name, status).await;
        }
    }
}
