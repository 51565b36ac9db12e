//! `status`: shows health, device, load and models of the server. A service
//! that the server does not offer is shown as unknown.

use charlstm_proto::v1::{
    GetServerStatusRequest, GetServerStatusResponse, ListModelsRequest, ListReplicasRequest, Model,
    Replica,
};
use serde_json::{Value, json};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::models;
use crate::args::GlobalFlags;
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Output};

/// Queries the three services and prints their answers.
pub(crate) async fn run(
    global: &GlobalFlags,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let (mut health, mut server, mut models) = (
        connection.health(),
        connection.server(),
        connection.models(),
    );
    // Without a service name, the health is that of the whole server.
    let mut replicas = server.clone();
    let (health, server, models, replicas) = tokio::join!(
        health.check(HealthCheckRequest::default()),
        server.get_server_status(GetServerStatusRequest {}),
        models.list_models(ListModelsRequest {}),
        replicas.list_replicas(ListReplicasRequest {}),
    );
    let health = if_offered(health)?.map(|response| health_name(response.status()));
    let server = if_offered(server)?;
    let models = if_offered(models)?.map(|response| response.models);
    let models = models.as_deref();
    // A database that cannot be read leaves the rest of the status.
    let replicas = replicas.map(|response| response.into_inner().replicas);
    let replicas = replicas.unwrap_or_default();
    output.result(
        || status_object(&global.addr, health, server.as_ref(), models, &replicas),
        || status_text(&global.addr, health, server.as_ref(), models, &replicas),
    )
}

/// Converts UNIMPLEMENTED to `None`.
fn if_offered<T>(result: Result<Response<T>, Status>) -> Result<Option<T>, Failure> {
    match result {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(status.into()),
    }
}

fn health_name(status: ServingStatus) -> &'static str {
    match status {
        ServingStatus::Serving => "serving",
        ServingStatus::NotServing => "not serving",
        ServingStatus::Unknown | ServingStatus::ServiceUnknown => "unknown",
    }
}

fn status_object(
    address: &str,
    health: Option<&str>,
    server: Option<&GetServerStatusResponse>,
    models: Option<&[Model]>,
    replicas: &[Replica],
) -> Value {
    let replicas: Vec<Value> = replicas
        .iter()
        .map(|replica| json::object("Replica", replica))
        .collect();
    let models = models.map(|models| {
        models
            .iter()
            .map(|model| json::object("Model", model))
            .collect::<Vec<_>>()
    });
    json::named(
        "status",
        json!({
            "addr": address,
            "health": health,
            "server": server.map(|server| json::object("GetServerStatusResponse", server)),
            "models": models,
            "replicas": replicas,
        }),
    )
}

fn status_text(
    address: &str,
    health: Option<&str>,
    server: Option<&GetServerStatusResponse>,
    models: Option<&[Model]>,
    replicas: &[Replica],
) -> String {
    let mut pairs = vec![
        ("server", address.to_owned()),
        ("health", health.unwrap_or("unknown").to_owned()),
    ];
    match server {
        Some(server) => pairs.extend(server_details(server)),
        None => pairs.push(("load", "unknown".into())),
    }
    pairs.extend(
        replicas
            .iter()
            .map(|replica| ("replica", describe(replica))),
    );
    for model in models.unwrap_or_default() {
        if !model.int8_objection.is_empty() {
            let text = format!(
                "{}@{} runs in float32: {}",
                model.name, model.version, model.int8_objection
            );
            pairs.push(("precision", text));
        }
    }
    let models = match models {
        None => "the server does not list its models".into(),
        Some([]) => "no models yet; train one with `charlstm-client train`".into(),
        Some(models) => models::table(models, output::stdout_columns()),
    };
    format!(
        "{}\n\n{models}",
        display::key_values(&pairs, output::stdout_columns())
    )
}

/// Describes a replica in one line.
fn describe(replica: &Replica) -> String {
    let mut text = format!("{} at {}", replica.name, replica.address);
    if replica.this_replica {
        text += " (this one)";
    }
    if replica.present {
        text += &format!(": {} generating", replica.generations_running);
    } else {
        text += ": not present";
    }
    if !replica.training_id.is_empty() {
        text += &format!(", training {}", replica.training_id);
    }
    format!(
        "{text}, version {}, heartbeat {:.0} s ago",
        replica.version, replica.heartbeat_age_seconds
    )
}

/// The precision of a decode step; an older server does not report it.
fn in_precision(precision: &str) -> String {
    if precision.is_empty() {
        String::new()
    } else {
        format!(" in {precision}")
    }
}

fn server_details(server: &GetServerStatusResponse) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("version", server.server_version.clone()),
        (
            "device",
            format!(
                "{}, {}",
                server.device,
                display::plural(server.threads.into(), "thread")
            ),
        ),
        ("uptime", display::seconds(server.uptime_seconds as f64)),
        (
            "generations",
            format!(
                "{} of {} running, {} of {} waiting",
                server.generations_running,
                server.max_batch,
                server.generations_queued,
                server.max_queue
            ),
        ),
        (
            "sessions",
            format!(
                "{} of {}",
                display::count(server.sessions),
                display::count(server.max_sessions)
            ),
        ),
        (
            "trainings",
            format!(
                "{} running, {} waiting",
                server.trainings_running, server.trainings_queued
            ),
        ),
    ];
    // An older server does not report these.
    for (key, value) in [
        ("precision", &server.precision),
        ("kernels", &server.kernels),
    ] {
        if !value.is_empty() {
            pairs.push((key, value.clone()));
        }
    }
    for check in &server.step_checks {
        let warning = if check.row_invariant {
            ""
        } else {
            "; WARNING: on this machine a text depends on the others in its batch"
        };
        pairs.push((
            "decode step",
            format!(
                "{}{}: {} for one session, {} per session in a batch of 13{warning}",
                check.model,
                in_precision(&check.precision),
                display::seconds(check.microseconds_one_row / 1e6),
                display::seconds(check.microseconds_row_in_batch / 1e6),
            ),
        ));
    }
    pairs
}
