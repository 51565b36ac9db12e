//! The two containers of `torch.save`: a zip since PyTorch 1.6, a row of
//! pickles before. Either way: one pickle, and where in the file the numbers
//! of each storage lie.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::TorchCheckpointError;
use super::pickle::{Node, Pickle};

/// Most bytes of a pickle: a vocabulary of 65,536 characters takes about
/// twelve each.
const MAX_PICKLE_BYTES: u64 = 2 * 1024 * 1024;

/// Most bytes of a zip's list of contents; a model has some dozen entries.
const MAX_DIRECTORY_BYTES: u64 = 1024 * 1024;

/// The first number of the older format.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The only version that the older format ever had.
const LEGACY_PROTOCOL: i128 = 1001;

/// What a file holds.
pub(super) struct Archive {
    pub(super) pickle: Pickle,
    /// Bytes of the file, by the key of the storage.
    pub(super) storages: HashMap<String, Range<u64>>,
}

impl Archive {
    /// Reads all but the numbers; of those in a zip it checks the checksums.
    pub(super) fn open(mut reader: impl Read + Seek) -> Result<Self, TorchCheckpointError> {
        let mut first = [0; 4];
        reader.rewind()?;
        reader.read_exact(&mut first)?;
        reader.rewind()?;
        match first {
            [b'P', b'K', ..] => Self::zip(reader),
            [0x80, 2, ..] => Self::legacy(reader),
            _ => Err(TorchCheckpointError::Broken(
                "it begins like none of its files",
            )),
        }
    }

    fn zip(reader: impl Read + Seek) -> Result<Self, TorchCheckpointError> {
        let left = Rc::new(Cell::new(MAX_DIRECTORY_BYTES));
        let reader = Bounded {
            inner: reader,
            left: Rc::clone(&left),
        };
        let mut zip = ZipArchive::new(BufReader::new(reader))?;
        // From here on each read is bounded by the size of an entry, and that
        // by the file: only entries that are not compressed can be read.
        left.set(u64::MAX);
        let names: Vec<String> = zip
            .file_names()
            .map(|name| name.map(std::borrow::Cow::into_owned))
            .collect::<Result<_, _>>()?;
        let folder = names
            .iter()
            .find_map(|name| name.strip_suffix("/data.pkl"))
            .ok_or(TorchCheckpointError::Broken("it has no data.pkl"))?;

        if let Some(name) = names
            .iter()
            .find(|name| **name == format!("{folder}/byteorder"))
        {
            let mut order = String::new();
            zip.by_name(name)?.take(16).read_to_string(&mut order)?;
            if order != "little" {
                return Err(TorchCheckpointError::BigEndian);
            }
        }
        let pickle = zip.by_name(&format!("{folder}/data.pkl"))?;
        let pickle = Pickle::read(BufReader::new(pickle.take(MAX_PICKLE_BYTES)))?;

        let mut storages = HashMap::new();
        for storage in pickle.storages() {
            if storages.contains_key(&storage.key) {
                continue;
            }
            let mut entry = zip.by_name(&format!("{folder}/data/{}", storage.key))?;
            let start = entry
                .data_start()
                .ok_or(TorchCheckpointError::Broken("an entry lies nowhere"))?;
            // To its end, where its checksum is compared.
            let length = io::copy(&mut entry, &mut io::sink())?;
            storages.insert(storage.key.clone(), start..start + length);
        }
        Ok(Self { pickle, storages })
    }

    fn legacy(mut reader: impl Read + Seek) -> Result<Self, TorchCheckpointError> {
        let length = reader.seek(SeekFrom::End(0))?;
        reader.rewind()?;
        let mut reader = BufReader::new(reader);
        let mut next = || Pickle::read((&mut reader).take(MAX_PICKLE_BYTES));
        let (magic, protocol) = (next()?, next()?);
        if (magic.root(), protocol.root())
            != (&Node::Int(LEGACY_MAGIC), &Node::Int(LEGACY_PROTOCOL))
        {
            return Err(TorchCheckpointError::Broken(
                "it begins like none of its files",
            ));
        }
        let system = next()?;
        if system.entry(system.root(), "little_endian") != Some(&Node::Bool(true)) {
            return Err(TorchCheckpointError::BigEndian);
        }
        let (pickle, keys) = (next()?, next()?);
        let Node::Sequence(order) = keys.root() else {
            return Err(TorchCheckpointError::Broken(
                "it has no list of its storages",
            ));
        };
        let known: HashMap<&str, _> = pickle
            .storages()
            .map(|storage| (storage.key.as_str(), storage))
            .collect();
        let mut storages = HashMap::new();
        for &key in order {
            let Node::Text(key) = keys.node(key) else {
                return Err(TorchCheckpointError::Broken(
                    "a key of a storage is no text",
                ));
            };
            let storage = known.get(key.as_str()).ok_or(TorchCheckpointError::Broken(
                "it has a storage that it never names",
            ))?;
            let mut count = [0; 8];
            reader.read_exact(&mut count)?;
            let start = reader.stream_position()?;
            let end = u64::from_le_bytes(count)
                .checked_mul(storage.kind.bytes())
                .and_then(|bytes| start.checked_add(bytes))
                .filter(|&end| end <= length)
                .ok_or(TorchCheckpointError::Broken("it ends within a storage"))?;
            reader.seek(SeekFrom::Start(end))?;
            storages.insert(key.clone(), start..end);
        }
        Ok(Self { pickle, storages })
    }
}

/// Refuses to read more than `left` bytes in all, so that nobody makes us
/// build a long list of contents.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other("its list of contents is too long")),
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for Bounded<R> {
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
