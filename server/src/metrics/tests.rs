//! Tests of the metrics page.

use super::*;

fn encoded(metrics: &Metrics, stats: &ServerStats) -> String {
    metrics
        .encode(stats, Path::new("."))
        .expect("a String accepts all text")
}

fn assert_lines(page: &str, expected: &[&str]) {
    for line in expected {
        assert!(page.lines().any(|l| l == *line), "{line} is not in\n{page}");
    }
}

/// Number of label combinations of `grpc_server_started_total`.
fn started_series(metrics: &Metrics) -> usize {
    let page = encoded(metrics, &ServerStats::default());
    let is_started = |line: &&str| line.starts_with("grpc_server_started_total{");
    page.lines().filter(is_started).count()
}

#[test]
fn counted_events_and_looked_up_values_are_on_the_page() {
    let metrics = Metrics::default();
    let call = metrics.call_started("/charlstm.v1.GenerationService/Generate");
    metrics.clone().call_handled(call, Code::NotFound);
    metrics.text_sent(1, true, Duration::from_millis(3));
    metrics.text_sent(4, false, Duration::from_millis(1));
    let stats = ServerStats {
        sessions: 7,
        session_bytes: 4096,
        decode_steps: 9,
        batch_rows: 27,
        prefill_chars: 5,
        trainings: vec![("running", 1), ("failed", 0)],
        training: Some(TrainingStats {
            loss: 1.5,
            progress: 0.25,
            ..TrainingStats::default()
        }),
        ..ServerStats::default()
    };
    let page = encoded(&metrics, &stats);
    let method = "grpc_type=\"server_stream\",\
                  grpc_service=\"charlstm.v1.GenerationService\",grpc_method=\"Generate\"";
    assert_lines(
        &page,
        &[
            &format!("grpc_server_started_total{{{method}}} 1"),
            &format!("grpc_server_handled_total{{{method},grpc_code=\"NOT_FOUND\"}} 1"),
            &format!("grpc_server_handling_seconds_count{{{method}}} 1"),
            "charlstm_generated_chars_total 5",
            "charlstm_time_to_first_char_seconds_count 1",
            "charlstm_inter_char_seconds_count 1",
            "charlstm_sessions 7",
            "charlstm_session_bytes 4096",
            "charlstm_decode_steps_total 9",
            "charlstm_batch_rows_sum 27.0",
            "charlstm_prefill_chars_total 5",
            "charlstm_batch_rows_count 9",
            "charlstm_trainings{state=\"running\"} 1",
            "charlstm_training_loss_nats_per_char 1.5",
            "charlstm_training_progress_ratio 0.25",
        ],
    );
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[test]
fn a_finished_training_leaves_no_values_behind() {
    let metrics = Metrics::default();
    let running = ServerStats {
        training: Some(TrainingStats {
            loss: 1.5,
            ..TrainingStats::default()
        }),
        ..ServerStats::default()
    };
    encoded(&metrics, &running);
    let page = encoded(&metrics, &ServerStats::default());
    assert_lines(&page, &["charlstm_training_loss_nats_per_char 0.0"]);
}

#[test]
fn every_method_of_the_contract_has_its_own_labels() {
    let metrics = Metrics::default();
    for method in METHODS {
        let labels = metrics.call_started(method.path).method;
        assert_eq!(labels.grpc_service, method.service);
        assert_eq!(labels.grpc_method, method.name);
    }
    assert_eq!(started_series(&metrics), METHODS.len());
}

#[test]
fn unknown_paths_share_one_label_however_many_there_are() {
    let metrics = Metrics::default();
    for number in 0..1000 {
        let path = format!("/charlstm.v1.GenerationService/Unknown{number}");
        let call = metrics.call_started(&path);
        metrics.call_handled(call, Code::Unimplemented);
    }
    assert_eq!(started_series(&metrics), 1);
    let unknown = "grpc_type=\"unknown\",grpc_service=\"unknown\",grpc_method=\"unknown\"";
    assert_lines(
        &encoded(&metrics, &ServerStats::default()),
        &[
            &format!("grpc_server_started_total{{{unknown}}} 1000"),
            &format!("grpc_server_handled_total{{{unknown},grpc_code=\"UNIMPLEMENTED\"}} 1000"),
        ],
    );
}
