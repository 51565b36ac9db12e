//! Files with secrets: keys, and who may call. One rule applies to all of them:
//! users who are neither the owner nor in the group have no access.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Permissions of users who are neither the owner nor in the group. The group
/// may have access: secrets that are mounted into a container often belong to
/// root and a group.
#[cfg(unix)]
const OTHERS: u32 = 0o007;

/// A file with secrets that cannot be used. The message contains no secret.
#[derive(Debug, Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Every user of the machine can read or change it.
    #[error("{path} can be read or changed by every user of this machine; run: chmod o-rwx {path}", path = .0.display())]
    OpenToAll(PathBuf),
    /// It is larger than such a file may be.
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The maximum.
        max_bytes: u64,
    },
    /// It is not text.
    #[error("{} is not UTF-8", .0.display())]
    NotText(PathBuf),
}

/// Reads a text of at most `max_bytes`, without its byte order mark if it has
/// one. Blocks.
///
/// # Errors
/// [`SecretFileError`].
pub fn read(path: &Path, max_bytes: u64) -> Result<String, SecretFileError> {
    let io = |source: io::Error| SecretFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = file.metadata().map_err(io)?;
        if metadata.permissions().mode() & OTHERS != 0 {
            return Err(SecretFileError::OpenToAll(path.to_owned()));
        }
    }
    let mut bytes = Vec::new();
    let mut bounded = (&mut file).take(max_bytes + 1);
    bounded.read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(SecretFileError::TooLarge {
            path: path.to_owned(),
            max_bytes,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| SecretFileError::NotText(path.to_owned()))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_everybody_can_use_is_rejected_with_the_command_that_helps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, "\u{feff}secret").unwrap();
        for (mode, is_rejected) in [(0o644, true), (0o602, true), (0o640, false), (0o600, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read(&path, 100);
            assert_eq!(read.is_err(), is_rejected, "{mode:o}");
            match read {
                Ok(text) => assert_eq!(text, "secret"),
                Err(error) => {
                    let command = format!("chmod o-rwx {}", path.display());
                    assert!(error.to_string().ends_with(&command), "{error}");
                }
            }
        }
        assert!(matches!(
            read(&path, 5),
            Err(SecretFileError::TooLarge { .. })
        ));
    }
}
