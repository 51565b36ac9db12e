//! Tests of the trainings that version 0.1 left on disk.

use charlstm_store::folder_copy::copy_folder;

use super::*;

/// A fixture with the trainings of the golden data folder and of this crate's
/// test data.
fn version_0_1() -> Fixture {
    let fixture = Fixture::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["../../tests/golden/data-0.1", "testdata/version-0.1"] {
        copy_folder(
            &root.join(folder).join("trainings"),
            &fixture.folder.path().join("trainings"),
        )
        .unwrap();
    }
    fixture
}

/// The trainings, with the state in which this version opens them.
const TRAININGS: [(&str, State); 9] = [
    ("t-1a2190c522c13aefc0d", State::Succeeded),
    ("t-1a2190c523e4c953938", State::Succeeded),
    ("t-1a2190c524bdd174297", State::Succeeded),
    // Killed.
    ("t-1a2190c5256b00bebf6", State::Interrupted),
    ("t-1a2190c6278308a0a1f", State::Cancelled),
    ("t-1a2190c68369d380932", State::Interrupted),
    // Stopped while it was waiting.
    ("t-1a2190c690be0e9eb22", State::Interrupted),
    // Cancelled, resumed and killed.
    ("t-1a21912eaab6585a975", State::Interrupted),
    ("t-1a21912eaf67709c472", State::Failed),
];

#[test]
fn trainings_of_version_0_1_are_read_as_they_are() {
    let fixture = version_0_1();
    let jobs = fixture.open();
    assert_eq!(jobs.list().len(), TRAININGS.len());
    for (id, state) in TRAININGS {
        let job = jobs.get(id).unwrap();
        assert_eq!(job.summary().state, state, "{id}");
        assert_eq!(end(&job).state, state, "{id}");
        assert_eq!(job.summary().run, 1);
        let sequences: Vec<u64> = watch(&job, 0).iter().map(|event| event.sequence).collect();
        assert!(sequences.is_sorted());
        assert!(!job.folder().join("events.damaged").exists());
    }
    let succeeded = jobs.get(TRAININGS[0].0).unwrap();
    assert_eq!(succeeded.summary().version, 1);
    let spec = &succeeded.metadata().spec;
    assert_eq!(spec.model, "small");
}

#[test]
fn unfinished_trainings_of_version_0_1_are_resumed_from_their_checkpoints() {
    let fixture = version_0_1();
    let jobs = fixture.open_with(|config| config.max_queued = 100);
    let hold = fixture.learners.hold_before_step(1);
    let first = start(&jobs, &spec()).unwrap();
    hold.wait_until_reached();
    for (id, state) in TRAININGS {
        let checkpoint = jobs.get(id).unwrap().checkpoints().load();
        let resumed = jobs.resume(id, &Requester::admin());
        if state == State::Succeeded {
            assert!(matches!(resumed, Err(JobsError::NotResumable { .. })));
            continue;
        }
        let step = checkpoint.map_or(0, |checkpoint| checkpoint.learner.step);
        let job = resumed.unwrap();
        let events = job.history().events();
        let EventKind::Resumed(resumed) = &events.last().unwrap().event else {
            panic!("{:?}", events.last());
        };
        assert_eq!((resumed.run, resumed.step), (2, step));
    }
    hold.release();
    end(&first);
    for (id, _) in TRAININGS {
        let finished = end(&jobs.get(id).unwrap());
        assert_eq!(finished.state, State::Succeeded, "{finished:?}");
    }
}
