//! Reads files that decide who may call.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::AccessError;

/// Maximum size of a file: some ten thousand principals.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Permissions of users who are neither the owner nor in the group. The group
/// may have access: secrets that are mounted into a container often belong to
/// root and a group.
const OTHERS: u32 = 0o007;

/// Reads a text file, without its byte order mark if it has one. Blocks.
///
/// # Errors
/// The file cannot be read, every user may read or change it, it is too large,
/// or it is not UTF-8.
pub(super) fn read(path: &Path) -> Result<String, AccessError> {
    let io = |source: io::Error| AccessError::Io {
        path: path.to_owned(),
        source,
    };
    let content = |reason: &str| AccessError::Content {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let mut file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.permissions().mode() & OTHERS != 0 {
        return Err(AccessError::WorldReadable(path.to_owned()));
    }
    let mut bytes = Vec::new();
    let mut bounded = (&mut file).take(MAX_FILE_BYTES + 1);
    bounded.read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(content("is larger than 4 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| content("is not UTF-8"))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_file_that_everybody_can_read_is_rejected_with_the_command_that_helps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, "\u{feff}secret").unwrap();
        for (mode, is_rejected) in [(0o644, true), (0o602, true), (0o640, false), (0o600, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read(&path);
            assert_eq!(read.is_err(), is_rejected, "{mode:o}");
            match read {
                Ok(text) => assert_eq!(text, "secret"),
                Err(error) => {
                    let command = format!("chmod o-rwx {}", path.display());
                    assert!(error.to_string().ends_with(&command), "{error}");
                }
            }
        }
    }
}
