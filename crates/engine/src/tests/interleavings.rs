//! All orders in which the worker, the reader, the commit and a deletion can
//! reach the buffer of one call. Each of their steps is atomic, under the lock
//! of the buffer, so that running the steps in every order on one thread
//! covers what threads can do.

use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Wake, Waker};

use charlstm_model::decode_step::HiddenState;
use charlstm_store::session::{ModelVersion, ParametersDigest};
use charlstm_store::session::{OpenRequest, OpenedSession, SessionIdentity, SessionState};
use tokio::runtime::{Builder, Runtime};

use super::controlled_storage::ControlledStorage;
use super::*;
use crate::admission::Admission;
use crate::committer::Committer;
use crate::progress::{Destination, OpenSession, Progress};
use crate::text_buffer::{Completion, EndedText, ReaderSession, TextBuffer, TextBufferParts};

/// Characters of the prompt.
const PROMPT_CHARS: u64 = 3;

/// A step of one of the parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The worker gives the call its slot.
    Start,
    /// The worker appends characters.
    Append(usize),
    /// The worker ends the text.
    End(Ending),
    /// The worker gives up a reader that does not read.
    GiveUp,
    /// The reader polls.
    Poll,
    /// The reader drops the stream.
    Leave,
    /// The runtime runs the commits that were submitted.
    Commit,
    /// Somebody deletes the session.
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Length,
    Shutdown,
    Error,
}

#[derive(Default)]
struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One call, of which a test runs the steps.
struct Call {
    runtime: Runtime,
    storage: Arc<ControlledStorage>,
    admission: Arc<Admission>,
    buffer: Arc<TextBuffer>,
    stream: Option<GenerationStream>,
    progress: Option<Progress>,
    appended: u64,
    taken: u64,
    wake_flag: Arc<WakeFlag>,
    waker: Waker,
    /// The last poll was pending.
    is_waiting: bool,
    last_event: Option<Result<Finished, GenerateError>>,
    is_deleted: bool,
    /// The session was deleted before the call was committed.
    lost_lease: bool,
}

impl Call {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().build().unwrap();
        let storage = ControlledStorage::new();
        let identity = SessionIdentity {
            model: ModelVersion {
                name: "m".into(),
                version: 1,
            },
            digest: [1; 32],
            precision: charlstm_model::decode_step::Precision::Float32,
            revision: charlstm_model::decode_step::ARITHMETIC_REVISION,
        };
        let request = OpenRequest {
            key: key("s"),
            expected_position: None,
            create: Some(identity.clone()),
            owner_limit: None,
        };
        let opened = runtime.block_on(storage.open(request));
        let OpenedSession { lease, .. } = opened.unwrap();
        let admission = Admission::new(1);
        let sessions = Arc::clone(&storage) as Arc<dyn SessionStorage>;
        let buffer = TextBuffer::new(TextBufferParts {
            started: Started {
                session: Some(id("s")),
                model: ModelId {
                    name: "m".to_owned(),
                    version: 1,
                },
                precision: identity.precision,
                seed: 1,
                position: 0,
                unknown_chars: 0,
            },
            prompt_chars: PROMPT_CHARS,
            session: Some(ReaderSession {
                id: id("s"),
                lease: lease.handle(),
            }),
            capacity_chars: 100,
            inbox: Arc::default(),
            committer: Committer::new(sessions, runtime.handle().clone()),
            permit: admission.admit(&CallerId::default(), 1).unwrap(),
        });
        let session = OpenSession {
            destination: Destination::Storage(lease),
            identity,
            begin: SessionState::origin(1),
        };
        let mut progress = Progress::new(session, ParametersDigest([0; 32]), &[1, 2, 3]);
        progress.prefilled(&HiddenState::Float32([0.5; 4].into()), 3);
        let wake_flag = Arc::new(WakeFlag::default());
        Self {
            runtime,
            storage,
            admission,
            stream: Some(GenerationStream::new(Arc::clone(&buffer))),
            buffer,
            progress: Some(progress),
            appended: 0,
            taken: 0,
            waker: Waker::from(Arc::clone(&wake_flag)),
            wake_flag,
            is_waiting: false,
            last_event: None,
            is_deleted: false,
            lost_lease: false,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Start => wake(self.buffer.start()),
            Step::Append(chars) => {
                for _ in 0..chars {
                    let progress = self.progress.as_mut().unwrap();
                    progress.generated(7, || unreachable!(), || unreachable!());
                }
                self.appended += chars as u64;
                let (_, reader) = self.buffer.append((0..chars).map(|_| ('a', None)), 1);
                wake(reader);
            }
            Step::End(ending) => {
                let reason = match ending {
                    Ending::Length | Ending::Error => FinishReason::Length,
                    Ending::Shutdown => FinishReason::Shutdown,
                };
                let completion = Completion {
                    reason,
                    stop_chars: 0,
                    seconds: 0.0,
                };
                let ending = match ending {
                    Ending::Error => Err(GenerateError::Deadline),
                    Ending::Length | Ending::Shutdown => Ok(completion),
                };
                let session = self.progress.take().map(|progress| (progress, None));
                wake(self.buffer.end(EndedText { ending, session }));
            }
            Step::GiveUp => wake(self.buffer.give_up(GenerateError::Stopping)),
            Step::Poll => self.poll(),
            Step::Leave => drop(self.stream.take()),
            Step::Commit => self.runtime.block_on(async {
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }),
            Step::Delete => {
                let is_committed = self.position().is_some();
                let deleted = self.runtime.block_on(self.storage.delete(&key("s")));
                // A call that was cut off before its text leaves no session.
                self.is_deleted = deleted.is_ok();
                self.lost_lease = deleted.is_ok() && !is_committed;
            }
        }
    }

    fn poll(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        if self.last_event.is_some() {
            return;
        }
        let was_woken = self.wake_flag.0.swap(false, Ordering::Relaxed);
        let mut context = Context::from_waker(&self.waker);
        let event = match stream.poll_next_unpin(&mut context) {
            Poll::Pending => {
                self.is_waiting = true;
                return;
            }
            Poll::Ready(event) => event.unwrap(),
        };
        assert!(!self.is_waiting || was_woken, "a wake-up was lost");
        self.is_waiting = false;
        match event {
            Ok(GenerationEvent::Started(_)) => assert_eq!(self.taken, 0),
            Ok(GenerationEvent::Text(text)) => {
                assert!(!self.is_deleted, "text of a deleted session");
                self.taken += text.text.len() as u64;
                assert_eq!(text.position, PROMPT_CHARS + self.taken);
            }
            Ok(GenerationEvent::Finished(finished)) => {
                assert_eq!(finished.chars, self.taken);
                if !self.is_deleted {
                    assert_eq!(self.position().unwrap_or(0), finished.position);
                }
                self.last_event = Some(Ok(finished));
            }
            Err(error) => self.last_event = Some(Err(error)),
        }
    }

    fn position(&self) -> Option<u64> {
        let info = self.runtime.block_on(self.storage.get(&key("s")));
        info.ok().map(|info| info.position)
    }

    /// Lets everybody do what is left, and checks the outcome.
    fn finish(mut self, steps: &[Step]) {
        for _ in 0..6 {
            self.run(Step::Poll);
            self.run(Step::Commit);
        }
        assert_eq!(self.storage.submitted(), 1, "one commit per call");
        assert_eq!(self.admission.live(), 0, "the permit is returned");
        let gave_up = steps.contains(&Step::GiveUp);
        if self.stream.is_some() {
            let last = self.last_event.as_ref().expect("the reader gets the end");
            match last {
                Ok(finished) if self.lost_lease => {
                    assert_eq!(finished.reason, FinishReason::Cancelled);
                }
                Ok(finished) => {
                    assert_eq!(self.taken, self.appended);
                    let expected = if self.taken > 0 || finished.reason == FinishReason::Length {
                        PROMPT_CHARS + self.taken
                    } else {
                        0
                    };
                    assert_eq!(finished.position, expected);
                }
                Err(GenerateError::Deadline) => {
                    assert!(steps.contains(&Step::End(Ending::Error)));
                }
                Err(GenerateError::Stopping) => assert!(gave_up),
                Err(error) => panic!("{error}"),
            }
        }
        if self.is_deleted {
            assert_eq!(self.position(), None);
            return;
        }
        if self.taken > 0 {
            assert_eq!(self.position(), Some(PROMPT_CHARS + self.taken));
            return;
        }
        // Without text, a call that is complete has moved the session by its
        // prompt, and one that was cut off did not happen.
        let is_complete = self.position().is_some();
        if is_complete {
            assert_eq!(self.position(), Some(PROMPT_CHARS));
            assert_eq!(self.appended, 0);
            assert!(steps.contains(&Step::End(Ending::Length)));
        }
        if let Some(Ok(finished)) = &self.last_event {
            assert_eq!(is_complete, finished.reason == FinishReason::Length);
        }
    }
}

fn wake(reader: Option<Waker>) {
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// Calls `check` with every order of the steps that keeps the order of each
/// party. Returns the number of orders.
fn for_each_order(parties: &[&[Step]], check: &mut impl FnMut(&[Step])) -> usize {
    fn extend(
        parties: &mut [&[Step]],
        order: &mut Vec<Step>,
        check: &mut impl FnMut(&[Step]),
    ) -> usize {
        let mut orders = 0;
        for party in 0..parties.len() {
            let Some((&step, rest)) = parties[party].split_first() else {
                continue;
            };
            let all = std::mem::replace(&mut parties[party], rest);
            order.push(step);
            orders += extend(parties, order, check);
            order.pop();
            parties[party] = all;
        }
        if orders == 0 {
            check(order);
            return 1;
        }
        orders
    }
    extend(&mut parties.to_vec(), &mut Vec::new(), check)
}

fn run_order(order: &[Step]) {
    let mut call = Call::new();
    for &step in order {
        call.run(step);
    }
    call.finish(order);
}

fn run_all(parties: &[&[Step]]) -> usize {
    for_each_order(parties, &mut |order| {
        let outcome = std::panic::catch_unwind(|| run_order(order));
        assert!(outcome.is_ok(), "after the steps {order:?}");
    })
}

#[test]
fn every_order_of_worker_reader_and_commit_commits_once_at_the_reader() {
    use Step::{Append, Commit, End, GiveUp, Leave, Poll, Start};
    let mut orders = 0;
    for ending in [Ending::Length, Ending::Shutdown, Ending::Error] {
        let texts: [&[Step]; 3] = [
            &[Start, End(ending)],
            &[Start, Append(2), End(ending)],
            &[Start, Append(1), Append(2), End(ending), GiveUp],
        ];
        let readers: [&[Step]; 3] = [&[Poll, Poll, Poll], &[Poll, Poll, Leave], &[Leave]];
        for text in texts {
            for reader in readers {
                orders += run_all(&[text, reader, &[Commit]]);
            }
        }
    }
    // A change of the steps must not leave the test with nothing to do.
    assert!(orders > 1500, "{orders}");
}

#[test]
fn every_order_with_a_deletion_leaves_the_session_deleted() {
    use Step::{Append, Commit, Delete, End, Leave, Poll, Start};
    let mut orders = 0;
    for ending in [Ending::Length, Ending::Shutdown] {
        let text: &[Step] = &[Start, Append(2), End(ending)];
        let readers: [&[Step]; 2] = [&[Poll, Poll], &[Poll, Leave]];
        for reader in readers {
            orders += run_all(&[text, reader, &[Commit], &[Delete]]);
        }
    }
    assert!(orders > 1000, "{orders}");
}
