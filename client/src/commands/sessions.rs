//! `sessions`: lists, shows, forks, deletes, exports and imports sessions.

use std::path::Path;

use charlstm_proto::v1::{
    DeleteSessionRequest, ExportSessionRequest, ForkSessionRequest, GetSessionRequest,
    ImportSessionRequest, ListSessionsRequest, Session,
};

use crate::args::{GlobalFlags, SessionsCommand};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::output::Output;

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
            let session = fork(&connect().await?, &id, &new).await?;
            print_session("forked", "created", &session, output)
        }
        SessionsCommand::Delete { id } => delete(&connect().await?, id, output).await,
        SessionsCommand::Export { id, output: path } => {
            let bytes = export(&connect().await?, &id, &path).await?;
            output.result(
                || {
                    let fields = serde_json::json!({"session_id": id, "bytes": bytes});
                    json::named("exported", fields)
                },
                || {
                    let (path, size) = (path.display(), display::bytes(bytes));
                    format!("exported session {id} to {path} ({size})")
                },
            )
        }
        SessionsCommand::Import { file, session } => {
            // Reading the file first reports its errors without a server.
            let data = std::fs::read(&file).map_err(|error| Failure::unreadable(&file, &error))?;
            import(&connect().await?, data, session, output).await
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
    let request = GetSessionRequest { session_id: id };
    let response = connection.sessions().get_session(request).await?;
    let session = response.into_inner().session.unwrap_or_default();
    output.result(
        || json::object("Session", &session),
        || description(&session),
    )
}

/// Copies session `id` to session `new` and returns the copy.
pub(super) async fn fork(connection: &Connection, id: &str, new: &str) -> Result<Session, Failure> {
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
        || format!("deleted session {id}"),
    )
}

/// Writes a session to a file and returns the size of the file in bytes.
pub(super) async fn export(connection: &Connection, id: &str, path: &Path) -> Result<u64, Failure> {
    let request = ExportSessionRequest {
        session_id: id.to_owned(),
    };
    let response = connection.sessions().export_session(request).await?;
    let data = response.into_inner().data;
    std::fs::write(path, &data).map_err(|error| Failure::Io {
        action: format!("write {}", path.display()),
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
    print_session("imported", "imported", &session, output)
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
    display::table(&rows)
}

fn description(session: &Session) -> String {
    display::key_values(&[
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
    ])
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.into()
}
