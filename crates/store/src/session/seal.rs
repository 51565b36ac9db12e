//! Sealed snapshots: sessions that clients hold, and exported sessions.
//!
//! A snapshot continues a session on any server that has the key and the
//! model. Its seal is an HMAC-SHA-256: it protects the integrity of a
//! snapshot, not its confidentiality, and binds it to the principal that got
//! it, to the model's content, the precision and the arithmetic. It contains
//! no characters of the last call, so it cannot be rewound. Numbers are
//! little-endian.
//!
//! ```text
//! magic      "CHSS"
//! format     u16                           now 1
//! key        [u8; 8]                       which key has sealed it
//! principal  text
//! id         text                          empty if it was never stored
//! precision  u8                            1 float32, 2 int8
//! revision   u16                           revision of the arithmetic
//! model      text, version u64, digest [u8; 32]
//! state      as in a session record
//! seal       [u8; 32]
//!
//! seal       HMAC-SHA-256 of "charlstm session snapshot", a zero byte, and
//!            all of the above
//! key        the first 8 bytes of the SHA-256 of "charlstm snapshot key", a
//!            zero byte, and the key
//! text       length u16, UTF-8
//! ```

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::embedded::parse_export_of_version_0_1;
use super::encoding::{Reader, Writer};
use super::error::RecordError;
use super::identity::{ARITHMETIC_REVISION, Precision, SessionIdentity};
use super::name::{Owner, SessionId, SessionKey};
use super::record::{LastCall, SessionRecord, SessionState};
use crate::secret_file::{self, SecretFileError};
use crate::{atomic_file, hex};

const MAGIC: &[u8; 4] = b"CHSS";

/// Version of the format that is written, and the only one that is read.
pub const SNAPSHOT_FORMAT: u16 = 1;

const SEAL_LABEL: &[u8] = b"charlstm session snapshot\0";
const KEY_LABEL: &[u8] = b"charlstm snapshot key\0";
const SEAL_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;

/// Maximum number of keys in a file: one that seals, and those of some
/// rotations whose snapshots are still around.
const MAX_KEYS: usize = 64;

/// Maximum size of a key file.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A session as a client holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// The principal that it was made for.
    pub principal: Owner,
    /// The id that the session was stored under, if it was.
    pub id: Option<SessionId>,
    /// Model, precision and arithmetic.
    pub identity: SessionIdentity,
    /// The state from which the next call continues.
    pub state: SessionState,
}

/// Bytes that are not a snapshot that this server accepts. To a client, all
/// of it is `INVALID_ARGUMENT`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// They do not begin as a snapshot does.
    #[error("the bytes are not a session snapshot")]
    Magic,
    /// They are of another format.
    #[error("snapshot format {0} is not supported; this version reads format {SNAPSHOT_FORMAT}")]
    Format(u16),
    /// They were sealed with a key that this server does not have.
    #[error("the snapshot was sealed with a key that this server does not have")]
    UnknownKey,
    /// They were changed, or made without the key.
    #[error("the seal of the snapshot is not valid: it was changed or forged")]
    Forged,
    /// It was made for another principal.
    #[error("the snapshot was made for another principal")]
    OtherPrincipal,
    /// It belongs to another content of the model.
    #[error("the snapshot belongs to another version of the model")]
    OtherModel,
    /// It was made with another precision.
    #[error("the snapshot was made with precision {found}, not {expected}")]
    OtherPrecision {
        /// Its precision.
        found: Precision,
        /// The precision that was asked for.
        expected: Precision,
    },
    /// It was made by another definition of the arithmetic.
    #[error(
        "the snapshot was made with revision {0} of the arithmetic; \
         this server computes with revision {ARITHMETIC_REVISION}"
    )]
    OtherRevision(u16),
    /// The content makes no sense.
    #[error(transparent)]
    Content(#[from] RecordError),
}

impl SessionSnapshot {
    /// The snapshot of a stored session.
    pub fn of(record: &SessionRecord) -> Self {
        Self {
            principal: record.key.owner.clone(),
            id: Some(record.key.id.clone()),
            identity: record.identity.clone(),
            state: record.end.clone(),
        }
    }

    /// Checks that a call on this model and precision can continue it.
    ///
    /// # Errors
    /// `OtherModel`, `OtherPrecision`, `OtherRevision`.
    pub fn check(&self, digest: &[u8; 32], precision: Precision) -> Result<(), SealError> {
        if self.identity.digest != *digest {
            return Err(SealError::OtherModel);
        }
        if self.identity.precision != precision {
            return Err(SealError::OtherPrecision {
                found: self.identity.precision,
                expected: precision,
            });
        }
        if self.identity.revision != ARITHMETIC_REVISION {
            return Err(SealError::OtherRevision(self.identity.revision));
        }
        Ok(())
    }

    fn encode(&self, key: &SnapshotKey) -> Result<Vec<u8>, RecordError> {
        self.state.check()?;
        let network = self.state.network.as_ref().map_or(0, Bytes::len);
        let mut writer = Writer(Vec::with_capacity(512 + network));
        writer.bytes(MAGIC);
        writer.u16(SNAPSHOT_FORMAT);
        writer.bytes(&key.id);
        writer.text(self.principal.as_str());
        writer.text(self.id.as_ref().map_or("", SessionId::as_str));
        writer.precision(self.identity.precision);
        writer.u16(self.identity.revision);
        writer.model(&self.identity.model, &self.identity.digest)?;
        writer.state(&self.state, None);
        Ok(writer.0)
    }

    /// Reads everything after the id of the key.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let principal = reader.owner()?;
        let id = match reader.text()? {
            "" => None,
            id => {
                let invalid = |_| RecordError::Content("the session id is invalid");
                Some(SessionId::new(id).map_err(invalid)?)
            }
        };
        let precision = reader.precision()?;
        let revision = reader.u16()?;
        let (model, digest) = reader.model()?;
        let state = reader.state(None)?;
        reader.finish()?;
        state.check()?;
        Ok(Self {
            principal,
            id,
            identity: SessionIdentity {
                model,
                digest,
                precision,
                revision,
            },
            state,
        })
    }
}

/// A session from outside, to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortableSession {
    /// The id that it was stored under, if it was.
    pub id: Option<SessionId>,
    /// Model, precision and arithmetic.
    pub identity: SessionIdentity,
    /// The state at the beginning of its last call; that at its end if the
    /// call cannot be repeated.
    pub begin: SessionState,
    /// The state from which the next call continues.
    pub end: SessionState,
    /// What is known of the last call.
    pub last_call: LastCall,
}

impl From<SessionSnapshot> for PortableSession {
    fn from(snapshot: SessionSnapshot) -> Self {
        Self {
            id: snapshot.id,
            identity: snapshot.identity,
            begin: snapshot.state.clone(),
            end: snapshot.state,
            last_call: LastCall::default(),
        }
    }
}

impl PortableSession {
    /// Reads bytes without checking a seal: snapshots sealed with any key, and
    /// exports of version 0.1. The content is checked as far as that is
    /// possible without the model; the caller checks that the states have its
    /// size, and every token id its vocabulary.
    ///
    /// # Errors
    /// `Magic`, `Format`, `Content`.
    pub fn read_unsealed(bytes: &Bytes) -> Result<Self, SealError> {
        match parse_export_of_version_0_1(bytes) {
            Err(RecordError::Magic) => {}
            record => {
                let record = record?;
                return Ok(Self {
                    id: Some(record.key.id),
                    identity: record.identity,
                    begin: record.begin,
                    end: record.end,
                    last_call: record.last_call,
                });
            }
        }
        let (mut reader, _) = begin(bytes)?;
        Ok(SessionSnapshot::decode(&mut reader)?.into())
    }

    /// The record to store under a key.
    pub fn into_record(self, key: SessionKey) -> SessionRecord {
        SessionRecord {
            key,
            identity: self.identity,
            begin: self.begin,
            end: self.end,
            last_call: self.last_call,
            created_unix_ms: 0,
            last_used_ms: 0,
        }
    }
}

/// Reads the beginning of a snapshot, up to the id of its key.
fn begin(bytes: &Bytes) -> Result<(Reader<'_>, [u8; KEY_ID_BYTES]), SealError> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len()) != Ok(MAGIC) {
        return Err(SealError::Magic);
    }
    let format = reader.u16().map_err(|_| SealError::Magic)?;
    if format != SNAPSHOT_FORMAT {
        return Err(SealError::Format(format));
    }
    let key = reader.array().map_err(|_| SealError::Forged)?;
    let end = bytes.len().checked_sub(SEAL_BYTES);
    reader.end_at(end.ok_or(SealError::Forged)?);
    Ok((reader, key))
}

/// A key that snapshots are sealed with.
#[derive(Clone)]
struct SnapshotKey {
    secret: [u8; KEY_BYTES],
    id: [u8; KEY_ID_BYTES],
}

impl fmt::Debug for SnapshotKey {
    /// Never shows the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotKey({})", hex::encode(&self.id))
    }
}

impl SnapshotKey {
    fn new(secret: [u8; KEY_BYTES]) -> Self {
        let mut hash = Sha256::new();
        hash.update(KEY_LABEL);
        hash.update(secret);
        let digest: [u8; 32] = hash.finalize().into();
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        Self { secret, id }
    }

    fn mac(&self, content: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(SEAL_LABEL);
        mac.update(content);
        mac
    }
}

/// The keys of a server: the first one seals, all of them verify. To rotate,
/// add the new key in front on every replica's file once all replicas have it
/// behind.
#[derive(Clone, Debug)]
pub struct SnapshotKeys(Vec<SnapshotKey>);

/// A key file that cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// It cannot be created.
    #[error("cannot create the snapshot key file {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// It cannot be read, or every user can read or change it.
    #[error("snapshot key file {0}")]
    Unusable(#[from] SecretFileError),
    /// It has something else than keys.
    #[error(
        "{}, line {line}: a snapshot key is {digits} hexadecimal digits, one key in a line, for \
         example from: openssl rand -hex {KEY_BYTES}", .path.display(), digits = 2 * KEY_BYTES
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The first line that is not a key, from 1.
        line: usize,
    },
    /// It has no key, or too many.
    #[error("{} has {count} snapshot keys; 1 to {MAX_KEYS} are allowed", .path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
}

impl SnapshotKeys {
    /// Reads a key file: one key of 64 hexadecimal digits in a line; empty
    /// lines and lines that begin with `#` are ignored. Blocks on the disk.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let text = secret_file::read(path, MAX_FILE_BYTES)?;
        Self::parse(&text, path)
    }

    /// Reads a key file, which is created with one random key if it does not
    /// exist. Blocks on the disk.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read_or_create(path: &Path) -> Result<Self, KeyFileError> {
        if let Err(source) = create(path) {
            let path = path.to_owned();
            return Err(KeyFileError::Io { path, source });
        }
        Self::read(path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, KeyFileError> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let secret = hex::decode(line).ok_or_else(|| KeyFileError::Line {
                path: path.to_owned(),
                line: number + 1,
            })?;
            keys.push(SnapshotKey::new(secret));
        }
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(KeyFileError::Count {
                path: path.to_owned(),
                count: keys.len(),
            });
        }
        Ok(Self(keys))
    }

    /// Seals a snapshot with the first key.
    ///
    /// # Errors
    /// The state breaks a limit.
    pub fn seal(&self, snapshot: &SessionSnapshot) -> Result<Bytes, RecordError> {
        // There is at least one.
        let key = &self.0[0];
        let mut bytes = snapshot.encode(key)?;
        let seal = key.mac(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&seal);
        Ok(bytes.into())
    }

    /// Verifies the seal of a snapshot, in constant time, and reads it.
    /// `principal` is the caller; `None` accepts the snapshots of all, for
    /// administrators and for servers without principals.
    ///
    /// # Errors
    /// Any but `OtherModel`, `OtherPrecision` and `OtherRevision`, which
    /// [`SessionSnapshot::check`] finds.
    pub fn open(
        &self,
        bytes: &Bytes,
        principal: Option<&Owner>,
    ) -> Result<SessionSnapshot, SealError> {
        let (mut reader, id) = begin(bytes)?;
        let key = self.0.iter().find(|key| key.id == id);
        let key = key.ok_or(SealError::UnknownKey)?;
        let (content, seal) = bytes
            .split_last_chunk::<SEAL_BYTES>()
            .ok_or(SealError::Forged)?;
        let verified = key.mac(content).verify_slice(seal);
        verified.map_err(|_| SealError::Forged)?;
        let snapshot = SessionSnapshot::decode(&mut reader)?;
        if principal.is_some_and(|principal| *principal != snapshot.principal) {
            return Err(SealError::OtherPrincipal);
        }
        Ok(snapshot)
    }
}

/// Creates a key file with a random key, unless there is one.
fn create(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let secret: [u8; KEY_BYTES] = rand::random();
    let mut file = atomic_file::AtomicFile::create(path)?;
    writeln!(
        file,
        "# Seals the session snapshots of this server. Keep it secret."
    )?;
    writeln!(file, "{}", hex::encode(&secret))?;
    match file.commit_new() {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::fixture::{identity, key, parameters, state};
    use super::*;

    const FIRST: &str = "0101010101010101010101010101010101010101010101010101010101010101";
    const SECOND: &str = "0202020202020202020202020202020202020202020202020202020202020202";

    fn keys(lines: &[&str]) -> SnapshotKeys {
        SnapshotKeys::parse(&lines.join("\n"), Path::new("keys")).unwrap()
    }

    fn alice() -> Owner {
        Owner::new("alice").unwrap()
    }

    fn snapshot() -> SessionSnapshot {
        SessionSnapshot {
            principal: alice(),
            id: Some(SessionId::new("tale-1").unwrap()),
            identity: identity("book", 3),
            state: SessionState {
                network: Some(Bytes::from_static(&[1, 2, 3, 4])),
                ..state(7)
            },
        }
    }

    // The file was written by hand after the description of the format. It
    // must never change: clients hold such snapshots.
    #[test]
    fn format_1_is_written_and_read_as_it_always_was() {
        let golden = include_bytes!("../../tests/data/session-snapshot-1.bin");
        let golden = Bytes::from_static(golden);
        let keys = keys(&[FIRST]);
        assert_eq!(keys.seal(&snapshot()).unwrap(), golden);
        assert_eq!(keys.open(&golden, Some(&alice())), Ok(snapshot()));
    }

    #[test]
    fn every_key_verifies_and_the_first_one_seals() {
        let old = keys(&[FIRST]).seal(&snapshot()).unwrap();
        let both = keys(&["# new", SECOND, "", FIRST]);
        assert!(both.open(&old, None).is_ok());
        let new = both.seal(&snapshot()).unwrap();
        assert!(keys(&[SECOND]).open(&new, None).is_ok());
        let unknown = keys(&[FIRST]).open(&new, None);
        assert_eq!(unknown, Err(SealError::UnknownKey));
    }

    #[test]
    fn a_changed_or_cut_snapshot_is_rejected() {
        let keys = keys(&[FIRST]);
        let sealed = keys.seal(&snapshot()).unwrap();
        for at in 0..sealed.len() {
            assert!(keys.open(&sealed.slice(..at), None).is_err());
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            let error = keys.open(&changed.into(), None).unwrap_err();
            let expected = match at {
                0..4 => SealError::Magic,
                4 => SealError::Format(0),
                5 => SealError::Format(257),
                6..14 => SealError::UnknownKey,
                _ => SealError::Forged,
            };
            assert_eq!(error, expected, "{at}");
        }
    }

    #[test]
    fn a_snapshot_of_another_principal_is_rejected() {
        let keys = keys(&[FIRST]);
        let sealed = keys.seal(&snapshot()).unwrap();
        let bob = Owner::new("bob").unwrap();
        let opened = keys.open(&sealed, Some(&bob));
        assert_eq!(opened, Err(SealError::OtherPrincipal));
        assert!(keys.open(&sealed, None).is_ok());
    }

    #[test]
    fn a_snapshot_continues_only_on_its_model_and_arithmetic() {
        let snapshot = snapshot();
        let digest = snapshot.identity.digest;
        assert_eq!(snapshot.check(&digest, Precision::Int8), Ok(()));
        let other = snapshot.check(&[0; 32], Precision::Int8);
        assert_eq!(other, Err(SealError::OtherModel));
        let other = snapshot.check(&digest, Precision::Float32);
        assert!(matches!(other, Err(SealError::OtherPrecision { .. })));
        let mut later = snapshot;
        later.identity.revision = 2;
        let other = later.check(&digest, Precision::Int8);
        assert_eq!(other, Err(SealError::OtherRevision(2)));
    }

    #[test]
    fn unsealed_bytes_are_read_and_checked_as_untrusted_input() {
        let sealed = keys(&[FIRST]).seal(&snapshot()).unwrap();
        let read = PortableSession::read_unsealed(&sealed).unwrap();
        assert_eq!(read.end, snapshot().state);
        let record = read.into_record(key("b"));
        assert_eq!(record.check(), Ok(()));
        assert_eq!((record.begin, record.last_call.tokens), (record.end, None));
        let old = include_bytes!("../../tests/data/version-0.1/export.chls");
        let old = PortableSession::read_unsealed(&Bytes::from_static(old)).unwrap();
        assert_eq!(old.id.unwrap().as_str(), "tale");
        assert_eq!(old.begin.position, 12);
        let other = PortableSession::read_unsealed(&Bytes::from_static(b"GIF89a"));
        assert_eq!(other, Err(SealError::Magic));
    }

    #[test]
    fn a_snapshot_is_the_end_of_a_record_without_its_last_call() {
        let record = SessionRecord {
            key: key("a"),
            identity: identity("book", 1),
            begin: state(3),
            end: state(9),
            last_call: LastCall {
                tokens: None,
                parameters: Some(parameters("p")),
            },
            created_unix_ms: 1,
            last_used_ms: 2,
        };
        let snapshot = SessionSnapshot::of(&record);
        assert_eq!(snapshot.state, state(9));
        assert_eq!(snapshot.principal, Owner::admin());
    }

    #[test]
    fn key_files_with_something_else_than_keys_are_rejected_with_the_line() {
        let parse = |text: &str| SnapshotKeys::parse(text, Path::new("keys"));
        let short = format!("# a key\n\n{FIRST}\n{}", &SECOND[1..]);
        let error = parse(&short).unwrap_err();
        assert!(matches!(error, KeyFileError::Line { line: 4, .. }));
        assert!(error.to_string().contains("64 hexadecimal digits"));
        let none = parse("# none\n").unwrap_err();
        assert!(matches!(none, KeyFileError::Count { count: 0, .. }));
        let debug = format!("{:?}", keys(&[FIRST]));
        assert!(!debug.contains("0101"), "{debug}");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_is_created_once_and_must_not_be_open_to_everybody() {
        use std::fs;
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let first = SnapshotKeys::read_or_create(&path).unwrap();
        let second = SnapshotKeys::read_or_create(&path).unwrap();
        assert_eq!(first.0[0].secret, second.0[0].secret);
        for mode in [0o644, 0o602] {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(&path, permissions).unwrap();
            let error = SnapshotKeys::read(&path).unwrap_err();
            assert!(error.to_string().contains("chmod o-rwx"), "{error}");
        }
        let missing = SnapshotKeys::read(&folder.path().join("none"));
        assert!(matches!(missing, Err(KeyFileError::Unusable(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_with_a_valid_seal_are_rejected_without_a_panic(bytes: Vec<u8>) {
            let keys = keys(&[FIRST]);
            let mut forged = b"CHSS\x01\x00".to_vec();
            forged.extend(keys.0[0].id);
            forged.extend(&bytes);
            let seal = keys.0[0].mac(&forged).finalize().into_bytes();
            forged.extend_from_slice(&seal);
            let forged = Bytes::from(forged);
            prop_assert!(keys.open(&forged, None).is_err());
            prop_assert!(PortableSession::read_unsealed(&forged).is_err());
            prop_assert!(PortableSession::read_unsealed(&bytes.into()).is_err());
        }
    }
}
