//! A disk in memory that loses power, fails and is slow on demand.
//!
//! What is written is visible at once and durable after a sync. A power cut
//! keeps any part of what was not synced: of each write any of its sectors.
//! After a failed sync, what it should have made durable is not written by
//! later syncs either, though it can still be read: so do real kernels behave.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::session::embedded::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// Handle of a disk; clones share it.
#[derive(Clone, Debug)]
pub(super) struct SimulatedDisk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Syncs wait here while they are held.
    released: Condvar,
}

#[derive(Debug)]
struct State {
    files: Vec<File>,
    entries: BTreeMap<String, usize>,
    durable_entries: BTreeMap<String, usize>,
    entry_changes: Vec<EntryChange>,
    random: StdRng,
    /// Operations that change or sync something, so far.
    operations: u64,
    cut_at: Option<u64>,
    /// Content after the power cut.
    image: Option<BTreeMap<String, Vec<u8>>>,
    /// Files and entries at that moment.
    killed: Option<(Vec<File>, BTreeMap<String, usize>)>,
    fault: Option<Fault>,
    /// Bytes that all files may take.
    capacity: u64,
    syncs: u64,
    sync_delay: Duration,
    holds_syncs: bool,
    held_syncs: u64,
}

#[derive(Clone, Debug, Default)]
struct File {
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLength(usize),
}

#[derive(Clone, Debug)]
enum EntryChange {
    Add(String, usize),
    Rename(String, String),
    Remove(String),
}

/// Operations that fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) kind: io::ErrorKind,
    pub(super) what: What,
    /// So many operations of that kind succeed first.
    pub(super) after: u64,
    /// So many fail then.
    pub(super) count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Syncs,
    /// Everything that changes something, syncs included.
    Changes,
    Reads,
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Self::SetLength(length) => content.resize(*length, 0),
        }
    }

    /// Applies any part of it.
    fn tear(&self, content: &mut Vec<u8>, random: &mut StdRng) {
        match self {
            Self::Write(at, bytes) => {
                let all = random.random_bool(0.5);
                let mut done = 0;
                while done < bytes.len() {
                    let sector_end = (at + done) / SECTOR * SECTOR + SECTOR;
                    let end = (sector_end - at).min(bytes.len());
                    if all || random.random_bool(0.5) {
                        Self::Write(at + done, bytes[done..end].to_vec()).apply(content);
                    }
                    done = end;
                }
            }
            Self::SetLength(_) => self.apply(content),
        }
    }
}

impl File {
    /// The content of the medium after a power cut.
    fn after_cut(&self, random: &mut StdRng) -> Vec<u8> {
        let mut content = self.durable.clone();
        for change in &self.unsynced {
            if random.random_bool(0.6) {
                change.tear(&mut content, random);
            }
        }
        content
    }

    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            change.apply(&mut self.durable);
        }
    }

    fn fail_sync(&mut self, random: &mut StdRng) {
        self.durable = self.after_cut(random);
        self.unsynced.clear();
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.unsynced.push(change);
    }
}

impl EntryChange {
    fn apply(&self, entries: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, file) => {
                entries.insert(name.clone(), *file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = entries.remove(from) {
                    entries.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => {
                entries.remove(name);
            }
        }
    }
}

impl SimulatedDisk {
    /// An empty disk. `seed` decides what a power cut keeps.
    pub(super) fn new(seed: u64) -> Self {
        Self::with_files(BTreeMap::new(), seed)
    }

    pub(super) fn with_files(content: BTreeMap<String, Vec<u8>>, seed: u64) -> Self {
        let mut files = Vec::new();
        let mut entries = BTreeMap::new();
        for (name, content) in content {
            entries.insert(name, files.len());
            files.push(File {
                current: content.clone(),
                durable: content,
                unsynced: Vec::new(),
            });
        }
        let state = State {
            files,
            durable_entries: entries.clone(),
            entries,
            entry_changes: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            operations: 0,
            cut_at: None,
            image: None,
            killed: None,
            fault: None,
            capacity: u64::MAX,
            syncs: 0,
            sync_delay: Duration::ZERO,
            holds_syncs: false,
            held_syncs: 0,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            released: Condvar::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Cuts the power during an operation: after so many more.
    pub(super) fn cut_after(&self, operations: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.operations + operations);
    }

    pub(super) fn is_off(&self) -> bool {
        self.state().image.is_some()
    }

    /// The disk after the power came back; cuts it first if it is still on.
    pub(super) fn restart(&self, seed: u64) -> Self {
        let mut state = self.state();
        state.cut();
        let image = state.image.clone().unwrap();
        Self::with_files(image, seed)
    }

    /// The disk after the process was killed, when the power would have failed
    /// or now: nothing that was written is lost, and nothing is synced. For
    /// the process, the disk is off.
    pub(super) fn kill(&self, seed: u64) -> Self {
        let mut state = self.state();
        state.cut();
        let (files, entries) = state.killed.clone().unwrap();
        let killed = Self::new(seed);
        {
            let mut new = killed.state();
            new.files = files;
            new.durable_entries = state.durable_entries.clone();
            new.entry_changes = state.entry_changes.clone();
            new.entries = entries;
        }
        drop(state);
        killed
    }

    pub(super) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(super) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The fault, with what is left of it.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.state().fault
    }

    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Leaves so many bytes of free space; `None`: no limit.
    pub(super) fn set_free(&self, bytes: Option<u64>) {
        let mut state = self.state();
        state.capacity = bytes.map_or(u64::MAX, |bytes| state.used() + bytes);
    }

    pub(super) fn set_sync_delay(&self, delay: Duration) {
        self.state().sync_delay = delay;
    }

    /// Makes syncs wait, or lets them go.
    pub(super) fn hold_syncs(&self, hold: bool) {
        self.state().holds_syncs = hold;
        self.0.released.notify_all();
    }

    /// Syncs that are being held now.
    pub(super) fn held_syncs(&self) -> u64 {
        self.state().held_syncs
    }

    pub(super) fn file_names(&self) -> Vec<String> {
        self.state().entries.keys().cloned().collect()
    }

    /// All files as they are now.
    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let names = state.entries.iter();
        names
            .map(|(name, &file)| (name.clone(), state.files[file].current.clone()))
            .collect()
    }
}

impl State {
    fn used(&self) -> u64 {
        let files = self.entries.values();
        files
            .map(|&file| self.files[file].current.len() as u64)
            .sum()
    }

    fn cut(&mut self) {
        if self.image.is_some() {
            return;
        }
        let mut entries = self.durable_entries.clone();
        let kept = self.random.random_range(0..=self.entry_changes.len());
        for change in &self.entry_changes[..kept] {
            change.apply(&mut entries);
        }
        let mut image = BTreeMap::new();
        for (name, file) in entries {
            let content = self.files[file].after_cut(&mut self.random);
            image.insert(name, content);
        }
        self.image = Some(image);
        self.killed = Some((self.files.clone(), self.entries.clone()));
    }

    fn check_on(&self) -> io::Result<()> {
        match self.image {
            Some(_) => Err(io::Error::other("the power is off")),
            None => Ok(()),
        }
    }

    /// Counts an operation. Returns whether the power is cut during it.
    fn operation(&mut self, is_sync: bool) -> io::Result<bool> {
        self.check_on()?;
        self.operations += 1;
        self.fail(|what| match what {
            What::Syncs => is_sync,
            What::Changes => true,
            What::Reads => false,
        })?;
        Ok(self.cut_at.is_some_and(|at| self.operations > at))
    }

    /// Fails if the fault is of this kind and it is its turn.
    fn fail(&mut self, is_of: impl Fn(What) -> bool) -> io::Result<()> {
        let Some(fault) = &mut self.fault else {
            return Ok(());
        };
        if !is_of(fault.what) {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
        } else if fault.count > 0 {
            fault.count = fault.count.saturating_sub(1);
            return Err(fault.kind.into());
        }
        Ok(())
    }

    fn change_entries(&mut self, change: EntryChange) -> io::Result<()> {
        let is_cut = self.operation(false)?;
        change.apply(&mut self.entries);
        self.entry_changes.push(change);
        self.finish(is_cut)
    }

    fn change_file(&mut self, file: usize, change: Change) -> io::Result<()> {
        let is_cut = self.operation(false)?;
        let old = self.files[file].current.len();
        let new = match &change {
            Change::Write(at, bytes) => old.max(at + bytes.len()),
            Change::SetLength(length) => *length,
        };
        let growth = new.saturating_sub(old) as u64;
        if growth > 0 && self.used() + growth > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files[file].change(change);
        self.finish(is_cut)
    }

    fn finish(&mut self, is_cut: bool) -> io::Result<()> {
        if is_cut {
            self.cut();
        }
        self.check_on()
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state();
        state.check_on()?;
        let file = state.entries.get(name).copied();
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimulatedFile {
            disk: self.clone(),
            file,
        }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        if state.entries.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.files.len();
        state.files.push(File::default());
        state.change_entries(EntryChange::Add(name.to_owned(), file))?;
        Ok(Arc::new(SimulatedFile {
            disk: self.clone(),
            file,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.entries.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_entries(EntryChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.entries.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_entries(EntryChange::Remove(name.to_owned()))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.check_on()?;
        Ok(state.entries.keys().cloned().collect())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        let is_cut = state.operation(true)?;
        if !is_cut {
            state.entry_changes.clear();
            state.durable_entries = state.entries.clone();
        }
        state.finish(is_cut)
    }

    fn unlock(&self) {}
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.check_on()?;
        Ok(state.files[self.file].current.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check_on()?;
        state.fail(|what| what == What::Reads)?;
        let at = usize::try_from(offset).unwrap();
        let content = state.files[self.file].current.get(at..);
        let content = content.and_then(|content| content.get(..buffer.len()));
        let content = content.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(content);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let change = Change::Write(at, bytes.to_vec());
        self.disk.state().change_file(self.file, change)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let change = Change::SetLength(usize::try_from(length).unwrap());
        self.disk.state().change_file(self.file, change)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        if self.len()? < length {
            self.set_len(length)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let delay = self.disk.state().sync_delay;
        std::thread::sleep(delay);
        let mut guard = self.disk.state();
        guard.held_syncs += 1;
        while guard.holds_syncs {
            guard = self.disk.0.released.wait(guard).unwrap();
        }
        guard.held_syncs -= 1;
        let state = &mut *guard;
        state.check_on()?;
        match state.operation(true) {
            Ok(false) => {
                state.syncs += 1;
                state.files[self.file].sync();
                Ok(())
            }
            Ok(true) => state.finish(true),
            Err(error) => {
                state.files[self.file].fail_sync(&mut state.random);
                Err(error)
            }
        }
    }
}
