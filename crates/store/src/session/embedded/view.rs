//! A file that can be read as if it could be written.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::DiskFile;

/// Bytes that are kept as one.
const PAGE: u64 = 4096;

/// Keeps what is written to a file in memory. redb repairs a database when it
/// opens it; so it can do that, and be read, while the disk accepts no writes.
#[derive(Debug)]
pub(super) struct View {
    file: Arc<dyn DiskFile>,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    length: u64,
    /// How far the file itself still counts.
    file_length: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl View {
    pub(super) fn of(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let length = file.len()?;
        Ok(Self {
            file,
            changes: Mutex::new(Changes {
                length,
                file_length: length,
                pages: BTreeMap::new(),
            }),
        })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page as it is now.
    fn page(&self, changes: &Changes, number: u64) -> io::Result<Box<[u8]>> {
        if let Some(page) = changes.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE as usize].into_boxed_slice();
        let begin = number * PAGE;
        let there = changes.file_length.saturating_sub(begin).min(PAGE);
        let there = usize::try_from(there).unwrap_or(page.len());
        self.file.read_at(begin, &mut page[..there])?;
        Ok(page)
    }
}

/// Splits a range into its parts in each page: number of the page, offset in
/// it, and the part of the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE).ok()?;
        let count = (PAGE as usize - within).min(length - done);
        let part = done..done + count;
        done += count;
        Some((at / PAGE, within, part))
    })
}

impl DiskFile for View {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().length)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let changes = self.changes();
        if offset + buffer.len() as u64 > changes.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, within, part) in parts(offset, buffer.len()) {
            let page = self.page(&changes, number)?;
            let count = part.len();
            buffer[part].copy_from_slice(&page[within..within + count]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut changes = self.changes();
        for (number, within, part) in parts(offset, bytes.len()) {
            let mut page = self.page(&changes, number)?;
            page[within..within + part.len()].copy_from_slice(&bytes[part]);
            changes.pages.insert(number, page);
        }
        changes.length = changes.length.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut changes = self.changes();
        if length < changes.length {
            // The rest of the last page is zeros when the file grows again.
            let (last, within) = (length / PAGE, (length % PAGE) as usize);
            let mut page = self.page(&changes, last)?;
            page[within..].fill(0);
            changes.pages.split_off(&last);
            changes.pages.insert(last, page);
            changes.file_length = changes.file_length.min(last * PAGE);
        }
        changes.length = length;
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let length = self.len()?.max(length);
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::super::disk::{Disk, Folder};
    use super::*;

    #[test]
    fn a_view_reads_as_the_file_would_after_the_same_writes() {
        let mut random = StdRng::seed_from_u64(3);
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::open(folder.path()).unwrap();
        let file = disk.create("a").unwrap();
        let mut expected = vec![0; 30_000];
        random.fill_bytes(&mut expected);
        file.write_at(0, &expected).unwrap();
        let before = expected.clone();
        let view = View::of(Arc::clone(&file)).unwrap();
        for _ in 0..300 {
            if random.random_range(0..10) == 0 {
                let length = random.random_range(0..40_000_usize);
                view.set_len(length as u64).unwrap();
                expected.resize(length, 0);
            } else {
                let at = random.random_range(0..35_000_usize);
                let mut bytes = vec![0; random.random_range(0..9_000)];
                random.fill_bytes(&mut bytes);
                view.write_at(at as u64, &bytes).unwrap();
                let end = at + bytes.len();
                if !bytes.is_empty() {
                    expected.resize(expected.len().max(end), 0);
                    expected[at..end].copy_from_slice(&bytes);
                }
            }
            let mut read = vec![0; usize::try_from(view.len().unwrap()).unwrap()];
            view.read_at(0, &mut read).unwrap();
            assert!(read == expected);
        }
        let mut unchanged = vec![0; 30_000];
        file.read_at(0, &mut unchanged).unwrap();
        assert!(unchanged == before);
        assert_eq!(file.len().unwrap(), 30_000);
    }
}
