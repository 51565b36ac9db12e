//! The two container formats of `torch.save`: a zip archive since PyTorch 1.6,
//! a sequence of pickles before. Both contain one pickle of interest, and the
//! elements of storages somewhere else in the file.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::super::model_file::foreign;
use super::TorchCheckpointError;
use super::pickle::{Node, Pickle};

/// Maximum length of a pickle in bytes. A vocabulary of 65,536 characters takes
/// about twelve bytes for each.
const MAX_PICKLE_BYTES: u64 = 2 * 1024 * 1024;

/// Maximum length of the central directory of a zip archive in bytes. A model
/// has some dozen entries of about 70 bytes.
const MAX_DIRECTORY_BYTES: u64 = 1024 * 1024;

/// Maximum length of the record at the end of a zip archive, with its comment.
const MAX_ZIP_END_BYTES: u64 = 22 + 65_535;

/// The first value of a file in the legacy format.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The only version that the legacy format ever had.
const LEGACY_PROTOCOL: i128 = 1001;

const UNKNOWN_FORMAT: &str = "it is not in a format of torch.save";

/// Opens a file. Reads its pickle, and no elements of storages.
///
/// # Errors
/// The file is not in one of the two formats, or reading failed.
pub(super) fn open<R: Read + Seek>(
    mut reader: R,
) -> Result<(Pickle, Storages<R>), TorchCheckpointError> {
    let mut first = Vec::new();
    reader.rewind()?;
    (&mut reader).take(64).read_to_end(&mut first)?;
    reader.rewind()?;
    match first.as_slice() {
        [b'P', b'K', ..] if !has_zip_end(&mut reader)? => {
            Err(TorchCheckpointError::Invalid("it is truncated"))
        }
        [b'P', b'K', ..] => open_zip(reader),
        [0x80, 2, ..] => open_legacy(reader),
        [] => Err(TorchCheckpointError::Invalid("it is empty")),
        // The length of a header, which begins with a brace.
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => Err(TorchCheckpointError::Invalid(
            "it is a safetensors file; import it as one (without --pth)",
        )),
        first => Err(TorchCheckpointError::Invalid(
            foreign::recognise(first).unwrap_or(UNKNOWN_FORMAT),
        )),
    }
}

/// Returns whether the record at the end of a zip archive is in its place. It
/// may be followed by a comment of at most 64 KiB.
fn has_zip_end(reader: &mut (impl Read + Seek)) -> io::Result<bool> {
    let length = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(length.saturating_sub(MAX_ZIP_END_BYTES)))?;
    let mut end = Vec::new();
    reader.take(MAX_ZIP_END_BYTES).read_to_end(&mut end)?;
    reader.rewind()?;
    Ok(end.windows(4).any(|bytes| bytes == b"PK\x05\x06"))
}

/// The storages of a file.
pub(super) enum Storages<R> {
    /// Each storage is an entry of the archive, `FOLDER/data/KEY`.
    Zip {
        archive: ZipArchive<BufReader<LimitedReader<R>>>,
        folder: String,
    },
    /// The position of each storage, by its key.
    Legacy(StorageRanges),
}

/// The byte range of each storage in the file, by its key.
pub(super) type StorageRanges = HashMap<Rc<str>, Range<u64>>;

impl<R: Read + Seek> Storages<R> {
    /// Returns the byte ranges of the storages with these keys; a key that the
    /// file does not have is left out. In a zip archive, reads these storages
    /// to verify their checksums.
    ///
    /// # Errors
    /// Storages overlap, a storage is compressed or damaged, or reading failed.
    pub(super) fn locate(
        self,
        keys: impl IntoIterator<Item = Rc<str>>,
    ) -> Result<StorageRanges, TorchCheckpointError> {
        let (mut archive, folder) = match self {
            Self::Legacy(ranges) => return Ok(ranges),
            Self::Zip { archive, folder } => (archive, folder),
        };
        let mut ranges = StorageRanges::new();
        for key in keys {
            let entry = match archive.by_name(&format!("{folder}/data/{key}")) {
                Err(ZipError::FileNotFound) => continue,
                entry => entry?,
            };
            let start = entry.data_start().ok_or(TorchCheckpointError::Invalid(
                "its zip archive has an entry without data",
            ))?;
            let end = start
                .checked_add(entry.size())
                .ok_or(TorchCheckpointError::Invalid(TRUNCATED_STORAGE))?;
            ranges.insert(key, start..end);
        }
        // Otherwise a small file could have many large storages, all of which
        // would be read.
        let mut sorted: Vec<&Range<u64>> = ranges.values().collect();
        sorted.sort_unstable_by_key(|range| range.start);
        if sorted.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(TorchCheckpointError::Invalid(
                "its zip archive has storages that overlap",
            ));
        }
        for (key, range) in &ranges {
            let mut entry = archive.by_name(&format!("{folder}/data/{key}"))?;
            // The checksum is verified when the end of the entry is read.
            let length = io::copy(&mut entry, &mut io::sink())?;
            if length != range.end - range.start {
                return Err(TorchCheckpointError::Invalid(TRUNCATED_STORAGE));
            }
        }
        Ok(ranges)
    }
}

const TRUNCATED_STORAGE: &str = "it ends within a storage";

fn open_zip<R: Read + Seek>(reader: R) -> Result<(Pickle, Storages<R>), TorchCheckpointError> {
    let left = Rc::new(Cell::new(MAX_DIRECTORY_BYTES));
    let reader = LimitedReader {
        inner: reader,
        left: Rc::clone(&left),
    };
    let mut archive = ZipArchive::new(BufReader::new(reader))?;
    // The directory has been read. From here on, the size of an entry limits
    // each read, and the file limits that: compressed entries are rejected.
    left.set(u64::MAX);
    let names: Vec<String> = archive
        .file_names()
        .map(|name| name.map(std::borrow::Cow::into_owned))
        .collect::<Result<_, _>>()?;
    let folder = names
        .iter()
        .find_map(|name| name.strip_suffix("/data.pkl"))
        .ok_or(TorchCheckpointError::Invalid(
            "its zip archive has no data.pkl",
        ))?
        .to_owned();

    let byte_order = format!("{folder}/byteorder");
    if names.contains(&byte_order) {
        let mut text = String::new();
        archive
            .by_name(&byte_order)?
            .take(16)
            .read_to_string(&mut text)?;
        if text != "little" {
            return Err(TorchCheckpointError::BigEndian);
        }
    }
    let pickle = archive.by_name(&format!("{folder}/data.pkl"))?;
    let pickle = read_pickle(BufReader::new(pickle))?;
    Ok((pickle, Storages::Zip { archive, folder }))
}

fn open_legacy<R: Read + Seek>(
    mut reader: R,
) -> Result<(Pickle, Storages<R>), TorchCheckpointError> {
    let length = reader.seek(SeekFrom::End(0))?;
    reader.rewind()?;
    let mut reader = BufReader::new(reader);
    let (magic, protocol) = (read_pickle(&mut reader)?, read_pickle(&mut reader)?);
    if (magic.root(), protocol.root()) != (&Node::Int(LEGACY_MAGIC), &Node::Int(LEGACY_PROTOCOL)) {
        return Err(TorchCheckpointError::Invalid(UNKNOWN_FORMAT));
    }
    let system = read_pickle(&mut reader)?;
    if system.entry(system.root(), "little_endian") != Some(&Node::Bool(true)) {
        return Err(TorchCheckpointError::BigEndian);
    }
    let (pickle, keys) = (read_pickle(&mut reader)?, read_pickle(&mut reader)?);
    let Node::Sequence(order) = keys.root() else {
        return Err(TorchCheckpointError::Invalid("it has no list of storages"));
    };
    let known: HashMap<&str, _> = pickle
        .storages()
        .map(|storage| (&*storage.key, storage))
        .collect();
    let mut ranges = StorageRanges::new();
    for &key in order {
        let Node::Text(key) = keys.node(key) else {
            return Err(TorchCheckpointError::Invalid(
                "its list of storages has a key that is not text",
            ));
        };
        let storage = known.get(&**key).ok_or(TorchCheckpointError::Invalid(
            "its list of storages has a key that its pickle does not have",
        ))?;
        let mut count = [0; 8];
        reader.read_exact(&mut count)?;
        let start = reader.stream_position()?;
        let end = u64::from_le_bytes(count)
            .checked_mul(storage.element_type.bytes())
            .and_then(|bytes| start.checked_add(bytes))
            .filter(|&end| end <= length)
            .ok_or(TorchCheckpointError::Invalid(TRUNCATED_STORAGE))?;
        reader.seek(SeekFrom::Start(end))?;
        ranges.insert(Rc::clone(&storage.key), start..end);
    }
    Ok((pickle, Storages::Legacy(ranges)))
}

/// Reads one pickle of at most [`MAX_PICKLE_BYTES`].
fn read_pickle(reader: impl Read) -> Result<Pickle, TorchCheckpointError> {
    let mut reader = reader.take(MAX_PICKLE_BYTES);
    let pickle = Pickle::read(&mut reader);
    if pickle.is_err() && reader.limit() == 0 {
        return Err(TorchCheckpointError::Invalid(
            "its pickle is longer than 2 MiB",
        ));
    }
    pickle
}

/// Fails after `left` bytes in all, so that a file cannot make us read a long
/// directory.
pub(super) struct LimitedReader<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other("its directory is longer than 1 MiB")),
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for LimitedReader<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

impl From<ZipError> for TorchCheckpointError {
    fn from(error: ZipError) -> Self {
        match error {
            ZipError::Io(error) => error.into(),
            error => Self::Zip(error.to_string()),
        }
    }
}
