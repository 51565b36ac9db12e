//! The model files of shared versions that are on this machine. Each is named
//! by its SHA-256, was verified when it was fetched, and can be fetched again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use charlstm_store::atomic_file::Digesting;
use charlstm_store::hex;

use super::lock;

const EXTENSION: &str = "safetensors";

/// Files that are kept, the least recently used first.
#[derive(Debug)]
pub(super) struct FileCache {
    folder: PathBuf,
    /// Maximum bytes of all files; the newest stays in any case.
    max_bytes: u64,
    files: Mutex<Vec<CachedFile>>,
}

#[derive(Debug)]
struct CachedFile {
    digest: [u8; 32],
    bytes: u64,
}

/// A file could not be put into the cache.
#[derive(Debug)]
pub(super) enum CacheError<E> {
    /// It could not be fetched.
    Fetch(E),
    /// It is another file than the one that was stored.
    OtherDigest,
    Io(io::Error),
}

impl FileCache {
    /// Opens the cache in a folder that exists.
    pub(super) fn open(folder: &Path, max_bytes: u64) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let (path, metadata) = {
                let entry = entry?;
                (entry.path(), entry.metadata()?)
            };
            let digest = path.file_stem().and_then(|stem| stem.to_str());
            let is_file = path.extension().is_some_and(|end| end == EXTENSION);
            if let Some(digest) = digest.and_then(hex::decode).filter(|_| is_file) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let bytes = metadata.len();
                files.push((used, CachedFile { digest, bytes }));
            }
        }
        files.sort_by_key(|(used, _)| *used);
        let cache = Self {
            folder: folder.to_owned(),
            max_bytes,
            files: Mutex::new(files.into_iter().map(|(_, file)| file).collect()),
        };
        cache.shrink();
        Ok(cache)
    }

    pub(super) fn path(&self, digest: &[u8; 32]) -> PathBuf {
        let name = hex::encode(digest);
        self.folder.join(name).with_extension(EXTENSION)
    }

    /// Opens the file of a digest. If it is not there, `fetch` writes it to a
    /// path, and it is verified.
    pub(super) fn open_or_fetch<E>(
        &self,
        digest: &[u8; 32],
        staged: &Path,
        fetch: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<File, CacheError<E>> {
        match File::open(self.path(digest)) {
            Ok(file) => {
                let bytes = file.metadata().map_err(CacheError::Io)?.len();
                self.used(*digest, bytes);
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CacheError::Io(error)),
        }
        fetch(staged).map_err(CacheError::Fetch)?;
        if digest_of(staged).map_err(CacheError::Io)? != *digest {
            return Err(CacheError::OtherDigest);
        }
        self.insert(digest, staged).map_err(CacheError::Io)
    }

    /// Moves a verified file into the cache, and opens it.
    pub(super) fn insert(&self, digest: &[u8; 32], staged: &Path) -> io::Result<File> {
        let path = self.path(digest);
        fs::rename(staged, &path)?;
        // Before it may be evicted.
        let file = File::open(&path)?;
        self.used(*digest, file.metadata()?.len());
        Ok(file)
    }

    /// Removes a file that is no longer needed or is damaged. Whoever has it
    /// open keeps it.
    pub(super) fn remove(&self, digest: &[u8; 32]) {
        lock(&self.files).retain(|file| file.digest != *digest);
        self.delete(digest);
    }

    fn used(&self, digest: [u8; 32], bytes: u64) {
        let mut files = lock(&self.files);
        files.retain(|file| file.digest != digest);
        files.push(CachedFile { digest, bytes });
        drop(files);
        self.shrink();
    }

    fn shrink(&self) {
        let mut files = lock(&self.files);
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        while bytes > self.max_bytes && files.len() > 1 {
            let oldest = files.remove(0);
            bytes -= oldest.bytes;
            self.delete(&oldest.digest);
        }
    }

    fn delete(&self, digest: &[u8; 32]) {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "a cached model file cannot be removed");
            }
            _ => {}
        }
    }
}

fn digest_of(path: &Path) -> io::Result<[u8; 32]> {
    let mut reader = Digesting::new(io::BufReader::with_capacity(1 << 16, File::open(path)?));
    io::copy(&mut reader.by_ref(), &mut io::sink())?;
    Ok(reader.finish().1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_store::atomic_file::Digesting;
    use std::io::Write;

    use super::*;

    fn digest(bytes: &[u8]) -> [u8; 32] {
        let mut out = Digesting::new(io::sink());
        out.write_all(bytes).unwrap();
        out.finish().1
    }

    /// Returns the content of a file, and whether it had to be fetched.
    fn read(cache: &FileCache, stored: &[u8], sent: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let mut is_fetched = false;
        let staged = cache.folder.join("staged");
        let opened = cache.open_or_fetch(&digest(stored), &staged, |path| {
            is_fetched = true;
            fs::write(path, sent)
        });
        let mut bytes = Vec::new();
        opened
            .map_err(|error| format!("{error:?}"))?
            .read_to_end(&mut bytes)
            .unwrap();
        Ok((bytes, is_fetched))
    }

    #[test]
    fn a_file_is_fetched_once_and_verified() {
        let folder = tempfile::tempdir().unwrap();
        let cache = FileCache::open(folder.path(), 100).unwrap();
        let error = read(&cache, b"right", b"wrong").unwrap_err();
        assert_eq!(error, "OtherDigest");
        for is_first in [true, false] {
            let found = read(&cache, b"right", b"right").unwrap();
            assert_eq!(found, (b"right".to_vec(), is_first));
        }
        let cache = FileCache::open(folder.path(), 100).unwrap();
        assert!(!read(&cache, b"right", b"right").unwrap().1);
        cache.remove(&digest(b"right"));
        assert!(read(&cache, b"right", b"right").unwrap().1);
    }

    #[test]
    fn the_least_recently_used_files_are_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let cache = FileCache::open(folder.path(), 10).unwrap();
        for content in [b"aaaa", b"bbbb", b"aaaa", b"cccc"] {
            read(&cache, content, content).unwrap();
        }
        let fetched: Vec<bool> = [b"aaaa", b"cccc", b"bbbb"]
            .map(|content| read(&cache, content, content).unwrap().1)
            .to_vec();
        assert_eq!(fetched, [false, false, true]);
        // The newest stays, however large it is.
        read(&cache, &[1; 50], &[1; 50]).unwrap();
        assert!(!read(&cache, &[1; 50], &[1; 50]).unwrap().1);
    }
}
