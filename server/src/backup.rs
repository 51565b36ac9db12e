//! `charlstm-server backup`: a consistent copy of a data folder, from which a
//! server can be started, also while a server uses the folder.
//!
//! A running server makes the copy itself, because only it can copy its
//! sessions; `serve_requests` waits for the command on a socket in the data
//! folder that only its owner can use. Without a running server, the command
//! opens the sessions and makes the copy.
//!
//! The sessions are copied first: a model that a session needs is there
//! before the session is. Models never change. Of a training, the checkpoints
//! are copied before the events, so the copy is in a state that a crash could
//! have left, and can be resumed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use charlstm_store::atomic_file::sync_folder;
use charlstm_store::session::{SessionError, SessionStorage};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::data_folder::{
    DataFolderError, MODELS, SESSIONS, SNAPSHOT_KEY, TRAININGS, check_has_data, lock,
    open_sessions_to_copy,
};

/// Name of the socket in the data folder.
const SOCKET: &str = "control.sock";

/// Longest request and response: a path, or a message with one.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// Time for the command to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A backup could not be made. Nothing is left in its place.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The target exists.
    #[error("{} already exists; name a folder that does not", .0.display())]
    Exists(PathBuf),
    /// The data folder cannot be used.
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    /// A file could not be copied.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The sessions could not be copied.
    #[error("the sessions could not be copied: {0}")]
    Sessions(String),
    /// The running server reports an error, or does not answer.
    #[error("the running server could not make the backup: {0}")]
    Server(String),
}

impl BackupError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

impl From<SessionError> for BackupError {
    fn from(error: SessionError) -> Self {
        Self::Sessions(error.to_string())
    }
}

/// What the command asks of a running server, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// Absolute path of the folder to create.
    backup: PathBuf,
}

/// The answer, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Response {
    /// What went wrong; `None` if the backup is complete.
    error: Option<String>,
}

/// Makes a backup of `data` in `target`, which must not exist.
///
/// # Errors
/// [`BackupError`].
pub async fn back_up(data: &Path, target: &Path) -> Result<(), BackupError> {
    let target = std::path::absolute(target).map_err(BackupError::io(target))?;
    check_has_data(data)?;
    match lock(data) {
        Ok(_lock) => {
            let sessions = open_sessions_to_copy(data)
                .map_err(|error| BackupError::Sessions(error.to_string()))?;
            copy(&sessions, data, &target).await?;
            Ok(sessions.shutdown().await?)
        }
        Err(DataFolderError::InUse(_)) => ask_server(data, target).await,
        Err(error) => Err(error.into()),
    }
}

async fn ask_server(data: &Path, target: PathBuf) -> Result<(), BackupError> {
    let failed = |error: io::Error| BackupError::Server(error.to_string());
    let folder = File::open(data).map_err(BackupError::io(data))?;
    let stream = UnixStream::connect(socket_path(&folder))
        .await
        .map_err(failed)?;
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_vec(&Request { backup: target }).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(failed)?;
    let mut answer = String::new();
    let mut bounded = stream.take(MAX_LINE_BYTES);
    bounded.read_line(&mut answer).await.map_err(failed)?;
    let response: Response = serde_json::from_str(&answer)
        .map_err(|_| BackupError::Server("it ended before the backup was complete".to_owned()))?;
    response
        .error
        .map_or(Ok(()), |e| Err(BackupError::Server(e)))
}

/// Makes backups on request until `shutdown`. The socket is created with
/// permissions for its owner only.
///
/// # Errors
/// The socket cannot be created.
pub(crate) fn serve_requests(
    data: &Path,
    sessions: Arc<dyn SessionStorage>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let folder = File::open(data)?;
    let path = socket_path(&folder);
    // What a killed server left behind; this server holds the folder's lock.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let data = data.to_owned();
    tokio::spawn(async move {
        // One at a time: a second backup would only slow down the first.
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let outcome = match accepted {
                Ok((stream, _)) => answer(stream, &data, sessions.as_ref()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "a backup request failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // The next server removes a socket that is left behind.
        let _ = fs::remove_file(socket_path(&folder));
    });
    Ok(())
}

async fn answer(stream: UnixStream, data: &Path, sessions: &dyn SessionStorage) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut bounded = (&mut stream).take(MAX_LINE_BYTES);
    tokio::time::timeout(REQUEST_TIMEOUT, bounded.read_line(&mut line)).await??;
    let request: Request = serde_json::from_str(&line)?;
    let target = request.backup;
    tracing::info!(folder = %target.display(), "backup started");
    let outcome = copy(sessions, data, &target).await;
    match &outcome {
        Ok(()) => tracing::info!(folder = %target.display(), "backup completed"),
        Err(error) => tracing::error!(%error, "the backup failed"),
    }
    let error = outcome.err().map(|error| error.to_string());
    let mut response = serde_json::to_vec(&Response { error })?;
    response.push(b'\n');
    stream.write_all(&response).await
}

/// The path of the socket through the open folder: short, because the system
/// limits the path of a socket to about a hundred bytes.
fn socket_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Copies sessions, models and trainings to a temporary folder next to
/// `target` and renames it when it is complete and durable.
async fn copy(
    sessions: &dyn SessionStorage,
    data: &Path,
    target: &Path,
) -> Result<(), BackupError> {
    if target.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(target.to_owned()));
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    let staging = tempfile::Builder::new()
        .prefix(".backup-")
        .tempdir_in(parent)
        .map_err(BackupError::io(parent))?;
    sessions.backup(&staging.path().join(SESSIONS)).await?;
    let (from, to) = (data.to_owned(), staging.path().to_owned());
    let copied = tokio::task::spawn_blocking(move || copy_files(&from, &to)).await;
    copied.map_err(|error| BackupError::Server(error.to_string()))??;
    fs::rename(staging.path(), target).map_err(BackupError::io(target))?;
    // It has its name now: there is nothing to remove.
    let _ = staging.keep();
    sync_folder(parent).map_err(BackupError::io(parent))
}

fn copy_files(data: &Path, target: &Path) -> Result<(), BackupError> {
    // A folder that has sealed no snapshot yet has no key.
    copy_file(&data.join(SNAPSHOT_KEY), &target.join(SNAPSHOT_KEY))?;
    copy_folder(&data.join(MODELS), &target.join(MODELS))?;
    copy_folder(&data.join(TRAININGS), &target.join(TRAININGS))
}

/// Copies a folder with its subfolders. What is removed in the meantime is
/// left out: a deleted model, or the corpus of a training that has succeeded.
/// Names that begin with a dot are files and folders that are being written.
fn copy_folder(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::create_dir(to).map_err(BackupError::io(to))?;
    let mut names: Vec<_> = match fs::read_dir(from) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()
            .map_err(BackupError::io(from))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BackupError::io(from)(error)),
    };
    names.retain(|name| !name.to_string_lossy().starts_with('.'));
    // Checkpoints before events: see the documentation of the module.
    names.sort_by_key(|name| {
        (
            !name.to_string_lossy().starts_with("checkpoint"),
            name.clone(),
        )
    });
    for name in names {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy_folder(&from, &to)?;
            continue;
        }
        copy_file(&from, &to)?;
    }
    sync_folder(to).map_err(BackupError::io(to))
}

/// Copies a file if it exists.
fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    let copied = fs::copy(from, to).and_then(|_| File::open(to)?.sync_all());
    match copied {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(BackupError::io(from)),
    }
}
