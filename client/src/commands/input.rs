//! Opens the files that the command line names and reads them in chunks.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::failure::{Failure, io_reason};

/// Size of a chunk in bytes: large enough to make the cost per message
/// negligible, far below the 4 MiB that gRPC allows per message by default.
const CHUNK_BYTES: usize = 256 << 10;

/// A file or standard input that is read from start to end.
pub(super) struct Input {
    reader: Box<dyn Read + Send>,
    /// The chunk that `check_not_empty` has read.
    first: Option<Bytes>,
    /// Size of the file in bytes; `None` for a pipe.
    pub(super) bytes: Option<u64>,
}

impl Input {
    /// Opens `path`, or standard input for `-`. Fails with `Unreadable` if the
    /// file does not exist, is a folder or is empty.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::from_reader(io::stdin()));
        }
        let unreadable = |reason: &str| Failure::Unreadable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let file = File::open(path).map_err(|error| Failure::unreadable(path, &error))?;
        let metadata = file
            .metadata()
            .map_err(|error| Failure::unreadable(path, &error))?;
        if metadata.is_dir() {
            return Err(unreadable("is a folder, not a file"));
        }
        if metadata.is_file() && metadata.len() == 0 {
            return Err(unreadable("the file is empty"));
        }
        Ok(Self {
            bytes: metadata.is_file().then_some(metadata.len()),
            ..Self::from_reader(file)
        })
    }

    /// Creates an input of unknown size.
    pub(super) fn from_reader(reader: impl Read + Send + 'static) -> Self {
        Self {
            reader: Box::new(reader),
            first: None,
            bytes: None,
        }
    }

    /// Fails with `Unreadable` if there is nothing to read. Blocks until the
    /// first chunk is complete.
    pub(super) fn check_not_empty(&mut self, path: &Path) -> Result<(), Failure> {
        self.first = self.chunk().map_err(|error| unreadable(error, path))?;
        match self.first {
            Some(_) => Ok(()),
            None => Err(Failure::Unreadable {
                path: path.to_owned(),
                reason: "the input is empty".into(),
            }),
        }
    }

    /// Returns the next bytes, or `None` at the end. Blocks.
    pub(super) fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let limit = CHUNK_BYTES as u64;
        self.reader.by_ref().take(limit).read_to_end(&mut chunk)?;
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}

/// An error of one of several files that are read as one input.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
struct FileError {
    path: PathBuf,
    reason: String,
}

/// Creates a `FileError` that a reader can return.
pub(super) fn file_error(path: &Path, reason: impl Into<String>) -> io::Error {
    io::Error::other(FileError {
        path: path.to_owned(),
        reason: reason.into(),
    })
}

/// Converts an error of a reader. `path` names the file if the error is not a
/// `FileError`.
pub(super) fn unreadable(error: io::Error, path: &Path) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let (path, reason) = match inner {
        Some(FileError { path, reason }) => (path.clone(), reason.clone()),
        None => (path.to_owned(), io_reason(&error)),
    };
    Failure::Unreadable { path, reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_a_folder_and_an_empty_file_are_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.txt");
        std::fs::write(&empty, "").unwrap();
        for (path, reason) in [
            (folder.path().join("none.txt"), "no such file"),
            (folder.path().to_owned(), "is a folder"),
            (empty, "the file is empty"),
        ] {
            let failure = Input::open(&path).err().unwrap();
            assert!(failure.to_string().contains(reason), "{failure}");
            assert_eq!(failure.exit_code(), 2);
        }
    }

    #[test]
    fn the_chunks_of_a_file_add_up_to_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let content: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|n| n as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mut input = Input::open(&path).unwrap();
        assert_eq!(input.bytes, Some(content.len() as u64));
        let mut read = Vec::new();
        while let Some(chunk) = input.chunk().unwrap() {
            assert!(chunk.len() <= CHUNK_BYTES);
            read.extend_from_slice(&chunk);
        }
        assert_eq!(read, content);
    }
}
