//! `models copy` and `models rename`: exports a model and imports it under
//! another name, without a file in between.

use charlstm_proto::v1::import_model_request::Payload as ImportPayload;
use charlstm_proto::v1::{
    DeleteModelRequest, ExportModelRequest, GetModelRequest, ImportModelHeader, ImportModelRequest,
    ListSessionsRequest, Model, ModelFormat, export_model_response,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::args::{CopyModelArgs, RenameModelArgs};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::Output;

/// Number of chunks that are read ahead of the upload.
const READ_AHEAD: usize = 2;

/// Number of sessions per page: the maximum of the contract.
const PAGE_SIZE: u32 = 1000;

/// Copies one version of a model.
pub(super) async fn copy(
    connection: &Connection,
    args: CopyModelArgs,
    output: Output,
) -> Result<(), Failure> {
    let model = copy_version(connection, &args.name, &args.new).await?;
    output.result(
        || json::named("copied", json::object("Model", &model)),
        || format!("copied {} to {}@{}", args.name, model.name, model.version),
    )
}

/// Copies all versions of a model to a new name and deletes it. Fails before
/// anything is changed if the name exists or if sessions use the model.
///
/// The original is deleted last: if the client or the server ends in between,
/// it is still there, next to the copies that were complete.
pub(super) async fn rename(
    connection: &Connection,
    args: RenameModelArgs,
    output: Output,
) -> Result<(), Failure> {
    let RenameModelArgs { name, new } = args;
    if name.contains('@') {
        return Err(Failure::Usage(
            "a single version cannot be renamed; copy it with `charlstm-client models copy`".into(),
        ));
    }
    let get = |model: &str| GetModelRequest {
        model: model.to_owned(),
    };
    let versions = connection.models().get_model(get(&name)).await?;
    let versions = versions.into_inner().versions;
    match connection.models().get_model(get(&new)).await {
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status.into()),
        Ok(_) => {
            return Err(Failure::Refused(format!("a model {new:?} exists already")));
        }
    }
    let users = sessions_of(connection, &name).await?;
    if users > 0 {
        return Err(Failure::Refused(format!(
            "{} use model {name:?} and would lose it",
            display::plural(users, "session")
        ))
        .with_remedy("`charlstm-client models copy` keeps it under both names"));
    }
    let mut copies = Vec::new();
    for version in &versions {
        match copy_version(connection, &format!("{name}@{version}"), &new).await {
            Ok(copy) => copies.push(copy),
            Err(failure) => {
                delete_copies(connection, &copies).await;
                return Err(failure);
            }
        }
    }
    if let Err(status) = delete(connection, &name).await {
        // For example, because a session was started on it meanwhile. After any
        // other error the model may be deleted, and the copies are all there is.
        if matches!(
            status.code(),
            Code::FailedPrecondition | Code::PermissionDenied
        ) {
            delete_copies(connection, &copies).await;
        }
        return Err(status.into());
    }
    output.result(
        || {
            let fields = serde_json::json!({"from": name, "name": new, "versions": versions.len()});
            json::named("renamed", fields)
        },
        || {
            let count = display::plural(versions.len() as u64, "version");
            format!("renamed {name} to {new} ({count})")
        },
    )
}

/// Deletes the copies of a model that still exists: nothing is renamed by half.
async fn delete_copies(connection: &Connection, copies: &[Model]) {
    for copy in copies {
        // What cannot be deleted is a complete model that the user can delete.
        let _ = delete(connection, &format!("{}@{}", copy.name, copy.version)).await;
    }
}

async fn delete(connection: &Connection, model: &str) -> Result<(), Status> {
    let request = DeleteModelRequest {
        model: model.to_owned(),
        force: None,
    };
    connection.models().delete_model(request).await.map(drop)
}

/// Returns the number of sessions that use a model.
async fn sessions_of(connection: &Connection, model: &str) -> Result<u64, Failure> {
    let (mut count, mut page_token) = (0, String::new());
    loop {
        let request = ListSessionsRequest {
            page_size: Some(PAGE_SIZE),
            page_token,
            owner: None,
        };
        let page = connection.sessions().list_sessions(request).await?;
        let page = page.into_inner();
        let used = page
            .sessions
            .iter()
            .filter(|session| session.model == model);
        count += used.count() as u64;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(count);
        }
    }
}

/// Copies version `from` to a new version of `to` and returns that.
async fn copy_version(connection: &Connection, from: &str, to: &str) -> Result<Model, Failure> {
    let request = ExportModelRequest { model: from.into() };
    let stream = connection.models().export_model(request).await?;
    let header = ImportModelHeader {
        name: to.to_owned(),
        format: ModelFormat::Safetensors.into(),
        vocabulary: String::new(),
        // Known once the export begins.
        sha256: String::new(),
    };
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let (error_sender, error) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(status) = pass_on(stream.into_inner(), header, &sender).await {
            // The upload must not end as if the file was complete.
            let _ = error_sender.send(status);
            sender.closed().await;
        }
    });
    let mut client = connection.models();
    let response = tokio::select! {
        response = client.import_model(ReceiverStream::new(receiver)) => response?.into_inner(),
        Ok(status) = error => return Err(status.into()),
    };
    Ok(response.model.unwrap_or_default())
}

/// Sends an exported file as an upload. Fails if it is not complete.
async fn pass_on(
    mut stream: Streaming<charlstm_proto::v1::ExportModelResponse>,
    header: ImportModelHeader,
    sender: &mpsc::Sender<ImportModelRequest>,
) -> Result<(), Status> {
    let message = |payload| ImportModelRequest {
        payload: Some(payload),
    };
    let (mut bytes, mut passed) = (None, 0);
    while let Some(response) = stream.message().await? {
        match response.payload {
            Some(export_model_response::Payload::Header(exported)) => {
                bytes = Some(exported.bytes);
                let header = ImportModelHeader {
                    sha256: exported.sha256,
                    ..header.clone()
                };
                // If the upload has ended, its status says why.
                let _ = sender.send(message(ImportPayload::Header(header))).await;
            }
            Some(export_model_response::Payload::Chunk(chunk)) => {
                passed += chunk.len() as u64;
                let _ = sender.send(message(ImportPayload::Chunk(chunk))).await;
            }
            None => {}
        }
    }
    if bytes == Some(passed) {
        return Ok(());
    }
    Err(Status::data_loss(
        "the server sent an incomplete model file",
    ))
}
