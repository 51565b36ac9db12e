//! Files that the command line names: opened with a clear word where that
//! cannot work, read in chunks.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::exit::Failure;

/// Size of a chunk: large enough that the messages cost nothing, far under
/// the 4 MiB that gRPC allows one message.
const CHUNK_BYTES: usize = 256 << 10;

/// A file or standard input, read from the start to the end in chunks.
pub(crate) struct Input {
    reader: Box<dyn Read + Send>,
    /// A chunk that was read to see whether there is one.
    first: Option<Bytes>,
    /// Bytes of the file; `None` for a pipe.
    pub(crate) bytes: Option<u64>,
}

impl Input {
    /// Opens `path`, or standard input for `-`. A file that is not there, a
    /// folder and an empty file are `Unreadable`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::from_reader(io::stdin()));
        }
        let unreadable = |reason: String| Failure::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(|error| unreadable(words(&error)))?;
        let facts = file.metadata().map_err(|error| unreadable(words(&error)))?;
        if facts.is_dir() {
            return Err(unreadable("it is a folder; name a file".into()));
        }
        if facts.is_file() && facts.len() == 0 {
            return Err(unreadable("it is empty".into()));
        }
        Ok(Self {
            bytes: facts.is_file().then_some(facts.len()),
            ..Self::from_reader(file)
        })
    }

    /// Reads what `reader` gives.
    pub(super) fn from_reader(reader: impl Read + Send + 'static) -> Self {
        Self {
            reader: Box::new(reader),
            first: None,
            bytes: None,
        }
    }

    /// Looks whether there is anything to read; an empty pipe is `Unreadable`.
    /// Blocks.
    pub(crate) fn check_not_empty(&mut self, path: &Path) -> Result<(), Failure> {
        self.first = self.chunk().map_err(|error| unreadable(error, path))?;
        match self.first {
            Some(_) => Ok(()),
            None => Err(Failure::Unreadable {
                path: path.to_owned(),
                reason: "it is empty".into(),
            }),
        }
    }

    /// The next bytes; `None` at the end. Blocks.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let limit = CHUNK_BYTES as u64;
        self.reader.by_ref().take(limit).read_to_end(&mut chunk)?;
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }

    /// All of it as text. Blocks.
    pub(crate) fn text(mut self, path: &Path) -> Result<String, Failure> {
        let mut text = String::new();
        self.reader
            .read_to_string(&mut text)
            .map_err(|error| Failure::Unreadable {
                path: path.to_owned(),
                reason: words(&error),
            })?;
        Ok(text)
    }
}

/// A reading error that knows its file, where several are read as one.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub(super) struct InFile {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

impl InFile {
    /// As an error of a reader.
    pub(super) fn error(path: &Path, reason: impl Into<String>) -> io::Error {
        io::Error::other(Self {
            path: path.to_owned(),
            reason: reason.into(),
        })
    }
}

/// The failure of a reading error; `path` names the file where the error does
/// not know it.
pub(super) fn unreadable(error: io::Error, path: &Path) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let (path, reason) = match inner {
        Some(InFile { path, reason }) => (path.clone(), reason.clone()),
        None => (path.to_owned(), words(&error)),
    };
    Failure::Unreadable { path, reason }
}

/// What went wrong with a file, without the number of the error.
pub(crate) fn words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::IsADirectory => "it is a folder; name a file".into(),
        ErrorKind::InvalidData => "it is not UTF-8 text".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_a_folder_and_an_empty_file_are_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.txt");
        std::fs::write(&empty, "").unwrap();
        for (path, word) in [
            (folder.path().join("none.txt"), "no such file"),
            (folder.path().to_owned(), "folder"),
            (empty, "empty"),
        ] {
            let failure = Input::open(&path).err().unwrap();
            assert!(failure.to_string().contains(word), "{failure}");
            assert_eq!(failure.exit_code(), 2);
        }
    }

    #[test]
    fn chunks_put_together_are_the_file() {
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
