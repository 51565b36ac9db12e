//! The text of a training: several files, whole folders or standard input,
//! read one after the other as one UTF-8 text. Nothing is held but a chunk.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::input::{InFile, Input, unreadable, words};
use crate::args::LineEnds;
use crate::exit::Failure;

/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// The beginning of a file of a folder that tells text from other data.
const LOOK_BYTES: u64 = 8 << 10;

/// The files of a training, in their order.
pub(super) struct Corpus {
    files: VecDeque<PathBuf>,
    passed_over: Vec<PathBuf>,
    /// Bytes of all files; `None` with standard input or a pipe.
    bytes: Option<u64>,
    line_ends: LineEnds,
    converted: Arc<AtomicU64>,
}

impl Corpus {
    /// Finds the files. `Unreadable` for one that is not there, for an empty
    /// one that is named, and for a folder without a text.
    pub(super) fn open(named: &[PathBuf], line_ends: LineEnds) -> Result<Self, Failure> {
        let mut corpus = Self {
            files: VecDeque::new(),
            passed_over: Vec::new(),
            bytes: Some(0),
            line_ends,
            converted: Arc::default(),
        };
        for path in named {
            if path.is_dir() {
                let before = corpus.files.len();
                corpus.add_folder(path)?;
                if corpus.files.len() == before {
                    return Err(Failure::Unreadable {
                        path: path.clone(),
                        reason: "there is no text file in it".into(),
                    });
                }
            } else {
                // Opened later, but refused now.
                let bytes = Input::open(path)?.bytes;
                corpus.add(path.clone(), bytes);
            }
        }
        Ok(corpus)
    }

    /// Files of folders that are no text.
    pub(super) fn passed_over(&self) -> &[PathBuf] {
        &self.passed_over
    }

    /// Counts the line ends that were converted, while the text is read.
    pub(super) fn converted(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.converted)
    }

    /// The text.
    pub(super) fn into_input(self) -> Input {
        let mut input = Input::from_reader(Text {
            files: self.files,
            current: None,
            ready: VecDeque::new(),
            line_ends: self.line_ends,
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

    /// Adds the text files of a folder and of the folders in it, sorted by
    /// name. Hidden ones are left out, and links to folders, which could go
    /// round in circles.
    fn add_folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let failed = |error| unreadable(error, folder);
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
            let facts = fs::metadata(&path).map_err(|error| unreadable(error, &path))?;
            if !facts.is_file() || facts.len() == 0 {
                continue;
            }
            if looks_like_text(&path).map_err(|error| unreadable(error, &path))? {
                self.add(path, Some(facts.len()));
            } else {
                self.passed_over.push(path);
            }
        }
        Ok(())
    }
}

/// True where the beginning of a file is UTF-8 without zero bytes.
fn looks_like_text(path: &Path) -> io::Result<bool> {
    let mut beginning = Vec::new();
    File::open(path)?
        .take(LOOK_BYTES)
        .read_to_end(&mut beginning)?;
    let valid = match std::str::from_utf8(&beginning) {
        Ok(_) => true,
        // The last character may be cut off by the look, not by the file.
        Err(error) => error.error_len().is_none() && beginning.len() as u64 == LOOK_BYTES,
    };
    Ok(valid && !beginning.contains(&0))
}

/// One file that is being read.
struct Current {
    reader: Box<dyn Read + Send>,
    path: PathBuf,
    /// Bytes that were read and are whole characters.
    checked: u64,
    /// The beginning of a character whose end is still to be read, or a CR
    /// whose LF may be.
    rest: Vec<u8>,
}

/// All files as one text.
struct Text {
    files: VecDeque<PathBuf>,
    current: Option<Current>,
    ready: VecDeque<u8>,
    line_ends: LineEnds,
    converted: Arc<AtomicU64>,
    /// The last byte that was given.
    last: Option<u8>,
}

impl Text {
    /// Reads on; false where there is nothing more.
    fn fill(&mut self) -> io::Result<bool> {
        if self.current.is_none() {
            let Some(path) = self.files.pop_front() else {
                return Ok(false);
            };
            // The first line of a file is no part of the last line of another.
            if self.last.is_some_and(|last| last != b'\n') {
                self.give(b"\n");
            }
            self.current = Some(Current::open(path)?);
        }
        let current = self.current.as_mut().expect("it was just opened");
        match current.next()? {
            Some(bytes) => self.convert(&bytes),
            None => self.current = None,
        }
        Ok(true)
    }

    /// Gives bytes that do not end between CR and LF.
    fn convert(&mut self, bytes: &[u8]) {
        if self.line_ends == LineEnds::Keep {
            return self.give(bytes);
        }
        let mut start = 0;
        for end in 1..bytes.len() {
            if bytes[end - 1] == b'\r' && bytes[end] == b'\n' {
                self.give(&bytes[start..end - 1]);
                start = end;
                self.converted.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.give(&bytes[start..]);
    }

    fn give(&mut self, bytes: &[u8]) {
        self.ready.extend(bytes);
        self.last = bytes.last().copied().or(self.last);
    }
}

impl Current {
    fn open(path: PathBuf) -> io::Result<Self> {
        let reader: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            let file = File::open(&path);
            Box::new(file.map_err(|error| InFile::error(&path, words(&error)))?)
        };
        Ok(Self {
            reader,
            path,
            checked: 0,
            rest: Vec::new(),
        })
    }

    /// The next whole characters, never cut between CR and LF; `None` at the
    /// end of the file. An error names the file and the byte.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let before = bytes.len();
        let limit = READ_BYTES as u64;
        let read = self.reader.by_ref().take(limit).read_to_end(&mut bytes);
        read.map_err(|error| InFile::error(&self.path, words(&error)))?;
        let at_the_end = bytes.len() == before;
        let mut whole = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) if error.error_len().is_none() && !at_the_end => error.valid_up_to(),
            Err(error) => {
                let at = self.checked + error.valid_up_to() as u64;
                let reason = format!("it is not UTF-8 text at byte {at}");
                return Err(InFile::error(&self.path, reason));
            }
        };
        if !at_the_end && whole > 0 && bytes[whole - 1] == b'\r' {
            whole -= 1;
        }
        self.rest = bytes.split_off(whole);
        self.checked += whole as u64;
        Ok((!at_the_end || !bytes.is_empty()).then_some(bytes))
    }
}

impl Read for Text {
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
    use super::*;

    fn read(named: &[PathBuf], line_ends: LineEnds) -> Result<String, Failure> {
        let mut input = Corpus::open(named, line_ends)?.into_input();
        let mut text = Vec::new();
        while let Some(chunk) = input
            .chunk()
            .map_err(|error| unreadable(error, &named[0]))?
        {
            text.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_folder_is_its_text_files_in_order_each_on_lines_of_its_own() {
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
        let named = [folder.path().to_owned()];
        assert_eq!(read(&named, LineEnds::Lf).unwrap(), "one\ntwo\ndrei é");
        let corpus = Corpus::open(&named, LineEnds::Lf).unwrap();
        assert_eq!(corpus.passed_over(), [folder.path().join("picture.png")]);
        assert_eq!(corpus.bytes, Some(4 + 3 + 7));
    }

    #[test]
    fn a_folder_without_a_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let failure = read(&[folder.path().to_owned()], LineEnds::Lf).unwrap_err();
        assert!(failure.to_string().contains("no text file"), "{failure}");
    }

    #[test]
    fn line_ends_become_lf_wherever_the_reading_cuts_or_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("windows.txt");
        // Both the CR LF and the é lie across a border of the reading.
        let text = format!(
            "{}\r\n{}é\r\r\nend\r",
            "a".repeat(READ_BYTES - 1),
            "b".repeat(READ_BYTES - 2)
        );
        fs::write(&path, &text).unwrap();
        let named = [path];
        assert!(read(&named, LineEnds::Keep).unwrap() == text);
        assert!(read(&named, LineEnds::Lf).unwrap() == text.replace("\r\n", "\n"));
        let corpus = Corpus::open(&named, LineEnds::Lf).unwrap();
        let converted = corpus.converted();
        let mut input = corpus.into_input();
        while input.chunk().unwrap().is_some() {}
        assert_eq!(converted.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn bytes_that_are_no_text_are_told_by_file_and_place() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("good.txt");
        let bad = folder.path().join("bad.txt");
        let cut = folder.path().join("cut.txt");
        fs::write(&good, "fine").unwrap();
        let mut bytes = "é".repeat(READ_BYTES).into_bytes();
        bytes.extend(b"x\xff");
        fs::write(&bad, bytes).unwrap();
        fs::write(&cut, b"abc\xc3").unwrap();
        for (path, at) in [(bad, 2 * READ_BYTES + 1), (cut, 3)] {
            let failure = read(&[good.clone(), path.clone()], LineEnds::Lf).unwrap_err();
            let expected = format!(
                "cannot read {}: it is not UTF-8 text at byte {at}",
                path.display()
            );
            assert_eq!(failure.to_string(), expected);
        }
    }
}
