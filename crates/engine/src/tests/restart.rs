//! Sessions on disk: after a stop, and after a crash.

use super::*;

/// Continues the sessions of a folder in a new engine.
fn restart(folder: &Path, models: &Arc<TestModels>) -> Engine {
    let storage = open_folder(folder, SessionLimits::default());
    let source = Arc::clone(models) as Arc<dyn ModelSource>;
    Engine::start(config(), source, storage).unwrap()
}

/// Copies a folder as it is now, as a crash would leave it.
fn copy(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_bit_for_bit_after_a_stop_and_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open_folder(folder.path(), SessionLimits::default());
    let (engine, models) = start_on(config(), storage);
    text(&engine, seeded_call("done", "abc", 40)).await;
    let call = seeded_call("running", "abc", 1_000_000);
    let mut stream = engine.generate(call).await.unwrap();
    let mut taken = read_some(&mut stream, 300).await;
    let stopper = engine.clone();
    let stop = tokio::spawn(async move { stopper.stop().await });
    let finished = loop {
        match stream.next().await.unwrap().unwrap() {
            GenerationEvent::Text(event) => taken.push_str(&event.text),
            GenerationEvent::Finished(finished) => break finished,
            GenerationEvent::Started(_) => {}
        }
    };
    stop.await.unwrap().unwrap();
    assert_eq!(finished.reason, FinishReason::Shutdown);
    assert_eq!(finished.position, 3 + taken.len() as u64);
    assert_eq!(
        rejection(&engine, call_of("a")).await,
        GenerateError::Stopping
    );
    drop(engine);

    let again = restart(folder.path(), &models);
    let (straight, _) = reference(&models, "abc", taken.len() as u64 + 40, 1);
    assert_eq!(position(&again, "done").await, 43);
    assert_eq!(
        text(&again, session_call("done", "", 40)).await,
        straight[40..80]
    );
    assert_eq!(position(&again, "running").await, finished.position);
    let rest = text(&again, session_call("running", "", 40)).await;
    assert_eq!(taken + &rest, straight);
    again.stop().await.unwrap();
}

fn call_of(prompt: &str) -> GenerateCall {
    call(prompt, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_every_finished_call_is_there_and_a_retry_gives_the_same_text() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open_folder(folder.path(), SessionLimits::default());
    let (engine, models) = start_on(config(), storage);
    let (straight, _) = reference(&models, "abc", 700, 1);
    text(&engine, seeded_call("s", "abc", 100)).await;
    let interrupted = session_call("s", "", 600);
    let mut stream = engine.generate(interrupted.clone()).await.unwrap();
    let Some(Ok(GenerationEvent::Started(started))) = stream.next().await else {
        panic!("the call must start");
    };
    let part = read_some(&mut stream, 50).await;
    // The last event is not taken: whatever the copy has, the retry works.
    let crashed = copy(folder.path());
    drop(stream);
    engine.stop().await.unwrap();

    let again = restart(crashed.path(), &models);
    let at = position(&again, "s").await;
    assert!(at >= 103, "{at}");
    let repeated = whole(&again, repeat(&interrupted, &started)).await;
    assert_eq!(repeated.text, straight[100..]);
    assert!(repeated.text.starts_with(&part));
    again.stop().await.unwrap();
}
