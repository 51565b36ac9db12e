//! Owners of trainings, and their quotas.

use charlstm_repository::Publisher;
use charlstm_store::session::Owner;

use super::*;

fn requester(name: &str, max_trainings: Option<u64>) -> Requester {
    Requester {
        publisher: Publisher {
            owner: Owner::new(name).unwrap(),
            is_admin: false,
        },
        max_trainings,
        max_corpus_bytes: None,
    }
}

fn start_as(jobs: &Jobs, requester: Requester) -> Result<Arc<Job>, JobsError> {
    let mut upload = jobs.begin(&spec(), requester)?;
    upload.push(CORPUS)?;
    jobs.start(upload)
}

#[test]
fn a_training_belongs_to_its_requester_also_after_a_restart() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let job = start_as(&jobs, requester("alice", None)).unwrap();
    assert_eq!(job.owner().as_str(), "alice");
    end(&job);
    let id = job.id().to_owned();
    jobs.stop(PATIENCE);
    drop((job, jobs));
    let jobs = fixture.open();
    assert_eq!(jobs.get(&id).unwrap().owner().as_str(), "alice");
}

#[test]
fn waiting_and_running_trainings_count_towards_the_quota_of_their_owner() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let hold = fixture.learners.hold_before_step(1);
    let running = start_as(&jobs, requester("alice", Some(2))).unwrap();
    hold.wait_until_reached();
    // An upload that began when there was space is checked again at its end.
    let mut late = jobs.begin(&spec(), requester("alice", Some(2))).unwrap();
    late.push(CORPUS).unwrap();
    let waiting = start_as(&jobs, requester("alice", Some(2))).unwrap();
    let is_rejected =
        |result: Result<_, JobsError>| matches!(result, Err(JobsError::TrainingQuota { limit: 2 }));
    assert!(is_rejected(jobs.start(late)));
    assert!(is_rejected(start_as(&jobs, requester("alice", Some(2)))));
    // Another principal is not affected.
    let other = start_as(&jobs, requester("bob", Some(1))).unwrap();
    jobs.cancel(waiting.id()).unwrap();
    end(&waiting);
    let alice = requester("alice", Some(1));
    assert!(matches!(
        jobs.resume(waiting.id(), &alice),
        Err(JobsError::TrainingQuota { limit: 1 })
    ));
    jobs.resume(waiting.id(), &requester("alice", Some(2)))
        .unwrap();
    hold.release();
    for job in [running, waiting, other] {
        assert_eq!(end(&job).state, State::Succeeded);
    }
}

#[test]
fn a_corpus_beyond_the_quota_of_its_principal_is_rejected_while_it_is_uploaded() {
    let fixture = Fixture::new();
    let jobs = fixture.open();
    let limited = |bytes| Requester {
        max_corpus_bytes: Some(bytes),
        ..requester("alice", None)
    };
    let size = CORPUS.len() as u64;
    assert!(matches!(
        start_as(&jobs, limited(size - 1)),
        Err(JobsError::CorpusQuota { limit }) if limit == size - 1
    ));
    let job = start_as(&jobs, limited(size)).unwrap();
    assert_eq!(end(&job).state, State::Succeeded);
}
