//! Transfers of models and corpora under way: limited in number and in bytes,
//! overall and for each caller.
//!
//! A transfer that waits for its client holds no thread. It holds its slot only
//! until another transfer needs it: if all slots are taken, the transfer that
//! has waited longest for its client, for some seconds at least, loses its own.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::caller::Caller;
use super::status;

/// Maximum number of transfers, and of one caller. Each has a chunk of some
/// hundred kilobytes in memory, and an open file.
const MAX_TRANSFERS: usize = 64;
const MAX_OF_CALLER: usize = 16;

/// Time that a transfer waits for its client before it can lose its slot.
const IDLE: Duration = Duration::from_secs(5);

/// The transfers under way. Clones share them.
#[derive(Clone, Debug)]
pub struct Transfers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Maximum size of all uploads under way, in bytes. One caller may have
    /// half of it.
    max_bytes: u64,
    /// Time that a transfer waits for its client before it can lose its slot.
    idle: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    caller: Caller,
    bytes: u64,
    /// Since when it waits for its client.
    idle_since: Option<Instant>,
    /// Is cancelled when it loses its slot.
    evicted: CancellationToken,
}

/// A transfer under way. It ends when this is dropped.
#[derive(Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    id: u64,
    evicted: CancellationToken,
}

impl Transfers {
    /// Uploads under way may have `max_bytes` in total.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                max_bytes,
                idle: IDLE,
                state: Mutex::default(),
            }),
        }
    }

    /// Uploads under way may have half of the free space of the disk of
    /// `folder` in total, so that they cannot fill it.
    pub fn on_disk_of(folder: &Path) -> Self {
        let free = rustix::fs::statvfs(folder).map(|disk| disk.f_bavail * disk.f_frsize);
        Self::new(free.map_or(u64::MAX, |free| free / 2))
    }

    /// Starts a transfer of the caller of a request.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if there are too many, and none of them is idle.
    pub fn begin<T>(&self, request: &Request<T>) -> Result<Transfer, Status> {
        self.start(Caller::of(request.extensions()))
    }

    fn start(&self, caller: Caller) -> Result<Transfer, Status> {
        let mut state = self.shared.lock();
        let of_caller = state.entries.values().filter(|e| e.caller == caller);
        if of_caller.count() >= MAX_OF_CALLER {
            state.evict(self.shared.idle, |entry| entry.caller == caller)?;
        } else if state.entries.len() >= MAX_TRANSFERS {
            state.evict(self.shared.idle, |_| true)?;
        }
        let id = state.next_id;
        state.next_id += 1;
        let evicted = CancellationToken::new();
        let entry = Entry {
            caller,
            bytes: 0,
            idle_since: None,
            evicted: evicted.clone(),
        };
        state.entries.insert(id, entry);
        Ok(Transfer {
            shared: Arc::clone(&self.shared),
            id,
            evicted,
        })
    }
}

impl State {
    /// Frees the slot of the transfer that has been idle for longest, of those
    /// that match.
    fn evict(
        &mut self,
        min_idle: Duration,
        matches: impl Fn(&Entry) -> bool,
    ) -> Result<(), Status> {
        let matching = self.entries.iter().filter(|(_, entry)| matches(entry));
        let idle = matching.filter_map(|(id, entry)| Some((entry.idle_since?, *id)));
        let Some((since, id)) = idle.min() else {
            return Err(status::too_many_transfers(min_idle));
        };
        let time = since.elapsed();
        if time < min_idle {
            return Err(status::too_many_transfers(min_idle - time));
        }
        if let Some(entry) = self.entries.remove(&id) {
            entry.evicted.cancel();
        }
        Ok(())
    }
}

impl Shared {
    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_idle_since(&self, id: u64, since: Option<Instant>) {
        if let Some(entry) = self.lock().entries.get_mut(&id) {
            entry.idle_since = since;
        }
    }
}

impl Transfer {
    /// Waits for something that the client does.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the transfer has lost its slot.
    pub async fn wait<T>(
        &self,
        client: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.set_idle(true);
        let outcome = tokio::select! {
            biased;
            outcome = client => outcome,
            () = self.evicted.cancelled() => Err(status::transfer_evicted()),
        };
        self.set_idle(false);
        outcome
    }

    /// Records whether the transfer waits for its client.
    pub fn set_idle(&self, is_idle: bool) {
        self.shared
            .set_idle_since(self.id, is_idle.then(Instant::now));
    }

    /// Whether it has lost its slot.
    pub fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Counts bytes that were received and are kept until the end.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if there are too many, or the transfer has lost its
    /// slot.
    pub fn received(&self, bytes: usize) -> Result<(), Status> {
        let mut state = self.shared.lock();
        let Some(entry) = state.entries.get(&self.id) else {
            return Err(status::transfer_evicted());
        };
        let caller = &entry.caller;
        let (mut total, mut own) = (bytes as u64, bytes as u64);
        for entry in state.entries.values() {
            total = total.saturating_add(entry.bytes);
            if entry.caller == *caller {
                own = own.saturating_add(entry.bytes);
            }
        }
        let max = self.shared.max_bytes;
        if total > max || own > max / 2 {
            return Err(status::transfers_too_large(max));
        }
        if let Some(entry) = state.entries.get_mut(&self.id) {
            entry.bytes += bytes as u64;
        }
        Ok(())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.shared.lock().entries.remove(&self.id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic::Code;
    use tonic::transport::server::TcpConnectInfo;

    use super::*;

    fn request(host: u8) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(TcpConnectInfo {
            local_addr: None,
            remote_addr: Some(([10, 0, 0, host], 1).into()),
        });
        request
    }

    fn begin(transfers: &Transfers, host: u8) -> Result<Transfer, Code> {
        transfers
            .begin(&request(host))
            .map_err(|status| status.code())
    }

    #[test]
    fn a_caller_has_a_limited_number_and_leaves_slots_to_others() {
        let transfers = Transfers::new(u64::MAX);
        let mut held: Vec<_> = (0..MAX_OF_CALLER)
            .map(|_| begin(&transfers, 1).unwrap())
            .collect();
        // Not for long enough.
        held[0].set_idle(true);
        assert_eq!(begin(&transfers, 1).unwrap_err(), Code::ResourceExhausted);
        let other = begin(&transfers, 2).unwrap();
        held.pop();
        held.push(begin(&transfers, 1).unwrap());
        assert!(!other.is_evicted());
    }

    #[tokio::test]
    async fn the_transfer_that_is_idle_for_longest_loses_its_slot_to_a_new_one() {
        let transfers = Transfers {
            shared: Arc::new(Shared {
                max_bytes: u64::MAX,
                idle: Duration::ZERO,
                state: Mutex::default(),
            }),
        };
        let held: Vec<_> = (0..MAX_TRANSFERS)
            .map(|n| begin(&transfers, u8::try_from(n / MAX_OF_CALLER).unwrap()).unwrap())
            .collect();
        assert_eq!(begin(&transfers, 9).unwrap_err(), Code::ResourceExhausted);
        held[5].set_idle(true);
        held[40].set_idle(true);
        let _new = begin(&transfers, 9).unwrap();
        let evicted: Vec<_> = (0..held.len()).filter(|&n| held[n].is_evicted()).collect();
        assert_eq!(evicted, [5]);
        let waiting = held[5].wait(std::future::pending::<Result<(), Status>>());
        assert_eq!(waiting.await.unwrap_err().code(), Code::ResourceExhausted);
        let _next = begin(&transfers, 9).unwrap();
        assert!(held[40].is_evicted());
        assert_eq!(begin(&transfers, 9).unwrap_err(), Code::ResourceExhausted);
    }

    #[test]
    fn uploads_have_a_limited_size_in_total_and_for_each_caller() {
        let transfers = Transfers::new(100);
        let (first, second) = (begin(&transfers, 1).unwrap(), begin(&transfers, 1).unwrap());
        first.received(30).unwrap();
        second.received(20).unwrap();
        assert!(second.received(1).is_err(), "more than half");
        let other = begin(&transfers, 2).unwrap();
        other.received(50).unwrap();
        let third = begin(&transfers, 3).unwrap();
        assert!(third.received(1).is_err(), "more than all");
        drop(first);
        third.received(30).unwrap();
    }
}
