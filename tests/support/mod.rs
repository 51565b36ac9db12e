//! A real server for the tests at the top: the program `charlstm-server` on a
//! free port, with a data folder that is gone afterwards. What the tests ask
//! of it is not here.

// Each test program compiles this and uses what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::Channel;

/// Ample for a slow machine that runs other tests too; reached only by a
/// server that hangs.
const START_LIMIT: Duration = Duration::from_secs(60);
/// As above; a clean stop saves trainings and sessions.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running `charlstm-server`. It is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    url: String,
    folder: TempDir,
    /// Open, so that the server never writes into a closed pipe.
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a server with an empty data folder and further flags. Blocks
    /// until it says where it listens; panics, with its log, when it does not.
    pub(crate) fn start(extra_flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), extra_flags)
    }

    /// As [`Server::start`], in a folder that an earlier server left with
    /// [`Server::stop`].
    pub(crate) fn start_in(folder: TempDir, extra_flags: &[&str]) -> Self {
        let command = command(&folder.path().join("data"), extra_flags);
        Self::launch(folder, command)
    }

    /// As [`Server::start`], with a data folder on a disk of its own of so
    /// many bytes; the path of that folder as the server sees it is
    /// [`Server::small_disk`]. `None`, after saying so, where the system does
    /// not let a test mount one.
    pub(crate) fn start_on_small_disk(bytes: u64, extra_flags: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let options = format!("size={bytes}");
        let command = on_own_disk(&data, &options, &command(&data, extra_flags))?;
        Some(Self::launch(folder, command))
    }

    /// The data folder of [`Server::start_on_small_disk`], for tests to fill.
    pub(crate) fn small_disk(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.id()));
        root.join(self.data_dir().strip_prefix("/").unwrap())
    }

    fn launch(folder: TempDir, mut command: Command) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.path().join("server.log"))
            .unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // A server that hangs is killed, which ends the wait for its line.
        within(START_LIMIT, child.id(), || {
            stdout.read_line(&mut line).unwrap();
        });
        let server = Self {
            child,
            url: line
                .trim_end()
                .strip_prefix("listening on ")
                .unwrap_or_default()
                .to_owned(),
            folder,
            stdout,
        };
        assert!(
            !server.url.is_empty(),
            "the server did not say where it listens, but {line:?}"
        );
        server
    }

    /// Where it listens, as `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        self.url
            .split_once("://")
            .map_or(self.url.as_str(), |(_, address)| address)
    }

    /// Where it listens, as `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A folder for files of the test; the server's data folder and log are
    /// in it too.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's data folder.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> Channel {
        let endpoint = Channel::from_shared(self.url.clone()).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// Process id, for signals.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub(crate) fn signal_to_stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        send_signal(self.child.id(), signal);
    }

    /// Waits for the end; its status and what it printed after its first line.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String) {
        let id = self.child.id();
        let (child, stdout) = (&mut self.child, &mut self.stdout);
        within(STOP_LIMIT, id, || {
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            (child.wait().unwrap(), rest)
        })
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn terminate(&mut self) -> (ExitStatus, String) {
        self.signal_to_stop();
        self.wait()
    }

    /// Terminates it and keeps its folder, for [`Server::start_in`]. Panics
    /// when the exit code is not 0.
    pub(crate) fn stop(mut self) -> TempDir {
        let (status, _) = self.terminate();
        assert_eq!(status.code(), Some(0), "a clean stop");
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.folder, empty)
    }

    /// Kills it as a power cut would and keeps its folder.
    pub(crate) fn kill(mut self) -> TempDir {
        send_signal(self.child.id(), libc::SIGKILL);
        self.wait();
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.folder, empty)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.folder.path().join("server.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            eprintln!("--- log of the server ---\n{log}---");
        }
    }
}

/// The server, not yet started, on a data folder and a free port.
pub(crate) fn command(data_dir: &Path, extra_flags: &[&str]) -> Command {
    let mut command = Command::new(program());
    // What the person who runs the tests has set is not for this server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHARLSTM_") {
            command.env_remove(name);
        }
    }
    command
        .args(["--listen", "127.0.0.1:0", "--device", "cpu", "--data-dir"])
        .arg(data_dir)
        .args(extra_flags);
    command
}

/// `command` in a namespace of its own, where a small disk is mounted at
/// `data`. `None`, after saying so, where the system does not allow that.
pub(crate) fn on_own_disk(data: &Path, options: &str, command: &Command) -> Option<Command> {
    std::fs::create_dir_all(data).unwrap();
    let script = r#"mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@""#;
    let in_namespace = || {
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
                options,
            ])
            .arg(data);
        unshare
    };
    let allowed = in_namespace().arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("passed over: this system does not let a test mount a disk");
        return None;
    }
    let mut wrapped = in_namespace();
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    Some(wrapped)
}

/// The server's program, also from tests of another package.
fn program() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_charlstm-server") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("charlstm-server")
}

/// Does `work`, and kills the process if that takes longer than `limit`.
fn within<T>(limit: Duration, process: u32, work: impl FnOnce() -> T) -> T {
    let (done, watched) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if let Err(mpsc::RecvTimeoutError::Timeout) = watched.recv_timeout(limit) {
            send_signal(process, libc::SIGKILL);
        }
    });
    let result = work();
    drop(done);
    watch.join().unwrap();
    result
}

fn send_signal(process: u32, signal: libc::c_int) {
    let id = libc::pid_t::try_from(process).unwrap();
    // SAFETY: kill has no preconditions; the process is our child and has not
    // been waited for, so its id is not another process's.
    unsafe {
        libc::kill(id, signal);
    }
}

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// A program that `make python` puts into `.venv/bin`. Where it is missing:
/// `None`, after saying so; but a panic when CHARLSTM_REQUIRE_ALL is set.
pub(crate) fn python_tool(name: &str) -> Option<PathBuf> {
    let path = root().join(".venv/bin").join(name);
    installed(path, "make python")
}

/// The packages that `make node` puts into `target/node`; as
/// [`python_tool`] where they are missing.
pub(crate) fn node_modules() -> Option<PathBuf> {
    installed(root().join("target/node/node_modules"), "make node")
}

fn installed(path: PathBuf, by: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let message = format!("{} is not there; `{by}` installs it", path.display());
    assert!(
        std::env::var_os("CHARLSTM_REQUIRE_ALL").is_none(),
        "CHARLSTM_REQUIRE_ALL is set, and {message}"
    );
    eprintln!("passed over: {message}");
    None
}

/// Runs a program to its end in the root of the checkout; its standard
/// output. Panics with all that it said when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// A command of the client, for this server.
pub(crate) fn client(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(client_program());
    command
        .args(arguments)
        .env("CHARLSTM_ADDR", server.url())
        .stdin(Stdio::null());
    command
}

/// The client's program.
pub(crate) fn client_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("charlstm-client");
    assert!(
        program.exists(),
        "{} is not there: build it with `cargo build -p charlstm-client`",
        program.display()
    );
    program
}

/// What a command of the client printed and said.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command of the client to its end.
pub(crate) fn ask(server: &Server, arguments: &[&str]) -> Said {
    let output = client(server, arguments).output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a command of the client that must succeed; its standard output.
pub(crate) fn ask_ok(server: &Server, arguments: &[&str]) -> String {
    let said = ask(server, arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
    said.stdout
}

/// Lines of verse of about `chars` characters with a simple rule, so that a
/// small network learns something of it in seconds.
pub(crate) fn verse(chars: usize) -> String {
    let words = [
        "arma", "virumque", "cano", "Troiæ", "qui", "primus", "ab", "oris",
    ];
    let mut text = String::new();
    for n in 0.. {
        text.push_str(words[(n * n + n / 7) % words.len()]);
        text.push(if n % 9 == 8 { '\n' } else { ' ' });
        if text.chars().count() >= chars {
            break;
        }
    }
    text
}

/// Trains a small model for a few seconds.
pub(crate) fn train_small(server: &Server, model: &str, further: &[&str]) -> Said {
    let text = server.folder().join(format!("{model}.txt"));
    std::fs::write(&text, verse(6000)).unwrap();
    let mut arguments = vec!["train", "--text", text.to_str().unwrap(), "--model", model];
    // What the test asks for takes the place of the usual value.
    for pair in SMALL.chunks(2).filter(|pair| !further.contains(&pair[0])) {
        arguments.extend_from_slice(pair);
    }
    arguments.extend_from_slice(further);
    ask(server, &arguments)
}

/// Sizes of a network that trains in seconds.
pub(crate) const SMALL: &[&str] = &[
    "--hidden-size",
    "32",
    "--batch-size",
    "8",
    "--sequence-length",
    "20",
    "--learning-rate",
    "0.01",
    "--epochs",
    "2",
    "--seed",
    "5",
];

impl Server {
    /// Waits for the end of a server that was told to stop, and keeps its
    /// folder, for [`Server::start_in`]. Panics when the exit code is not 0.
    pub(crate) fn ended(mut self) -> TempDir {
        let (status, _) = self.wait();
        assert_eq!(status.code(), Some(0), "a clean stop");
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.folder, empty)
    }
}
