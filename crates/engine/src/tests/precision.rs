//! Sessions and texts in both precisions.

use super::*;

pub(super) fn other(precision: Precision) -> Precision {
    match precision {
        Precision::Float32 => Precision::Int8,
        Precision::Int8 => Precision::Float32,
    }
}

/// A call in this precision.
fn in_precision(call: GenerateCall, precision: Precision) -> GenerateCall {
    GenerateCall {
        precision: Some(precision),
        ..call
    }
}

/// The text of a plain loop in this precision.
fn reference_in(precision: Precision, prompt: &str, chars: u64) -> String {
    let models = TestModels::new(precision);
    models.add("m", 1, 1);
    reference(&models, prompt, chars, 1).0
}

on_each_backend! {
    async fn a_session_keeps_its_precision_when_the_server_gets_another(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let own = backend.precision;
        let straight = reference_in(own, "abc", 90);
        let started = whole(&engine, seeded_call("s", "abc", 30)).await.started;
        assert_eq!(started.precision, own);
        models.set_precision(other(own));
        let rest = whole(&engine, session_call("s", "", 30)).await;
        assert_eq!(rest.started.precision, own);
        assert_eq!(rest.text, straight[30..60]);
        assert_eq!(session(&engine, "s").await.unwrap().identity.precision, own);
        engine.fork_session(&key("s"), &id("t"), None).await.unwrap();
        assert_eq!(text(&engine, session_call("t", "", 30)).await, straight[60..]);
        // A new session starts in the server's.
        let new = whole(&engine, seeded_call("new", "abc", 30)).await;
        assert_eq!(new.started.precision, other(own));
        assert_eq!(new.text, reference_in(other(own), "abc", 30));
        engine.stop().await.unwrap();
    }

    async fn a_requested_precision_is_used_and_that_of_a_session_cannot_be_changed(backend: &Backend) {
        let (engine, _) = backend.start(config());
        let (own, other) = (backend.precision, other(backend.precision));
        for precision in [own, other] {
            let got = whole(&engine, in_precision(call("abc", 30), precision)).await;
            assert_eq!(got.started.precision, precision);
            assert_eq!(got.text, reference_in(precision, "abc", 30));
        }
        text(&engine, session_call("s", "abc", 5)).await;
        let error = rejection(&engine, in_precision(session_call("s", "", 5), other)).await;
        assert_eq!(
            error.to_string(),
            format!("session s is computed in {own}, not in {other}")
        );
        // A new session keeps the one that its first call requested.
        text(&engine, in_precision(session_call("new", "abc", 5), other)).await;
        let next = whole(&engine, session_call("new", "", 5)).await;
        assert_eq!(next.started.precision, other);
        engine.stop().await.unwrap();
    }

    async fn a_first_call_is_repeated_in_its_precision_after_the_server_got_another(backend: &Backend) {
        let (engine, models) = backend.start(config());
        let first = seeded_call("s", "abc", 50);
        let done = whole(&engine, first.clone()).await;
        models.set_precision(other(backend.precision));
        let again = whole(&engine, repeat(&first, &done.started)).await;
        assert_eq!(again.text, done.text);
        // Also if the session was lost before its first commit.
        engine.delete_session(&key("s")).await.unwrap();
        let again = whole(&engine, repeat(&first, &done.started)).await;
        assert_eq!(again.text, done.text);
        engine.stop().await.unwrap();
    }

    async fn sessions_of_both_precisions_run_at_once(backend: &Backend) {
        let (engine, _) = backend.start(config());
        let texts = (0..24).map(|i| {
            let precision = [Precision::Float32, Precision::Int8][i % 2];
            let call = in_precision(seeded_call(&format!("s{i}"), "abc", 300), precision);
            let engine = engine.clone();
            async move { (precision, text(&engine, call).await) }
        });
        for (precision, text) in futures_util::future::join_all(texts).await {
            assert_eq!(text, reference_in(precision, "abc", 300));
        }
        engine.stop().await.unwrap();
    }

    async fn a_model_that_int8_costs_too_much_runs_in_float32(backend: &Backend) {
        let (engine, models) = backend.start(config());
        *models.refuses_int8.lock().unwrap() = true;
        let got = whole(&engine, session_call("s", "abc", 30)).await;
        assert_eq!(got.started.precision, Precision::Float32);
        let int8 = in_precision(session_call("int8", "abc", 30), Precision::Int8);
        let error = rejection(&engine, int8).await;
        assert_eq!(
            error.to_string(),
            "precision int8 is not available: a test says so"
        );
        assert!(session(&engine, "int8").await.is_err());
        engine.stop().await.unwrap();
    }

    async fn an_exported_session_continues_on_a_server_of_the_other_precision(backend: &Backend) {
        let (engine, _) = backend.start(config());
        let own = backend.precision;
        let straight = reference_in(own, "abc", 60);
        text(&engine, seeded_call("s", "abc", 30)).await;
        let exported = engine.export_session(&key("s")).await.unwrap();
        let storage = backend.open(SessionLimits::default());
        let (elsewhere, models) = start_in(other(own), config(), storage);
        let portable = || PortableSession::from(exported.clone());
        elsewhere.import_session(key("t"), portable(), None).await.unwrap();
        assert_eq!(text(&elsewhere, session_call("t", "", 30)).await, straight[30..]);
        // The same as a snapshot that the client holds.
        let mut held = call("", 30);
        held.session = SessionSource::Snapshot(Box::new(exported.clone()));
        held.seed = None;
        let held = whole(&elsewhere, held).await;
        assert_eq!(held.started.precision, own);
        assert_eq!(held.text, straight[30..]);

        *models.refuses_int8.lock().unwrap() = true;
        let imported = elsewhere.import_session(key("u"), portable(), None).await;
        match own {
            Precision::Float32 => assert!(imported.is_ok()),
            Precision::Int8 => assert!(matches!(
                imported,
                Err(ImportError::PrecisionUnavailable(_))
            )),
        }
        engine.stop().await.unwrap();
        elsewhere.stop().await.unwrap();
    }

    async fn an_imported_state_with_values_that_no_sequence_reaches_is_rejected(backend: &Backend) {
        let (engine, _) = backend.start(config());
        text(&engine, in_precision(session_call("s", "abc", 5), Precision::Int8)).await;
        let exported = engine.export_session(&key("s")).await.unwrap();
        let state = exported.state.network.clone().unwrap();
        // An h of -128, and a c that is infinite.
        for (at, bytes) in [(0, &[0x80][..]), (state.len() - 4, &f32::INFINITY.to_le_bytes())] {
            let mut changed = state.to_vec();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            let mut session = PortableSession::from(exported.clone());
            session.end.network = Some(changed.into());
            assert_eq!(
                engine.import_session(key("t"), session, None).await,
                Err(ImportError::StateMismatch)
            );
        }
        engine.stop().await.unwrap();
    }
}
