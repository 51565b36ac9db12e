//! The sessions in the data folder: saved on a clean stop, taken back at the
//! next start. Blocks on the disk.
//!
//! ```text
//! "CHLF"  version u16
//! records length u32 (not 0), a session as in `snapshot`
//! end     length u32 = 0
//! let go  count u64, then digest u64 and reason u8 each
//! ```
//!
//! The file is taken away as soon as it was read: after a crash, sessions of
//! an earlier stop would go on from the past as if nothing had happened. The
//! names in `sessions.ids` outlive a crash, so that a lost session is known
//! as lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::id::{MAX_ID_CHARS, SessionId};
use super::snapshot::Snapshot;
use super::store::SessionStore;
use super::tombstones::Reason;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 6] = b"CHLF\x01\x00";

/// Longest record that is read: a state of 16 million numbers twice. Longer
/// ones are a sign of damage.
const MAX_RECORD_BYTES: u32 = 256 << 20;

/// The list of names is written anew when it has this many lines more than
/// there are sessions: some megabytes.
const MAX_STALE_NAMES: usize = 200_000;

/// What was found at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Sessions that go on.
    pub sessions: usize,
    /// Sessions that are known to be lost.
    pub lost: usize,
}

/// Writes all sessions that no call uses, whole or not at all.
///
/// # Errors
/// What the disk said.
pub fn save(folder: &Path, store: &SessionStore) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    {
        let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        out.write_all(MAGIC)?;
        for snapshot in store.snapshots() {
            let bytes = snapshot.to_bytes();
            // A longer one could not be read back; it is lost, and known.
            if let Ok(length) = u32::try_from(bytes.len())
                && length <= MAX_RECORD_BYTES
            {
                out.write_all(&length.to_le_bytes())?;
                out.write_all(&bytes)?;
            }
        }
        out.write_all(&0u32.to_le_bytes())?;
        let remembered: Vec<_> = store.remembered().collect();
        out.write_all(&(remembered.len() as u64).to_le_bytes())?;
        for (digest, reason) in remembered {
            out.write_all(&digest.to_le_bytes())?;
            out.write_all(&[reason_byte(reason)])?;
        }
        out.flush()?;
    }
    file.as_file().sync_all()?;
    file.persist(sessions_path(folder))
        .map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Takes the saved sessions back into an empty store, and remembers those
/// that are known by name only as lost.
///
/// # Errors
/// What the disk said. A damaged file is no error: what can be read of it is
/// restored.
pub fn restore(folder: &Path, store: &mut SessionStore, now: Instant) -> io::Result<Restored> {
    fs::create_dir_all(folder)?;
    let path = sessions_path(folder);
    match File::open(&path) {
        Ok(file) => {
            if let Err(error) = read_sessions(BufReader::with_capacity(1 << 20, file), store, now) {
                tracing::warn!(%error, "the saved sessions are damaged");
            }
            fs::remove_file(&path)?;
            sync_folder(folder)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let lost = remember_lost(folder, store)?;
    Ok(Restored {
        sessions: store.len(),
        lost,
    })
}

/// Reads records until the end, or to where the file is damaged.
fn read_sessions(mut file: impl Read, store: &mut SessionStore, now: Instant) -> io::Result<()> {
    if read_array(&mut file)? != *MAGIC {
        return Err(io::Error::other("not a file of sessions"));
    }
    loop {
        let length = u32::from_le_bytes(read_array(&mut file)?);
        if length == 0 {
            break;
        }
        if length > MAX_RECORD_BYTES {
            return Err(io::Error::other("a record is too long"));
        }
        let mut bytes = Vec::new();
        file.by_ref().take(length.into()).read_to_end(&mut bytes)?;
        let snapshot = Snapshot::from_bytes(&bytes).map_err(io::Error::other)?;
        let id = snapshot.id.clone();
        if store.import(&id, snapshot, now).is_err() {
            tracing::warn!(%id, "a saved session has no place any more");
        }
    }
    let count = u64::from_le_bytes(read_array(&mut file)?);
    for _ in 0..count {
        let digest = u64::from_le_bytes(read_array(&mut file)?);
        let [reason] = read_array(&mut file)?;
        store.remember_digest(digest, reason_of(reason));
    }
    Ok(())
}

fn read_array<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn reason_byte(reason: Reason) -> u8 {
    match reason {
        Reason::Idle => 1,
        Reason::Capacity => 2,
        Reason::Restart => 3,
    }
}

/// An unknown reason of a later format is taken as the restart.
fn reason_of(byte: u8) -> Reason {
    match byte {
        1 => Reason::Idle,
        2 => Reason::Capacity,
        _ => Reason::Restart,
    }
}

/// Remembers the listed names that the store does not hold as lost.
fn remember_lost(folder: &Path, store: &mut SessionStore) -> io::Result<usize> {
    let file = match File::open(names_path(folder)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut lost = 0;
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without end, after a crash, must not fill the memory.
        let most = MAX_ID_CHARS as u64 + 2;
        if lines.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let name = std::str::from_utf8(&line).unwrap_or_default().trim_end();
        let (gone, name) = match name.strip_prefix('!') {
            Some(name) => (true, name),
            None => (false, name),
        };
        let Ok(id) = SessionId::new(name) else {
            continue;
        };
        if gone {
            store.forget_lost(&id);
        } else if store.remember_lost(&id, Reason::Restart) {
            lost += 1;
        }
    }
    Ok(lost)
}

/// The list of the names of all sessions, so that those that a crash takes
/// are known as lost. Lines are appended without waiting for the disk: what
/// is to be outlived is the end of the process, not that of the machine.
#[derive(Debug)]
pub struct SessionLog {
    folder: PathBuf,
    file: File,
    lines: usize,
}

impl SessionLog {
    /// Begins a new list with the sessions that there are.
    ///
    /// # Errors
    /// What the disk said.
    pub fn begin(folder: &Path, store: &SessionStore) -> io::Result<Self> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        let mut lines = 0;
        let mut out = BufWriter::new(file.as_file_mut());
        for id in store.ids() {
            writeln!(out, "{id}")?;
            lines += 1;
        }
        out.flush()?;
        drop(out);
        file.persist(names_path(folder))
            .map_err(|error| error.error)?;
        Ok(Self {
            folder: folder.to_owned(),
            file: OpenOptions::new().append(true).open(names_path(folder))?,
            lines,
        })
    }

    /// Adds a session.
    ///
    /// # Errors
    /// What the disk said.
    pub fn add(&mut self, id: &SessionId) -> io::Result<()> {
        self.append(format!("{id}\n"))
    }

    /// Takes a session off that was deleted on purpose: it is not lost.
    ///
    /// # Errors
    /// What the disk said.
    pub fn strike(&mut self, id: &SessionId) -> io::Result<()> {
        self.append(format!("!{id}\n"))
    }

    /// True when most of the list is about sessions that are gone, and it
    /// should be begun anew.
    pub fn is_stale(&self, sessions: usize) -> bool {
        self.lines > sessions + MAX_STALE_NAMES
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn append(&mut self, line: String) -> io::Result<()> {
        self.lines += 1;
        self.file.write_all(line.as_bytes())
    }
}

fn sessions_path(folder: &Path) -> PathBuf {
    folder.join("sessions.bin")
}

fn names_path(folder: &Path) -> PathBuf {
    folder.join("sessions.ids")
}

/// Makes the folder's entries durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
