//! Reads and checks what the settings name, before anything is changed.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ServeError;
use super::data::Data;
use super::metrics::Sources;
use super::reload::Reloader;
use super::replica::Replica;
use super::transport::{self, Tls};
use crate::access::AccessControl;
use crate::config::Config;
use crate::devices;
use crate::listener::ListenerConfig;
use crate::metrics::Metrics;
use crate::rpc::layers::Layers;
use crate::rpc::layers::auth::AuthLayer;
use crate::rpc::layers::call_log::CallLogLayer;
use crate::rpc::layers::call_metrics::CallMetricsLayer;
use crate::rpc::layers::in_flight::InFlightLayer;
use crate::rpc::layers::request_body::RequestBodyLayer;
use crate::traces::Tracing;
use charlstm_model::device::Device;
use charlstm_model::kernels::Kernels;

/// Files, devices and limits that the settings name.
pub(super) struct Prepared {
    pub(super) tls: Option<Tls>,
    max_connections: usize,
    pub(super) access: Arc<AccessControl>,
    pub(super) traces: Tracing,
    pub(super) metrics: Metrics,
    pub(super) device: Device,
    pub(super) kernels: Kernels,
}

impl Prepared {
    /// Reads the files and selects the devices. Blocks.
    ///
    /// # Errors
    /// A file or device that cannot be used.
    pub(super) fn of(config: &Config) -> Result<Self, ServeError> {
        Ok(Self {
            tls: Tls::of(config)?,
            max_connections: transport::max_connections(config.max_connections),
            access: Arc::new(AccessControl::from_files(&config.access_files())?),
            traces: Tracing::new(config.otlp_endpoint.as_deref())?,
            metrics: Metrics::default(),
            device: devices::select(config.device)?,
            kernels: config.kernels.select()?,
        })
    }

    /// Returns the layers around each service, which track calls in `calls`.
    pub(super) fn layers(
        &self,
        config: &Config,
        calls: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Layers {
        Layers {
            call_metrics: CallMetricsLayer::new(self.metrics.clone()),
            call_log: CallLogLayer::new(config.log_text, self.traces.clone()),
            auth: AuthLayer::new(Arc::clone(&self.access)),
            request_body: RequestBodyLayer::new(config.transfer_timeout, shutdown.clone()),
            in_flight: InFlightLayer::new(calls.clone()),
        }
    }

    /// Returns the limits and protocols of connections.
    pub(super) fn listener_config(&self, config: &Config) -> ListenerConfig {
        let tls = self.tls.as_ref().map(Tls::subscribe);
        ListenerConfig {
            http1: config.http.is_on,
            ..ListenerConfig::new(self.max_connections, tls)
        }
    }

    /// Returns the sources of the metrics.
    pub(super) fn sources(
        &self,
        config: &Config,
        data: &Data,
        replica: Option<&Replica>,
    ) -> Sources {
        Sources {
            metrics: self.metrics.clone(),
            engine: data.engine.clone(),
            jobs: data.jobs.clone(),
            repository: data.repository.clone(),
            access: Arc::clone(&self.access),
            data_dir: config.data_dir.clone(),
            replica_sessions: replica.map(|replica| Arc::clone(&replica.sessions)),
        }
    }

    /// Returns what is reloaded while the server runs.
    pub(super) fn reloader(self, config: &Config) -> Reloader {
        let mut reloader = Reloader::new();
        let access = self.access;
        if config.access_files().is_any() {
            reloader.add("principals and tokens", move || access.reload());
        }
        if let Some(mut tls) = self.tls {
            reloader.add("certificates", move || tls.reload());
        }
        reloader
    }
}
