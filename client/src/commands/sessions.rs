//! `sessions`: lists, describes, forks, deletes, exports and imports
//! sessions.

use std::path::Path;

use charlstm_proto::v1::{
    DeleteSessionRequest, ExportSessionRequest, ForkSessionRequest, GetSessionRequest,
    ImportSessionRequest, ListSessionsRequest, Session,
};

use super::input::words;
use crate::args::{Global, SessionsCommand};
use crate::connect::Connection;
use crate::exit::Failure;
use crate::human;
use crate::json;
use crate::output::Output;

/// Sessions that are asked for at a time: the most that the contract allows.
const PAGE_SIZE: u32 = 1000;

/// Does what `command` says.
pub(crate) async fn run(
    command: SessionsCommand,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    // A file that is not there is noticed before a server is looked for.
    if let SessionsCommand::Import { file, session } = command {
        let data = std::fs::read(&file).map_err(|error| Failure::Unreadable {
            path: file.clone(),
            reason: words(&error),
        })?;
        let connection = Connection::open(global).await?;
        return import(&connection, data, session, output).await;
    }
    let connection = &Connection::open(global).await?;
    match command {
        SessionsCommand::List => list(connection, output).await,
        SessionsCommand::Show { id } => show(connection, id, output).await,
        SessionsCommand::Fork { id, new } => {
            let session = fork(connection, &id, &new).await?;
            made("forked", &session, output)
        }
        SessionsCommand::Delete { id } => delete(connection, id, output).await,
        SessionsCommand::Export { id, output: path } => {
            let bytes = export(connection, &id, &path).await?;
            output.result(
                || {
                    let facts = serde_json::json!({"session_id": id, "bytes": bytes});
                    json::named("exported", facts)
                },
                || format!("wrote {id} to {} ({})", path.display(), human::bytes(bytes)),
            )
        }
        SessionsCommand::Import { .. } => unreachable!("done above"),
    }
}

/// Shows each page as it comes.
async fn list(connection: &Connection, output: Output) -> Result<(), Failure> {
    let mut sessions = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListSessionsRequest {
            page_size: Some(PAGE_SIZE),
            page_token,
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
        output.note("no sessions; `charlstm-client generate --session ID` makes one");
        return Ok(());
    }
    output.line(&table(&sessions))
}

async fn show(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    let request = GetSessionRequest { session_id: id };
    let response = connection.sessions().get_session(request).await?;
    let session = response.into_inner().session.unwrap_or_default();
    output.result(
        || json::object("Session", &session),
        || description(&session),
    )
}

/// Makes a second session that stands where `id` stands.
pub(crate) async fn fork(connection: &Connection, id: &str, new: &str) -> Result<Session, Failure> {
    let request = ForkSessionRequest {
        session_id: id.to_owned(),
        new_session_id: new.to_owned(),
    };
    let response = connection.sessions().fork_session(request).await?;
    Ok(response.into_inner().session.unwrap_or_default())
}

async fn delete(connection: &Connection, id: String, output: Output) -> Result<(), Failure> {
    let request = DeleteSessionRequest {
        session_id: id.clone(),
    };
    connection.sessions().delete_session(request).await?;
    output.result(
        || json::named("deleted", serde_json::json!({"session_id": id})),
        || format!("deleted {id}"),
    )
}

/// Writes a session to a file; returns the file's size in bytes.
pub(crate) async fn export(connection: &Connection, id: &str, path: &Path) -> Result<u64, Failure> {
    let request = ExportSessionRequest {
        session_id: id.to_owned(),
    };
    let response = connection.sessions().export_session(request).await?;
    let data = response.into_inner().data;
    std::fs::write(path, &data).map_err(|error| Failure::Io {
        what: format!("write {}", path.display()),
        source: error,
    })?;
    Ok(data.len() as u64)
}

async fn import(
    connection: &Connection,
    data: Vec<u8>,
    id: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let request = ImportSessionRequest {
        data: data.into(),
        session_id: id.unwrap_or_default(),
    };
    let response = connection.sessions().import_session(request).await?;
    let session = response.into_inner().session.unwrap_or_default();
    made("imported", &session, output)
}

fn made(event: &str, session: &Session, output: Output) -> Result<(), Failure> {
    output.result(
        || json::named(event, json::object("Session", session)),
        || {
            format!(
                "{event} {} at position {} of {}@{}",
                session.session_id, session.position, session.model, session.version
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
            human::count(session.position),
            yes_or_no(session.busy),
            human::seconds(session.idle_ms as f64 / 1e3),
            human::bytes(session.bytes),
        ]
    }));
    human::table(&rows)
}

fn description(session: &Session) -> String {
    human::facts(&[
        ("session", session.session_id.clone()),
        ("model", format!("{}@{}", session.model, session.version)),
        ("position", human::count(session.position)),
        (
            "last call began at",
            human::count(session.last_call_position),
        ),
        ("busy", yes_or_no(session.busy)),
        ("idle", human::seconds(session.idle_ms as f64 / 1e3)),
        ("size", human::bytes(session.bytes)),
    ])
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.into()
}
