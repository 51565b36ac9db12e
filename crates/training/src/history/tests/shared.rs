//! Histories that replicas share.

use super::*;

/// A store of which this replica can lose the claim, or an answer.
#[derive(Default)]
struct Store {
    events: Mutex<Vec<Arc<Event>>>,
    is_fenced: AtomicBool,
    loses_answers: AtomicBool,
}

impl Store {
    /// What all replicas read.
    fn events(&self) -> Vec<Event> {
        let events = lock(&self.events);
        events.iter().map(|event| Event::clone(event)).collect()
    }

    /// Another replica adds an event.
    fn add(&self, event: EventKind) {
        let mut events = lock(&self.events);
        let sequence = events.len() as u64;
        events.push(Arc::new(Event { sequence, event }));
    }
}

impl EventSink for Store {
    fn append(&self, events: &[Arc<Event>]) -> io::Result<()> {
        if self.is_fenced.load(Ordering::Relaxed) {
            return Err(io::Error::other("fenced"));
        }
        let mut stored = lock(&self.events);
        for event in events {
            if event.sequence >= stored.len() as u64 {
                stored.push(Arc::clone(event));
            }
        }
        match self.loses_answers.load(Ordering::Relaxed) {
            true => Err(io::Error::other("no answer")),
            false => Ok(()),
        }
    }

    fn keep_only(&self, _sequences: &[u64]) -> io::Result<()> {
        Ok(())
    }
}

fn running() -> (Arc<Store>, Arc<History>) {
    let store = Arc::new(Store::default());
    store.add(first());
    let history = Arc::new(History::shared());
    history.follow(store.events());
    history.attach(Arc::clone(&store) as Arc<dyn EventSink>);
    history.append(epoch(1));
    (store, history)
}

fn stored(history: &History) -> Vec<Event> {
    let events = history.events();
    events.iter().map(|event| Event::clone(event)).collect()
}

#[tokio::test]
async fn a_replica_that_lost_a_training_sees_all_events_of_the_other_one() {
    // The other replica's events are read before, while and after this one has
    // events that it cannot store.
    for read_at in 0..4 {
        let (store, history) = running();
        store.is_fenced.store(true, Ordering::Relaxed);
        for event in [resumed(2), epoch(2), epoch(3), finished(State::Succeeded)] {
            store.add(event);
        }
        for at in 0..4 {
            if at == read_at {
                history.follow(store.events());
            }
            history.append(epoch(2));
        }
        // What was read once is not read again.
        history.detach();
        assert_eq!(stored(&history), store.events(), "{read_at}");
        let seen = all(&history, 0).await;
        assert_eq!(seen.last(), Some(&finished(State::Succeeded)), "{read_at}");
        assert_eq!(seen.len(), 6, "{read_at}");
    }
}

#[test]
fn an_event_whose_answer_was_lost_is_there_once() {
    for is_read in [false, true] {
        let (store, history) = running();
        store.loses_answers.store(true, Ordering::Relaxed);
        history.append(epoch(2));
        history.append(epoch(3));
        if is_read {
            history.follow(store.events());
        }
        store.loses_answers.store(false, Ordering::Relaxed);
        history.append(epoch(4));
        assert_eq!(stored(&history), store.events());
        assert_eq!(store.events().len(), 5);
        history.follow(store.events());
        assert_eq!(stored(&history), store.events());
    }
}
