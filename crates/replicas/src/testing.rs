//! A throw-away PostgreSQL server for tests: one per test process, with a fresh
//! database for each test.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::database::{Database, DatabaseSettings, DatabaseUrl};

/// Runs the server until the standard input ends, which happens however the test
/// process ends, and then removes the folder.
const SUPERVISOR: &str = r#"
"$1/postgres" -D "$2/data" -p "$3" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories="$2" -c fsync=off -c max_connections=200 &
server=$!
read -r _
kill -QUIT "$server"
wait "$server"
rm -rf "$2"/*
rmdir "$2"
"#;

/// Where the server of this process listens; `None` if PostgreSQL is not
/// installed.
static SERVER: OnceLock<Option<u16>> = OnceLock::new();

/// Whether tests can use PostgreSQL; if not, a message says so.
///
/// # Panics
/// If it is not installed and CHARLSTM_REQUIRE_ALL is set.
pub fn is_postgres_installed() -> bool {
    let is_installed = programs().is_some();
    if !is_installed {
        let reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)";
        assert!(
            std::env::var_os("CHARLSTM_REQUIRE_ALL").is_none(),
            "CHARLSTM_REQUIRE_ALL is set, and {reason}"
        );
        eprintln!("skipped: {reason}");
    }
    is_installed
}

/// Returns a new, migrated database on the server of this process, which is
/// started if it does not run. `None`, after a message, if PostgreSQL is not
/// installed.
///
/// # Panics
/// If the server cannot be started, or if PostgreSQL is not installed and
/// CHARLSTM_REQUIRE_ALL is set.
pub async fn test_database() -> Option<Database> {
    let settings = DatabaseSettings::new(test_database_url().await?);
    let database = Database::connect(settings).await;
    Some(database.unwrap_or_else(|error| panic!("{error}")))
}

/// Returns the URL of a new, empty database, see [`test_database`].
///
/// # Panics
/// As [`test_database`].
pub async fn test_database_url() -> Option<DatabaseUrl> {
    // Blocks for a second or two, once.
    let port = tokio::task::spawn_blocking(|| *SERVER.get_or_init(start_server));
    let port = port.await.unwrap_or_else(|error| panic!("{error}"))?;
    let name = format!("test_{}", Uuid::new_v4().simple());
    let create = Command::new(programs()?.join("psql"))
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-U", "charlstm", "-d", "postgres"])
        .args(["-c", &format!("CREATE DATABASE {name}")])
        .status();
    assert!(create.is_ok_and(|status| status.success()), "no database");
    let url = format!("postgres://charlstm@127.0.0.1:{port}/{name}");
    Some(url.parse().unwrap_or_else(|error| panic!("{error}")))
}

/// The folder of the programs of PostgreSQL, of the highest version.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let versions = versions.filter_map(|entry| {
        let path = entry.ok()?.path();
        let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let programs = path.join("bin");
        programs
            .join("initdb")
            .exists()
            .then_some((version, programs))
    });
    Some(versions.max()?.1)
}

fn start_server() -> Option<u16> {
    if !is_postgres_installed() {
        return None;
    }
    let programs = programs()?;
    Some(start(&programs).unwrap_or_else(|error| panic!("PostgreSQL cannot be started: {error}")))
}

fn start(programs: &Path) -> io::Result<u16> {
    let folder = tempfile::Builder::new()
        .prefix("charlstm-postgres-")
        .tempdir()?;
    let user = unprivileged_user();
    if let Some((uid, gid)) = user {
        chown(folder.path(), Some(uid), Some(gid))?;
    }
    let run_as_user = |program: &Path| {
        let mut command = Command::new(program);
        // It must be able to read the folder that it is started in.
        command.current_dir("/").stdout(Stdio::null());
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        command
    };
    let data = folder.path().join("data");
    let created = run_as_user(&programs.join("initdb"))
        .args(["-U", "charlstm", "-A", "trust", "-E", "UTF8", "--locale=C"])
        .args(["--no-sync", "-D"])
        .arg(data)
        .status()?;
    if !created.success() {
        return Err(io::Error::other("initdb failed"));
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let log = File::create(folder.path().join("log"))?;
    let mut supervisor = run_as_user(Path::new("/bin/sh"))
        .args(["-c", SUPERVISOR, "supervisor"])
        .arg(programs)
        .arg(folder.path())
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stderr(log)
        // A signal for the tests is not one for the server.
        .process_group(0)
        .spawn()?;
    // Open until this process ends.
    std::mem::forget(supervisor.stdin.take());
    let started = Instant::now();
    while !is_ready(programs, port) {
        if started.elapsed() > Duration::from_secs(30) {
            let log = std::fs::read_to_string(folder.path().join("log"));
            return Err(io::Error::other(log.unwrap_or_default()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Removed by the supervisor.
    let _ = folder.keep();
    Ok(port)
}

fn is_ready(programs: &Path, port: u16) -> bool {
    let status = Command::new(programs.join("pg_isready"))
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .status();
    status.is_ok_and(|status| status.success())
}

/// The user and group that the server runs as: PostgreSQL refuses to run as
/// root.
fn unprivileged_user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|user| Some((id(&["-u", user])?, id(&["-g", user])?)))
}
