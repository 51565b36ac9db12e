//! Reads texts: files, folders and standard input as one UTF-8 text, each file
//! decoded by `text_decoder`. Only one chunk is in memory at a time.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::input::{Input, file_error, unreadable};
use crate::args::TextFlags;
use crate::display;
use crate::failure::{Failure, io_reason};
use crate::file_content::{self, SNIFF_BYTES};
use crate::text_decoder::{InvalidText, LineEndings, TextChanges, TextDecoder};

/// Number of bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// Maximum number of files that a message names.
const MAX_NAMES: usize = 10;

/// The value of `--extensions` that selects every file.
const ANY_EXTENSION: &str = "*";

/// The files of a corpus in their order.
pub(super) struct Corpus {
    files: VecDeque<PathBuf>,
    /// The files that were found in folders.
    found: Vec<PathBuf>,
    /// Files in folders that cannot be used, with the reason.
    skipped: Vec<(PathBuf, String)>,
    /// Files in folders that do not have one of the extensions.
    other: Vec<PathBuf>,
    extensions: Vec<String>,
    /// Size of all files in bytes; `None` if one is standard input or a pipe.
    bytes: Option<u64>,
    line_endings: LineEndings,
    changes: SharedChanges,
}

/// What was changed in the text; it grows while the text is read.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedChanges(Arc<Mutex<TextChanges>>);

impl SharedChanges {
    /// Describes the changes so far, as `TextChanges::messages`.
    pub(super) fn messages(&self) -> Vec<String> {
        self.lock().messages()
    }

    fn add(&self, changes: &TextChanges) {
        self.lock().add(changes);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TextChanges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Corpus {
    /// Finds the files that `paths` name. Fails with `Unreadable` if a file
    /// does not exist, is empty or is not text, or if a folder contains no text
    /// file.
    pub(super) fn open(paths: &[PathBuf], flags: &TextFlags) -> Result<Self, Failure> {
        let extensions = flags.extensions.iter();
        let mut corpus = Self {
            files: VecDeque::new(),
            found: Vec::new(),
            skipped: Vec::new(),
            other: Vec::new(),
            extensions: extensions
                .map(|name| name.trim_start_matches('.').to_lowercase())
                .collect(),
            bytes: Some(0),
            line_endings: flags.crlf,
            changes: SharedChanges::default(),
        };
        for path in paths {
            if path.is_dir() {
                let before = corpus.files.len();
                corpus.add_folder(path)?;
                if corpus.files.len() == before {
                    return Err(corpus.empty_folder(path));
                }
            } else {
                // The file is opened again when its turn comes; looking at it
                // now reports an error before anything is uploaded.
                let bytes = Input::open(path)?.bytes;
                if bytes.is_some() {
                    check_beginning(path)?;
                }
                corpus.add(path.clone(), bytes);
            }
        }
        Ok(corpus)
    }

    /// Describes which files are used and which are not, one message each.
    pub(super) fn messages(&self) -> Vec<String> {
        let names = |files: &[PathBuf]| {
            display::list(files.iter().map(|file| display::path(file)), MAX_NAMES)
        };
        let mut messages = Vec::new();
        let reads_stdin = self.files.iter().any(|file| file == Path::new("-"));
        if reads_stdin && io::stdin().is_terminal() {
            messages.push("type or paste the text, then press Ctrl-D".into());
        }
        if !self.found.is_empty() {
            messages.push(format!(
                "reading {}: {}",
                display::plural(self.found.len() as u64, "file"),
                names(&self.found)
            ));
        }
        for (path, reason) in self.skipped.iter().take(MAX_NAMES) {
            messages.push(format!("skipped {}: {reason}", display::path(path)));
        }
        if let Some(more @ 1..) = self.skipped.len().checked_sub(MAX_NAMES) {
            let more = display::plural(more as u64, "more file");
            messages.push(format!("skipped {more} that cannot be read as text"));
        }
        if !self.other.is_empty() {
            messages.push(format!(
                "skipped {} without the extension {}: {} (use --extensions to choose others)",
                display::plural(self.other.len() as u64, "file"),
                self.extension_names(),
                names(&self.other)
            ));
        }
        messages
    }

    /// Returns what is changed in the text while it is read.
    pub(super) fn changes(&self) -> SharedChanges {
        self.changes.clone()
    }

    /// Reads the whole text once and returns its SHA-256 in UTF-8, in
    /// hexadecimal: as the server reports it for models and trainings. Blocks.
    pub(super) fn digest(&self) -> Result<String, Failure> {
        let mut sha256 = Sha256::new();
        self.for_each_part(SharedChanges::default(), |text| sha256.update(text))?;
        Ok(display::hexadecimal(&sha256.finalize()))
    }

    /// Converts the corpus to its text.
    pub(super) fn into_input(self) -> Input {
        let mut input = Input::from_reader(self.reader(self.changes()));
        input.bytes = self.bytes;
        input
    }

    /// Reads the whole text into memory. Blocks.
    pub(super) fn into_text(self) -> Result<String, Failure> {
        let mut text = String::new();
        self.for_each_part(self.changes(), |part| text.push_str(part))?;
        Ok(text)
    }

    /// Reads the whole text in parts. Blocks.
    fn for_each_part(
        &self,
        changes: SharedChanges,
        mut take: impl FnMut(&str),
    ) -> Result<(), Failure> {
        let mut reader = self.reader(changes);
        // Every error names its file.
        let failed = |error| unreadable(error, Path::new("-"));
        while let Some(part) = reader.fill().map_err(failed)? {
            take(&part);
        }
        Ok(())
    }

    /// Returns the distinct characters of the text, sorted, as in the vocabulary
    /// of a training, and the first `chars` characters of the text. Blocks.
    pub(super) fn vocabulary(self, chars: usize) -> Result<(String, String), Failure> {
        let mut characters = BTreeSet::new();
        let (mut beginning, mut room) = (String::new(), chars);
        self.for_each_part(self.changes(), |text| {
            characters.extend(text.chars());
            let before = beginning.len();
            beginning.extend(text.chars().take(room));
            room -= beginning[before..].chars().count();
        })?;
        Ok((characters.into_iter().collect(), beginning))
    }

    fn reader(&self, changes: SharedChanges) -> CorpusReader {
        CorpusReader {
            files: self.files.clone(),
            current: None,
            ready: VecDeque::new(),
            line_endings: self.line_endings,
            changes,
            last: None,
        }
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
            } else if !self.has_extension(&path) {
                self.other.push(path);
            } else {
                match check_file(&path) {
                    Ok(Some(bytes)) => {
                        self.found.push(path.clone());
                        self.add(path, Some(bytes));
                    }
                    Ok(None) => {}
                    Err(reason) => self.skipped.push((path, reason)),
                }
            }
        }
        Ok(())
    }

    fn has_extension(&self, path: &Path) -> bool {
        if self.extensions.iter().any(|name| name == ANY_EXTENSION) {
            return true;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        self.extensions.contains(&extension.to_lowercase())
    }

    fn extension_names(&self) -> String {
        let names = self.extensions.iter().map(|name| format!(".{name}"));
        names.collect::<Vec<_>>().join(" or ")
    }

    fn empty_folder(&self, folder: &Path) -> Failure {
        let reason = match (self.skipped.first(), self.other.len()) {
            (Some((path, reason)), _) => format!(
                "the folder contains no text file that can be read; {}: {reason}",
                display::path(path)
            ),
            (None, 0) => "the folder contains no text file".into(),
            (None, others) => format!(
                "the folder contains no text file with the extension {}, but {}; \
                 use --extensions to choose others",
                self.extension_names(),
                display::plural(others as u64, "other file")
            ),
        };
        Failure::Unreadable {
            path: folder.to_owned(),
            reason,
        }
    }
}

/// Checks that the beginning of a regular file may be text.
fn check_beginning(path: &Path) -> Result<(), Failure> {
    let mut beginning = Vec::new();
    File::open(path)
        .and_then(|file| file.take(SNIFF_BYTES as u64).read_to_end(&mut beginning))
        .map_err(|error| Failure::unreadable(path, &error))?;
    let content = file_content::recognize(&beginning);
    content.map_or(Ok(()), |content| {
        Err(Failure::Unreadable {
            path: path.to_owned(),
            reason: content.advice(path),
        })
    })
}

/// Checks that the whole of a file in a folder is text, and returns its size.
/// Returns `None` if it is neither a file nor a link to one, and the reason if
/// it cannot be used.
fn check_file(path: &Path) -> Result<Option<u64>, String> {
    let metadata = fs::metadata(path).map_err(|error| io_reason(&error))?;
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.len() == 0 {
        return Err("the file is empty".into());
    }
    let file = CurrentFile::open(path.to_owned(), LineEndings::Keep);
    let mut file = file.map_err(|error| io_reason(&error))?;
    loop {
        match file.read() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Some(metadata.len())),
            Err(ReadError::Io(error)) => return Err(io_reason(&error)),
            Err(ReadError::Invalid(invalid)) => return Err(invalid.reason(path)),
        }
    }
}

/// The file that is being read.
struct CurrentFile {
    reader: Box<dyn Read + Send>,
    path: PathBuf,
    decoder: TextDecoder,
    is_at_end: bool,
}

/// Why a file cannot be read.
enum ReadError {
    Io(io::Error),
    Invalid(InvalidText),
}

/// Reads all files as one text.
struct CorpusReader {
    files: VecDeque<PathBuf>,
    current: Option<CurrentFile>,
    ready: VecDeque<u8>,
    line_endings: LineEndings,
    changes: SharedChanges,
    /// The last byte of the text so far.
    last: Option<u8>,
}

impl CorpusReader {
    /// Reads the next part of the text, which may be empty. Returns `None` at
    /// its end. An error names the file.
    fn fill(&mut self) -> io::Result<Option<String>> {
        let mut text = String::new();
        if self.current.is_none() {
            let Some(path) = self.files.pop_front() else {
                return Ok(None);
            };
            // Each file starts on a new line.
            if self.last.is_some_and(|last| last != b'\n') {
                text.push('\n');
            }
            let file = CurrentFile::open(path.clone(), self.line_endings);
            self.current = Some(file.map_err(|error| file_error(&path, io_reason(&error)))?);
        }
        let current = self.current.as_mut().expect("it was just opened");
        match current.read() {
            Ok(Some(part)) => text.push_str(&part),
            Ok(None) => {
                self.changes.add(current.decoder.changes());
                self.current = None;
            }
            Err(ReadError::Io(error)) => {
                return Err(file_error(&current.path, io_reason(&error)));
            }
            Err(ReadError::Invalid(invalid)) => {
                return Err(file_error(&current.path, invalid.reason(&current.path)));
            }
        }
        self.last = text.bytes().last().or(self.last);
        Ok(Some(text))
    }
}

impl CurrentFile {
    fn open(path: PathBuf, line_endings: LineEndings) -> io::Result<Self> {
        let reader: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(&path)?)
        };
        Ok(Self {
            reader,
            path,
            decoder: TextDecoder::new(line_endings),
            is_at_end: false,
        })
    }

    /// Returns the next part of the text, which may be empty, or `None` at the
    /// end of the file.
    fn read(&mut self) -> Result<Option<String>, ReadError> {
        if self.is_at_end {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(READ_BYTES);
        let limit = READ_BYTES as u64;
        let read = self.reader.by_ref().take(limit).read_to_end(&mut bytes);
        read.map_err(ReadError::Io)?;
        // A terminal reports its end (Ctrl-D) only once.
        self.is_at_end = bytes.len() < READ_BYTES;
        let text = self.decoder.decode(&bytes, self.is_at_end);
        text.map(Some).map_err(ReadError::Invalid)
    }
}

impl Read for CorpusReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            match self.fill()? {
                Some(text) => self.ready.extend(text.as_bytes()),
                None => return Ok(0),
            }
        }
        self.ready.read(buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn flags(extensions: &[&str]) -> TextFlags {
        TextFlags {
            crlf: LineEndings::Lf,
            extensions: extensions.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn open(paths: &[PathBuf]) -> Result<Corpus, Failure> {
        Corpus::open(paths, &flags(&["txt", "md"]))
    }

    fn read(paths: &[PathBuf]) -> Result<String, Failure> {
        let mut input = open(paths)?.into_input();
        let mut text = Vec::new();
        while let Some(chunk) = input
            .chunk()
            .map_err(|error| unreadable(error, &paths[0]))?
        {
            text.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    /// A folder with the given files.
    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_is_read_as_its_text_files_by_name_each_starting_on_a_new_line() {
        let folder = folder(&[
            ("b.txt", b"two"),
            ("a.TXT", b"one\n"),
            ("c/d.md", "drei \u{e9}".as_bytes()),
            ("picture.svg", b"<svg/>"),
            (".hidden.txt", b"no"),
            ("empty.txt", b""),
        ]);
        let paths = [folder.path().to_owned()];
        assert_eq!(read(&paths).unwrap(), "one\ntwo\ndrei é");
        let corpus = open(&paths).unwrap();
        assert_eq!(corpus.bytes, Some(4 + 3 + 7));
        let messages = corpus.messages();
        assert!(messages[0].starts_with("reading 3 files: "), "{messages:?}");
        assert!(messages[0].contains("a.TXT"), "{messages:?}");
        assert!(
            messages[1].ends_with("empty.txt: the file is empty"),
            "{messages:?}"
        );
        assert!(messages[2].starts_with("skipped 1 file without the extension .txt or .md: "));
        assert!(messages[2].contains("picture.svg"), "{messages:?}");
    }

    #[test]
    fn other_extensions_can_be_chosen() {
        let folder = folder(&[
            ("a.txt", b"a"),
            ("b.tex", b"b"),
            ("c", b"c"),
            ("d.png", b"\xff"),
        ]);
        let paths = [folder.path().to_owned()];
        let text = |extensions: &[&str]| {
            Corpus::open(&paths, &flags(extensions))
                .unwrap()
                .into_text()
                .unwrap()
        };
        assert_eq!(text(&[".tex"]), "b");
        assert_eq!(text(&["*"]), "a\nb\nc");
        let failure = Corpus::open(&paths, &flags(&["rst"])).err().unwrap();
        assert!(failure.to_string().contains("--extensions"), "{failure}");
    }

    #[test]
    fn files_of_a_folder_that_cannot_be_read_are_skipped_and_named() {
        let late = ["good ".repeat(3000).as_bytes(), b"\xe9t\xe9"].concat();
        let folder = folder(&[
            ("1.txt", b"one"),
            ("2 late.txt", &late),
            ("3 wide.txt", b"\xff\xfea\0"),
            ("5.txt", b"five"),
        ]);
        symlink("/nonexistent", folder.path().join("4 link.txt")).unwrap();
        let paths = [folder.path().to_owned()];
        assert_eq!(read(&paths).unwrap(), "one\nfive");
        let messages = open(&paths).unwrap().messages();
        for (message, parts) in messages[1..].iter().zip([
            ["2 late.txt", "byte 15000; it looks like Latin-1"],
            ["3 wide.txt", "UTF-16"],
            ["4 link.txt", "no such file"],
        ]) {
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn a_folder_without_a_text_file_is_an_error() {
        let folder = folder(&[]);
        let failure = read(&[folder.path().to_owned()]).unwrap_err();
        assert!(failure.to_string().contains("no text file"), "{failure}");
    }

    #[test]
    fn every_file_loses_its_byte_order_mark_and_the_changes_are_reported() {
        let folder = folder(&[
            ("a.txt", "\u{feff}one\r\n".as_bytes()),
            ("b.txt", "\u{feff}two\rthree".as_bytes()),
        ]);
        let corpus = open(&[folder.path().to_owned()]).unwrap();
        let changes = corpus.changes();
        assert_eq!(corpus.into_text().unwrap(), "one\ntwo\nthree");
        let messages = changes.messages();
        assert_eq!(messages[0], "removed 2 byte order marks");
        assert!(messages[1].starts_with("converted 1 line ending from CR LF to LF"));
        assert!(messages[2].starts_with("converted 1 line ending from CR to LF"));
    }

    #[test]
    fn invalid_utf_8_is_reported_with_its_file_and_offset() {
        let bad = ["é".repeat(READ_BYTES).as_bytes(), b"x\xff"].concat();
        let folder = folder(&[
            ("good.txt", b"fine"),
            ("bad.txt", &bad),
            ("cut.txt", b"abc\xc3"),
        ]);
        let path = |name| folder.path().join(name);
        for (name, offset) in [("bad.txt", 2 * READ_BYTES + 1), ("cut.txt", 3)] {
            let failure = read(&[path("good.txt"), path(name)]).unwrap_err();
            let expected = format!(
                "cannot read {}: invalid UTF-8 at byte {offset}; ",
                path(name).display()
            );
            assert!(failure.to_string().starts_with(&expected), "{failure}");
        }
    }

    #[test]
    fn a_file_in_another_encoding_is_an_error_before_anything_is_read() {
        let folder = folder(&[("wide.txt", b"\xfe\xff\0a")]);
        let failure = open(&[folder.path().join("wide.txt")]).err().unwrap();
        assert_eq!(failure.exit_code(), 2);
        assert!(
            failure.to_string().contains("`iconv -f UTF-16"),
            "{failure}"
        );
    }

    #[test]
    fn the_vocabulary_of_a_text_is_its_distinct_characters_sorted() {
        let folder = folder(&[("a.txt", "béa\nab\r\n".as_bytes())]);
        let corpus = open(&[folder.path().to_owned()]).unwrap();
        let (vocabulary, beginning) = corpus.vocabulary(2).unwrap();
        assert_eq!(vocabulary, "\nabé");
        assert_eq!(beginning, "bé");
    }

    #[test]
    fn the_digest_is_that_of_the_text_that_is_uploaded() {
        let folder = folder(&[("a.txt", b"b\r\n"), ("b.txt", "àa".as_bytes())]);
        let digest = open(&[folder.path().to_owned()]).unwrap().digest().unwrap();
        // sha256sum of "b\nàa".
        assert_eq!(
            digest,
            "99f8dc40af8915db72e326964fbe86795886307ecaaaaa5de71276f08753c057"
        );
    }
}
