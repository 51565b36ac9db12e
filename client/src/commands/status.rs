//! `status`: health, device, load and models of the server. What an older
//! server cannot tell is left out.

use charlstm_proto::v1::{
    GetServerStatusRequest, GetServerStatusResponse, ListModelsRequest, Model,
};
use serde_json::{Value, json};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::models;
use crate::args::Global;
use crate::connect::Connection;
use crate::exit::Failure;
use crate::human;
use crate::json;
use crate::output::Output;

/// Asks all three services and shows what they say.
pub(crate) async fn run(
    global: &Global,
    connection: &Connection,
    output: Output,
) -> Result<(), Failure> {
    let (mut health, mut server, mut models) = (
        connection.health(),
        connection.server(),
        connection.models(),
    );
    // An empty name asks for the server as a whole.
    let (health, server, models) = tokio::join!(
        health.check(HealthCheckRequest::default()),
        server.get_server_status(GetServerStatusRequest {}),
        models.list_models(ListModelsRequest {}),
    );
    let health = offered(health)?.map(|response| health_name(response.status()));
    let server = offered(server)?;
    let models = offered(models)?.map(|response| response.models);
    output.result(
        || status_object(&global.addr, health, server.as_ref(), models.as_deref()),
        || status_words(&global.addr, health, server.as_ref(), models.as_deref()),
    )
}

/// `None` for a call that the server does not offer.
fn offered<T>(answer: Result<Response<T>, Status>) -> Result<Option<T>, Failure> {
    match answer {
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
) -> Value {
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
        }),
    )
}

fn status_words(
    address: &str,
    health: Option<&str>,
    server: Option<&GetServerStatusResponse>,
    models: Option<&[Model]>,
) -> String {
    let mut facts = vec![
        ("server", address.to_owned()),
        ("health", health.unwrap_or("not told").to_owned()),
    ];
    match server {
        Some(server) => facts.extend(server_facts(server)),
        None => facts.push(("load", "not told".into())),
    }
    let models = match models {
        None => "models are not told".into(),
        Some([]) => "no models yet; `charlstm-client train` makes one".into(),
        Some(models) => models::table(models),
    };
    format!("{}\n\n{models}", human::facts(&facts))
}

fn server_facts(server: &GetServerStatusResponse) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("version", server.server_version.clone()),
        (
            "device",
            format!("{}, {} threads", server.device, server.threads),
        ),
        ("up", human::seconds(server.uptime_seconds as f64)),
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
                human::count(server.sessions),
                human::count(server.max_sessions)
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
    for check in &server.step_checks {
        let depends = if check.row_invariant {
            ""
        } else {
            "; TEXTS DEPEND ON EACH OTHER on this machine"
        };
        facts.push((
            "step",
            format!(
                "{}: {} alone, {} each in a batch of 13{depends}",
                check.model,
                human::seconds(check.microseconds_one_row / 1e6),
                human::seconds(check.microseconds_row_in_batch / 1e6),
            ),
        ));
    }
    facts
}
