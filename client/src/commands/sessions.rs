//! `sessions`: lists, shows, forks, deletes, exports and imports sessions.

use std::path::Path;

use charlstm_proto::v1::{
    DeleteSessionRequest, ExportSessionRequest, ForkSessionRequest, GetSessionRequest,
    ImportSessionRequest, ListSessionsRequest, Session,
};

use sha2::{Digest, Sha256};

use super::input::{Input, unreadable};
use super::retry;
use crate::args::{GlobalFlags, SessionsCommand};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::{self, Output};
use crate::output_file::{Existing, OutputFile};

/// Number of sessions per page: the maximum of the contract.
const PAGE_SIZE: u32 = 1000;

/// Runs a command of `sessions`.
pub(crate) async fn run(
    command: SessionsCommand,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let connect = || Connection::open(global);
    match command {
        SessionsCommand::List => list(&connect().await?, output).await,
        SessionsCommand::Show { id } => show(&connect().await?, id, output).await,
        SessionsCommand::Fork { id, new } => {
            let session = fork(&connect().await?, &id, &new, output).await?;
            print_session("forked", "created", &session, output)
        }
        SessionsCommand::Rename { id, new } => {
            let connection = connect().await?;
            let session = fork(&connection, &id, &new, output).await?;
            delete_session(&connection, &id, output).await?;
            print_session("renamed", "renamed to", &session, output)
        }
        SessionsCommand::Delete { id } => delete(&connect().await?, id, output).await,
        SessionsCommand::Export { id, file } => {
            let existing = Existing::from_force(file.force);
            let exported = export(&connect().await?, &id, &file.output, existing).await?;
            let object = || {
                let fields = serde_json::json!({
                    "session_id": id,
                    "bytes": exported.bytes,
                    "sha256": exported.sha256,
                });
                json::named("exported", fields)
            };
            let text = || {
                let (path, size) = (display::path(&file.output), display::bytes(exported.bytes));
                format!("exported session {id} to {path} ({size})")
            };
            if exported.is_stdout {
                output.note(&text());
                return Ok(());
            }
            output.result(object, text)
        }
        SessionsCommand::Import { file, session } => {
            // Reading the file first reports its errors without a server.
            let data = read(&file)?;
            let session = import(&connect().await?, data, session, output).await?;
            print_session("imported", "imported", &session, output)
        }
    }
}

/// Prints all sessions; with `--json`, each page as soon as it is received.
async fn list(connection: &Connection, output: Output) -> Result<(), Failure> {
    let mut sessions = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListSessionsRequest {
            page_size: Some(PAGE_SIZE),
            page_token,
            owner: None,
        };
        let page = connection.sessions().list_sessions(request).await?;
        let page = page.into_inner();
        if output.json {
            for session in &page.sessions {
                output.object(&json::object("Session", session))?;
            }
        } else {
            sessions.extend(page.sessions);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output.json {
        return Ok(());
    }
    if sessions.is_empty() {
        output.note("no sessions yet; create one with `charlstm-client generate --session ID`");
        return Ok(());
    }
    output.line(&table(&sessions))
}

async fn show(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    let request = GetSessionRequest {
        session_id: id,
        owner: None,
    };
    let response = connection.sessions().get_session(request).await?;
    let session = response.into_inner().session.unwrap_or_default();
    output.result(
        || json::object("Session", &session),
        || description(&session),
    )
}

/// Copies session `id` to session `new` and returns the copy.
pub(super) async fn fork(
    connection: &Connection,
    id: &str,
    new: &str,
    output: Output,
) -> Result<Session, Failure> {
    let request = ForkSessionRequest {
        session_id: id.to_owned(),
        new_session_id: new.to_owned(),
        owner: None,
    };
    let response = retry::while_storage_fails(output, || {
        let (mut client, request) = (connection.sessions(), request.clone());
        async move { client.fork_session(request).await }
    });
    Ok(response.await?.session.unwrap_or_default())
}

async fn delete_session(connection: &Connection, id: &str, output: Output) -> Result<(), Failure> {
    let request = DeleteSessionRequest {
        session_id: id.to_owned(),
        owner: None,
    };
    retry::while_storage_fails(output, || {
        let (mut client, request) = (connection.sessions(), request.clone());
        async move { client.delete_session(request).await }
    })
    .await
    .map(drop)
}

async fn delete(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    delete_session(connection, &id, output).await?;
    output.result(
        || json::named("deleted", serde_json::json!({"session_id": id})),
        || format!("deleted session {id}"),
    )
}

/// A session that was written to a file.
pub(super) struct ExportedSession {
    /// Size of the file in bytes.
    pub(super) bytes: u64,
    /// SHA-256 of the file in hexadecimal.
    sha256: String,
    /// True if the file is standard output.
    is_stdout: bool,
}

/// Writes a session to a file.
pub(super) async fn export(
    connection: &Connection,
    id: &str,
    path: &Path,
    existing: Existing,
) -> Result<ExportedSession, Failure> {
    let mut file = OutputFile::create(path, existing)?;
    let request = ExportSessionRequest {
        session_id: id.to_owned(),
        owner: None,
    };
    let response = connection.sessions().export_session(request).await?;
    let data = response.into_inner().data;
    file.write(&data)?;
    let is_stdout = file.is_stdout();
    file.commit()?;
    Ok(ExportedSession {
        bytes: data.len() as u64,
        sha256: display::hexadecimal(&Sha256::digest(&data)),
        is_stdout,
    })
}

/// Reads a session file; `-` is standard input.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut input = Input::open(path)?;
    input.check_not_empty(path)?;
    let mut data = Vec::new();
    while let Some(chunk) = input.chunk().map_err(|error| unreadable(error, path))? {
        data.extend_from_slice(&chunk);
    }
    Ok(data)
}

/// Creates a session from the content of a file, under `id` or under the id that
/// it had when it was exported.
pub(super) async fn import(
    connection: &Connection,
    data: Vec<u8>,
    id: Option<String>,
    output: Output,
) -> Result<Session, Failure> {
    let request = ImportSessionRequest {
        data: data.into(),
        session_id: id.unwrap_or_default(),
        owner: None,
    };
    let response = retry::while_storage_fails(output, || {
        let (mut client, request) = (connection.sessions(), request.clone());
        async move { client.import_session(request).await }
    });
    Ok(response.await?.session.unwrap_or_default())
}

/// Prints a new session, with the name of the JSON event or with a verb.
fn print_session(
    event: &str,
    verb: &str,
    session: &Session,
    output: Output,
) -> Result<(), Failure> {
    output.result(
        || json::named(event, json::object("Session", session)),
        || {
            format!(
                "{verb} session {} at position {} of model {}@{}",
                session.session_id,
                display::count(session.position),
                session.model,
                session.version
            )
        },
    )
}

fn table(sessions: &[Session]) -> String {
    let heading = ["SESSION", "MODEL", "POSITION", "BUSY", "IDLE", "SIZE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(sessions.iter().map(|session| {
        vec![
            session.session_id.clone(),
            format!("{}@{}", session.model, session.version),
            display::count(session.position),
            yes_or_no(session.busy),
            display::seconds(session.idle_ms as f64 / 1e3),
            display::bytes(session.bytes),
        ]
    }));
    let drop_first = ["SIZE", "BUSY", "IDLE"];
    display::table(&rows, output::stdout_columns(), &drop_first)
}

fn description(session: &Session) -> String {
    let mut pairs = vec![
        ("session", session.session_id.clone()),
        ("model", format!("{}@{}", session.model, session.version)),
        ("position", display::count(session.position)),
        (
            "last call started at",
            display::count(session.last_call_position),
        ),
        ("busy", yes_or_no(session.busy)),
        ("idle", display::seconds(session.idle_ms as f64 / 1e3)),
        ("size", display::bytes(session.bytes)),
    ];
    if !session.precision.is_empty() {
        pairs.push(("precision", session.precision.clone()));
    }
    display::key_values(&pairs, output::stdout_columns())
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.into()
}
