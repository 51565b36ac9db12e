//! Reads the text to train on: files, folders and standard input as one UTF-8
//! text. Only one chunk is in memory at a time.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::input::{Input, file_error};
use crate::args::LineEndings;
use crate::failure::{Failure, io_reason};

/// Number of bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// Number of bytes at the beginning of a file that decide whether it is text.
const SNIFF_BYTES: u64 = 8 << 10;

/// The files of a corpus in their order.
pub(super) struct Corpus {
    files: VecDeque<PathBuf>,
    skipped: Vec<PathBuf>,
    /// Size of all files in bytes; `None` if one is standard input or a pipe.
    bytes: Option<u64>,
    line_endings: LineEndings,
    converted: Arc<AtomicU64>,
}

impl Corpus {
    /// Finds the files that `paths` name. Fails with `Unreadable` if a file
    /// does not exist or is empty, or if a folder contains no text file.
    pub(super) fn open(paths: &[PathBuf], line_endings: LineEndings) -> Result<Self, Failure> {
        let mut corpus = Self {
            files: VecDeque::new(),
            skipped: Vec::new(),
            bytes: Some(0),
            line_endings,
            converted: Arc::default(),
        };
        for path in paths {
            if path.is_dir() {
                let before = corpus.files.len();
                corpus.add_folder(path)?;
                if corpus.files.len() == before {
                    return Err(Failure::Unreadable {
                        path: path.clone(),
                        reason: "the folder contains no text file".into(),
                    });
                }
            } else {
                // The file is opened again when its turn comes; opening it now
                // reports an error before anything is uploaded.
                let bytes = Input::open(path)?.bytes;
                corpus.add(path.clone(), bytes);
            }
        }
        Ok(corpus)
    }

    /// Returns the files in folders that were skipped because they are not
    /// text.
    pub(super) fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// Returns the number of line endings that were converted; it grows while
    /// the text is read.
    pub(super) fn converted(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.converted)
    }

    /// Converts the corpus to its text.
    pub(super) fn into_input(self) -> Input {
        let mut input = Input::from_reader(CorpusReader {
            files: self.files,
            current: None,
            ready: VecDeque::new(),
            line_endings: self.line_endings,
            converted: self.converted,
            last: None,
        });
        input.bytes = self.bytes;
        input
    }

    fn add(&mut self, path: PathBuf, bytes: Option<u64>) {
        self.files.push_back(path);
        self.bytes = self.bytes.zip(bytes).map(|(all, more)| all + more);
    }

    /// Adds the text files in a folder and its subfolders, sorted by name.
    /// Hidden files are ignored, and so are links to folders, which could form
    /// a cycle.
    fn add_folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::unreadable(folder, &error);
        let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
        let mut entries = entries.map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            if entry.file_type().map_err(failed)?.is_dir() {
                self.add_folder(&path)?;
                continue;
            }
            let metadata =
                fs::metadata(&path).map_err(|error| Failure::unreadable(&path, &error))?;
            if !metadata.is_file() || metadata.len() == 0 {
                continue;
            }
            if is_text(&path).map_err(|error| Failure::unreadable(&path, &error))? {
                self.add(path, Some(metadata.len()));
            } else {
                self.skipped.push(path);
            }
        }
        Ok(())
    }
}

/// Returns true if the beginning of a file is UTF-8 without NUL characters.
fn is_text(path: &Path) -> io::Result<bool> {
    let mut beginning = Vec::new();
    File::open(path)?
        .take(SNIFF_BYTES)
        .read_to_end(&mut beginning)?;
    let valid = match std::str::from_utf8(&beginning) {
        Ok(_) => true,
        // A character may be cut off because only the beginning was read.
        Err(error) => error.error_len().is_none() && beginning.len() as u64 == SNIFF_BYTES,
    };
    Ok(valid && !beginning.contains(&0))
}

/// The file that is being read.
struct CurrentFile {
    reader: Box<dyn Read + Send>,
    path: PathBuf,
    /// Number of bytes that were read and are complete characters.
    checked: u64,
    /// The end of what was read, if it is an incomplete character, or a CR
    /// that an LF may follow.
    incomplete: Vec<u8>,
}

/// Reads all files as one text.
struct CorpusReader {
    files: VecDeque<PathBuf>,
    current: Option<CurrentFile>,
    ready: VecDeque<u8>,
    line_endings: LineEndings,
    converted: Arc<AtomicU64>,
    /// The last byte of the text so far.
    last: Option<u8>,
}

impl CorpusReader {
    /// Reads the next part of the text. Returns false at its end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.current.is_none() {
            let Some(path) = self.files.pop_front() else {
                return Ok(false);
            };
            // Each file starts on a new line.
            if self.last.is_some_and(|last| last != b'\n') {
                self.append(b"\n");
            }
            self.current = Some(CurrentFile::open(path)?);
        }
        let current = self.current.as_mut().expect("it was just opened");
        match current.next()? {
            Some(bytes) => self.convert(&bytes),
            None => self.current = None,
        }
        Ok(true)
    }

    /// Appends bytes with their line endings converted. The bytes must not end
    /// between CR and LF.
    fn convert(&mut self, bytes: &[u8]) {
        if self.line_endings == LineEndings::Keep {
            return self.append(bytes);
        }
        let mut start = 0;
        for end in 1..bytes.len() {
            if bytes[end - 1] == b'\r' && bytes[end] == b'\n' {
                self.append(&bytes[start..end - 1]);
                start = end;
                self.converted.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.append(&bytes[start..]);
    }

    fn append(&mut self, bytes: &[u8]) {
        self.ready.extend(bytes);
        self.last = bytes.last().copied().or(self.last);
    }
}

impl CurrentFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let reader: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            let file = File::open(&path);
            Box::new(file.map_err(|error| file_error(&path, io_reason(&error)))?)
        };
        Ok(Self {
            reader,
            path,
            checked: 0,
            incomplete: Vec::new(),
        })
    }

    /// Returns the next complete characters, not ending between CR and LF, or
    /// `None` at the end of the file. An error names the file and, if it is
    /// not UTF-8, the offset of the first invalid byte.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = std::mem::take(&mut self.incomplete);
        let before = bytes.len();
        let limit = READ_BYTES as u64;
        let read = self.reader.by_ref().take(limit).read_to_end(&mut bytes);
        read.map_err(|error| file_error(&self.path, io_reason(&error)))?;
        let at_end = bytes.len() == before;
        let mut complete = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) if error.error_len().is_none() && !at_end => error.valid_up_to(),
            Err(error) => {
                let offset = self.checked + error.valid_up_to() as u64;
                let reason = format!("invalid UTF-8 at byte {offset}");
                return Err(file_error(&self.path, reason));
            }
        };
        if !at_end && complete > 0 && bytes[complete - 1] == b'\r' {
            complete -= 1;
        }
        self.incomplete = bytes.split_off(complete);
        self.checked += complete as u64;
        Ok((!at_end || !bytes.is_empty()).then_some(bytes))
    }
}

impl Read for CorpusReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        self.ready.read(buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::input::unreadable;
    use super::*;

    fn read(paths: &[PathBuf], line_endings: LineEndings) -> Result<String, Failure> {
        let mut input = Corpus::open(paths, line_endings)?.into_input();
        let mut text = Vec::new();
        while let Some(chunk) = input
            .chunk()
            .map_err(|error| unreadable(error, &paths[0]))?
        {
            text.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_folder_is_read_as_its_text_files_by_name_each_starting_on_a_new_line() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("b.txt", b"two");
        write("a.txt", b"one\n");
        write("c/d.md", "drei \u{e9}".as_bytes());
        write("picture.png", b"\x89PNG\0");
        write(".hidden", b"no");
        write("empty.txt", b"");
        let paths = [folder.path().to_owned()];
        assert_eq!(read(&paths, LineEndings::Lf).unwrap(), "one\ntwo\ndrei é");
        let corpus = Corpus::open(&paths, LineEndings::Lf).unwrap();
        assert_eq!(corpus.skipped(), [folder.path().join("picture.png")]);
        assert_eq!(corpus.bytes, Some(4 + 3 + 7));
    }

    #[test]
    fn a_folder_without_a_text_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let failure = read(&[folder.path().to_owned()], LineEndings::Lf).unwrap_err();
        assert!(failure.to_string().contains("no text file"), "{failure}");
    }

    #[test]
    fn line_endings_are_converted_or_kept_even_between_two_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("windows.txt");
        // Both the CR LF and the é are split between two reads.
        let text = format!(
            "{}\r\n{}é\r\r\nend\r",
            "a".repeat(READ_BYTES - 1),
            "b".repeat(READ_BYTES - 2)
        );
        fs::write(&path, &text).unwrap();
        let paths = [path];
        assert!(read(&paths, LineEndings::Keep).unwrap() == text);
        assert!(read(&paths, LineEndings::Lf).unwrap() == text.replace("\r\n", "\n"));
        let corpus = Corpus::open(&paths, LineEndings::Lf).unwrap();
        let converted = corpus.converted();
        let mut input = corpus.into_input();
        while input.chunk().unwrap().is_some() {}
        assert_eq!(converted.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn invalid_utf_8_is_reported_with_its_file_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("good.txt");
        let bad = folder.path().join("bad.txt");
        let cut = folder.path().join("cut.txt");
        fs::write(&good, "fine").unwrap();
        let mut bytes = "é".repeat(READ_BYTES).into_bytes();
        bytes.extend(b"x\xff");
        fs::write(&bad, bytes).unwrap();
        fs::write(&cut, b"abc\xc3").unwrap();
        for (path, offset) in [(bad, 2 * READ_BYTES + 1), (cut, 3)] {
            let failure = read(&[good.clone(), path.clone()], LineEndings::Lf).unwrap_err();
            let expected = format!(
                "cannot read {}: invalid UTF-8 at byte {offset}",
                path.display()
            );
            assert_eq!(failure.to_string(), expected);
        }
    }
}
