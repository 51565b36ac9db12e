//! Writes the files that a command produces. A regular file appears under its
//! name either complete or not at all; a pipe or a device is written into; a
//! file that somebody may still need is not replaced without being asked to.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::failure::{Failure, io_reason};

/// Mode of a new file before the umask is applied, as `File::create` sets it.
/// Temporary files are private by default, but these become the result.
const MODE: u32 = 0o666;

/// Maximum number of symbolic links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// What happens to a file that exists already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Existing {
    /// It is kept, and the command fails, unless it is empty.
    Keep,
    /// It is replaced.
    Replace,
}

impl Existing {
    /// Returns the mode that the flag `--force` chooses.
    pub(crate) fn from_force(force: bool) -> Self {
        if force { Self::Replace } else { Self::Keep }
    }
}

/// A file that is being written. Dropping it without [`OutputFile::commit`]
/// leaves nothing behind and an older file unchanged, unless the target is a
/// pipe or a device.
pub(crate) struct OutputFile {
    /// The name that the user gave.
    path: PathBuf,
    sink: Sink,
}

/// Where the bytes go.
enum Sink {
    /// To a temporary file that replaces `target`.
    File {
        temporary: NamedTempFile,
        /// The file behind all symbolic links.
        target: PathBuf,
        existing: Existing,
    },
    /// Into a pipe or a device.
    Stream(Box<dyn Write + Send>),
    /// To standard output.
    Stdout,
}

/// What a path stands for, once its symbolic links have been followed.
#[derive(Debug, Eq, PartialEq)]
enum Target {
    /// A regular file, or nothing yet.
    File(PathBuf),
    /// A pipe, a device or a socket.
    Special(PathBuf),
    /// An open file of this process: `/dev/fd/N`.
    Descriptor(u32),
}

impl OutputFile {
    /// Starts to write `path`; `-` is standard output. Blocks until a pipe has
    /// a reader.
    ///
    /// Fails with `Usage` if a file of that name exists and is to be kept, or
    /// if the output would go to a terminal, and with `Io` if the file cannot
    /// be created.
    pub(crate) fn create(path: &Path, existing: Existing) -> Result<Self, Failure> {
        let sink = if path == Path::new("-") {
            stdout()?
        } else {
            match follow_links(path).map_err(|error| unwritable(path, error))? {
                Target::Descriptor(1) => stdout()?,
                Target::Descriptor(number) => {
                    // Appending does not overwrite what another program that
                    // shares the file has written.
                    let name = format!("/dev/fd/{number}");
                    open_stream(Path::new(&name), OpenOptions::new().append(true), path)?
                }
                Target::Special(target) => {
                    open_stream(&target, OpenOptions::new().write(true), path)?
                }
                Target::File(target) => replacement(path, target, existing)?,
            }
        };
        Ok(Self {
            path: path.to_owned(),
            sink,
        })
    }

    /// Returns true if the bytes go to standard output, which then has room
    /// for nothing else.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self.sink, Sink::Stdout)
    }

    /// Writes bytes. Blocks.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.sink {
            // Its errors do not name the temporary file.
            Sink::File { temporary, .. } => temporary.as_file_mut().write_all(bytes),
            Sink::Stream(stream) => stream.write_all(bytes),
            Sink::Stdout => io::stdout().lock().write_all(bytes),
        };
        written.map_err(|error| self.failure(error))
    }

    /// Completes the file: syncs it to disk and gives it its name. Blocks until
    /// the data is on disk.
    ///
    /// If it fails, an older file is unchanged and the temporary file is
    /// removed.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        let (path, sink) = (self.path, self.sink);
        let committed = match sink {
            Sink::File {
                temporary,
                target,
                existing,
            } => {
                return persist(temporary, &target, existing).map_err(|error| {
                    if error.kind() == ErrorKind::AlreadyExists {
                        exists(&path)
                    } else {
                        unwritable(&path, error)
                    }
                });
            }
            Sink::Stream(mut stream) => stream.flush(),
            Sink::Stdout => io::stdout().lock().flush(),
        };
        committed.map_err(|error| unwritable(&path, error))
    }

    fn failure(&self, error: io::Error) -> Failure {
        match (&self.sink, error.kind()) {
            (Sink::Stdout, ErrorKind::BrokenPipe) => Failure::ClosedPipe,
            _ => unwritable(&self.path, error),
        }
    }
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, bytes: &[u8], existing: Existing) -> Result<(), Failure> {
    let mut file = OutputFile::create(path, existing)?;
    file.write(bytes)?;
    file.commit()
}

/// Checks before a long command that its result can be written to `path`.
/// Returns true if the file can be written several times under this name; a
/// pipe cannot. Fails like [`OutputFile::create`].
#[cfg(feature = "plot")]
pub(crate) fn check(path: &Path, existing: Existing) -> Result<bool, Failure> {
    match follow_links(path).map_err(|error| unwritable(path, error))? {
        Target::File(target) => replacement(path, target, existing).map(|_| true),
        Target::Special(_) | Target::Descriptor(_) => Ok(false),
    }
}

fn unwritable(path: &Path, error: io::Error) -> Failure {
    let reason = match error.kind() {
        ErrorKind::NotFound => format!("there is no folder {}", folder_of(path).display()),
        _ => io_reason(&error),
    };
    Failure::Io {
        action: format!("write {}", path.display()),
        source: io::Error::new(error.kind(), reason),
    }
}

fn exists(path: &Path) -> Failure {
    Failure::Usage(format!(
        "{} exists already; use --force to replace it, or choose another name",
        path.display()
    ))
}

fn stdout() -> Result<Sink, Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "standard output is a terminal; redirect it to a file or a pipe".into(),
        ));
    }
    Ok(Sink::Stdout)
}

fn open_stream(target: &Path, options: &OpenOptions, path: &Path) -> Result<Sink, Failure> {
    let stream = options
        .open(target)
        .map_err(|error| unwritable(path, error))?;
    Ok(Sink::Stream(Box::new(stream)))
}

/// Starts to write the regular file `target`, which the user named `path`.
fn replacement(path: &Path, target: PathBuf, existing: Existing) -> Result<Sink, Failure> {
    let old = fs::metadata(&target).ok();
    let is_needed = old.as_ref().is_some_and(|old| old.len() > 0);
    if is_needed && existing == Existing::Keep {
        return Err(exists(path));
    }
    let temporary = temporary_file(&target, old.as_ref().map(fs::Metadata::permissions))
        .map_err(|error| unwritable(path, error))?;
    Ok(Sink::File {
        temporary,
        target,
        // Nothing is lost with an empty file (`mktemp`).
        existing: if old.is_some() {
            Existing::Replace
        } else {
            existing
        },
    })
}

/// Creates a file with an unpredictable name in the folder of `target`, with
/// the permissions of the file that it will replace.
fn temporary_file(target: &Path, permissions: Option<Permissions>) -> io::Result<NamedTempFile> {
    let temporary = tempfile::Builder::new()
        .prefix(".charlstm-")
        .suffix(".tmp")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(folder_of(target))?;
    if let Some(permissions) = permissions {
        temporary.as_file().set_permissions(permissions)?;
    }
    Ok(temporary)
}

/// Renames a temporary file to its target after it has been synced. Fails with
/// `AlreadyExists` if the target is to be kept and somebody else has created it
/// in the meantime.
fn persist(temporary: NamedTempFile, target: &Path, existing: Existing) -> io::Result<()> {
    temporary.as_file().sync_all()?;
    match existing {
        Existing::Replace => {
            temporary.persist(target)?;
        }
        Existing::Keep => match temporary.persist_noclobber(target) {
            Ok(_) => {}
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                return Err(error.error);
            }
            // Some file systems can only rename.
            Err(error) if !target.exists() => {
                error.file.persist(target)?;
            }
            Err(error) => return Err(error.error),
        },
    }
    // Some file systems cannot sync a folder; the file itself is on disk.
    let _ = File::open(folder_of(target)).and_then(|folder| folder.sync_all());
    Ok(())
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Follows the symbolic links from `path` to what they stand for. Fails if it
/// is a folder.
fn follow_links(path: &Path) -> io::Result<Target> {
    let mut current = path.to_owned();
    for _ in 0..MAX_LINKS {
        if let Some(number) = descriptor(&current) {
            return Ok(Target::Descriptor(number));
        }
        let metadata = match fs::symlink_metadata(&current) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Target::File(current)),
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        if metadata.is_file() {
            return Ok(Target::File(current));
        }
        if !metadata.is_symlink() {
            return Ok(Target::Special(current));
        }
        current = folder_of(&current).join(fs::read_link(&current)?);
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Returns the number of the open file of this process that a path names.
fn descriptor(path: &Path) -> Option<u32> {
    let path = path.to_str()?;
    match path {
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        _ => {
            let own = format!("/proc/{}/fd/", std::process::id());
            let number = path
                .strip_prefix("/dev/fd/")
                .or_else(|| path.strip_prefix("/proc/self/fd/"))
                .or_else(|| path.strip_prefix(&own))?;
            number.parse().ok()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_that_is_not_committed_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        let mut file = OutputFile::create(&target, Existing::Keep).unwrap();
        file.write(b"half").unwrap();
        assert!(!target.exists());
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_file_that_exists_is_replaced_only_if_asked_to_or_empty() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        fs::write(&target, "").unwrap();
        write(&target, b"old", Existing::Keep).unwrap();
        let failure = write(&target, b"new", Existing::Keep).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(failure.to_string().contains("--force"), "{failure}");
        assert_eq!(fs::read(&target).unwrap(), b"old");
        write(&target, b"new", Existing::Replace).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn a_file_that_appears_during_the_writing_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.session");
        let mut file = OutputFile::create(&target, Existing::Keep).unwrap();
        file.write(b"mine").unwrap();
        fs::write(&target, "theirs").unwrap();
        assert_eq!(file.commit().unwrap_err().exit_code(), 2);
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["a.session"]);
    }

    #[test]
    fn a_new_file_has_usual_permissions_and_a_replaced_one_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("atomic");
        let usual = folder.path().join("usual");
        File::create(&usual).unwrap();
        write(&target, b"new", Existing::Keep).unwrap();
        assert_eq!(mode(&target), mode(&usual));
        fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
        write(&target, b"newer", Existing::Replace).unwrap();
        assert_eq!(mode(&target), 0o640);
    }

    #[test]
    fn two_writers_of_one_name_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        let theirs = folder.path().join("model.safetensors.partial");
        fs::write(&theirs, "theirs").unwrap();
        let mut first = OutputFile::create(&target, Existing::Replace).unwrap();
        let mut second = OutputFile::create(&target, Existing::Replace).unwrap();
        first.write(b"first").unwrap();
        second.write(b"second").unwrap();
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"first");
        assert_eq!(fs::read(&theirs).unwrap(), b"theirs");
    }

    #[test]
    fn links_are_followed_to_the_file_that_they_stand_for() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let real = other.path().join("real");
        let (link, second) = (folder.path().join("link"), folder.path().join("second"));
        symlink(&real, &second).unwrap();
        symlink("second", &link).unwrap();
        // The links dangle at first.
        write(&link, b"new", Existing::Keep).unwrap();
        write(&link, b"newer", Existing::Replace).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"newer");
        assert_eq!(names(folder.path()), ["link", "second"]);
        assert_eq!(names(other.path()), ["real"]);
        let itself = folder.path().join("loop");
        symlink("loop", &itself).unwrap();
        assert!(write(&itself, b"x", Existing::Keep).is_err());
    }

    #[test]
    fn a_pipe_is_written_into_and_stays_a_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let link = folder.path().join("link");
        symlink(&fifo, &link).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || {
                let mut content = String::new();
                File::open(fifo)
                    .unwrap()
                    .read_to_string(&mut content)
                    .unwrap();
                content
            }
        });
        write(&link, b"content", Existing::Keep).unwrap();
        assert_eq!(reader.join().unwrap(), "content");
        assert_eq!(names(folder.path()), ["fifo", "link"]);
    }

    #[test]
    fn a_device_and_a_folder_are_not_replaced() {
        write(Path::new("/dev/null"), b"content", Existing::Replace).unwrap();
        let full = write(Path::new("/dev/full"), b"content", Existing::Replace);
        assert!(full.is_err());
        for device in ["/dev/null", "/dev/full"] {
            assert!(!fs::metadata(device).unwrap().is_file());
        }
        let folder = tempfile::tempdir().unwrap();
        let failure = write(folder.path(), b"content", Existing::Replace).unwrap_err();
        assert!(failure.to_string().contains("folder"), "{failure}");
    }

    #[test]
    fn names_of_open_files_of_this_process_are_recognized() {
        let own = format!("/proc/{}/fd/1", std::process::id());
        for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", &own] {
            assert_eq!(
                follow_links(Path::new(name)).unwrap(),
                Target::Descriptor(1)
            );
        }
        assert_eq!(descriptor(Path::new("/proc/1/fd/1")), None);
    }
}
