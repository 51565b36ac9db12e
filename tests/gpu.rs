//! A whole server on a GPU, without one: a stand-in for the driver runs the kernels,
//! compiled as C++, on the CPU (`crates/cuda/tests/host/driver.cpp`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use charlstm_proto::v1::*;
use charlstm_repository::{Publisher, Repository};
use futures_util::future::join_all;
use tempfile::TempDir;
use tonic::Code;

use crate::support::server::{Server, command_of, inference_only_program};
use crate::support::tools::skip;
use crate::support::untrained::{LETTERS, untrained_model};
use crate::support::wire::{Wire, rest};
use crate::support::{process, root};

/// Returns the folder of the stand-in; `None`, after [`skip`], if there is no compiler.
fn stand_in() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = FOLDER.get_or_init(|| {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
        Command::new(compiler).arg("--version").output().ok()?;
        let folder = root().join("target/cuda_driver_stand_in");
        std::fs::create_dir_all(&folder).unwrap();
        let script = root().join("crates/cuda/tests/host/build_driver.sh");
        process::run(Command::new(script).arg(&folder));
        Some(folder)
    });
    if built.is_none() {
        skip("g++ is not installed");
    }
    built.as_deref()
}

/// The first of the characters of the model with a large vocabulary.
const FIRST: char = '一';

/// Returns a folder for a server, with two models: one with few characters, and one
/// with so many that the GPU selects the highest logits.
fn with_models() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::open(&folder.path().join("data")).unwrap();
    let many = (0..600).filter_map(|n| char::from_u32(FIRST as u32 + n));
    for (name, model) in [
        ("few", untrained_model(LETTERS.chars(), 1.0)),
        ("many", untrained_model(many, 0.5)),
    ] {
        let publisher = Publisher::admin();
        repository.publish(&publisher, name, &model).unwrap();
    }
    folder
}

/// Starts a server on the CPU.
async fn on_cpu(folder: TempDir) -> Wire {
    let data = folder.path().join("data");
    let command = command_of(inference_only_program(), &data, &[]);
    Wire::to(Server::launch(folder, command)).await
}

/// Starts a server on the GPU, which may break.
async fn on_gpu(
    folder: TempDir,
    stand_in: &Path,
    flags: &[&str],
    breaks: Option<(&str, &str)>,
) -> Wire {
    let data = folder.path().join("data");
    let flags = [&["--device", "cuda:0", "--threads", "8"], flags].concat();
    let mut command = command_of(inference_only_program(), &data, &flags);
    command.env("LD_LIBRARY_PATH", stand_in).envs(breaks);
    Wire::to(Server::launch(folder, command)).await
}

fn request(model: &str, prime: &str, seed: u64) -> GenerateRequest {
    GenerateRequest {
        model: model.to_owned(),
        prime: prime.to_owned(),
        max_chars: Some(20),
        sampling: Some(Sampling {
            seed: Some(seed),
            ..Sampling::default()
        }),
        logprobs: Some(true),
        ..GenerateRequest::default()
    }
}

/// A call of a session, whose first call has a prompt.
fn part(session: &str, is_first: bool) -> GenerateRequest {
    GenerateRequest {
        session_id: Some(session.to_owned()),
        ..request("few", if is_first { "a" } else { "" }, 9)
    }
}

fn prompt(len: usize) -> String {
    LETTERS
        .chars()
        .cycle()
        .skip(1)
        .step_by(5)
        .take(len)
        .collect()
}

/// A text, and the bits of its log-probabilities.
type Answer = (String, Vec<u32>);

async fn answer(wire: &Wire, request: GenerateRequest) -> Answer {
    let mut generation = wire.generation.clone();
    let response = generation.generate(request).await;
    let generated = rest(&mut response.unwrap().into_inner()).await.unwrap();
    let logprobs = generated.logprobs.iter().map(|value| value.to_bits());
    (generated.text, logprobs.collect())
}

/// Generates alone, among others, with long prompts, in a session, from many
/// characters with different sampling settings; and scores.
async fn answers(wire: &Wire) -> Vec<Answer> {
    let mut answers = vec![answer(wire, request("few", "abc", 1)).await];
    let requests = (0..12).map(|number| request("few", &prompt(1 + 30 * number), number as u64));
    answers.extend(join_all(requests.map(|request| answer(wire, request))).await);
    for is_first in [true, false] {
        answers.push(answer(wire, part("kept", is_first)).await);
    }
    let many = [0, 1, 5, 40].map(|top_k| GenerateRequest {
        sampling: Some(Sampling {
            seed: Some(3),
            top_k: Some(top_k),
            ..Sampling::default()
        }),
        ..request("many", &FIRST.to_string(), 3)
    });
    answers.extend(join_all(many.into_iter().map(|request| answer(wire, request))).await);
    let score = ScoreRequest {
        model: "few".to_owned(),
        text: prompt(300),
        logprobs: Some(true),
        ..ScoreRequest::default()
    };
    let score = wire.generation.clone().score(score).await.unwrap();
    let logprobs = score.into_inner().logprobs;
    let bits = logprobs.iter().map(|value| value.to_bits()).collect();
    answers.push(("score".to_owned(), bits));
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_scores_on_a_gpu_are_those_of_the_cpu() {
    let Some(stand_in) = stand_in() else { return };
    let cpu = on_cpu(with_models()).await;
    let expected = answers(&cpu).await;
    let gpu = on_gpu(with_models(), stand_in, &[], None).await;
    assert_eq!(answers(&gpu).await, expected);
    let log = gpu.server.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_between_a_gpu_and_the_cpu_without_a_visible_difference() {
    let Some(stand_in) = stand_in() else { return };
    let mut wire = on_cpu(with_models()).await;
    let mut expected = Vec::new();
    for number in 0..3 {
        expected.push(answer(&wire, part("moving", number == 0)).await);
    }
    let mut folder = with_models();
    for (number, expected) in expected.iter().enumerate() {
        wire = match number {
            1 => on_cpu(folder).await,
            _ => on_gpu(folder, stand_in, &[], None).await,
        };
        let answer = answer(&wire, part("moving", number == 0)).await;
        assert_eq!(answer, *expected, "part {number}");
        folder = wire.server.stop();
    }
}

/// Kernels after which the GPU is lost: when some text has been generated.
const LOST: (&str, &str) = ("CUDA_STAND_IN_FAILS_AFTER", "400");

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_ends_the_generation_and_the_session_continues_on_the_cpu() {
    let Some(stand_in) = stand_in() else { return };
    let long = |is_first| GenerateRequest {
        max_chars: Some(100),
        ..part("session", is_first)
    };
    let cpu = on_cpu(with_models()).await;
    let expected = answer(&cpu, long(true)).await.0 + &answer(&cpu, long(false)).await.0;

    let flags = ["--gpu-failure", "cpu"];
    let mut gpu = on_gpu(with_models(), stand_in, &flags, Some(LOST)).await;
    let mut stream = gpu.open(long(true)).await;
    let mut text = String::new();
    let status = loop {
        match stream.message().await {
            Ok(Some(message)) => text += message_text(&message),
            Ok(None) => panic!("the GPU was not lost: {text:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(expected.starts_with(&text) && !text.is_empty(), "{text:?}");
    let rest = answer(&gpu, long(false)).await.0;
    assert!(
        expected.starts_with(&(text.clone() + &rest)),
        "{text:?} {rest:?}"
    );
    let log = gpu.server.log();
    assert!(log.contains("the GPU failed"), "{log}");
}

fn message_text(message: &GenerateResponse) -> &str {
    match &message.event {
        Some(generate_response::Event::Text(text)) => &text.text,
        _ => "",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_gpu_is_lost_ends_with_an_error() {
    let Some(stand_in) = stand_in() else { return };
    let mut gpu = on_gpu(with_models(), stand_in, &[], Some(LOST)).await;
    let long = GenerateRequest {
        max_chars: Some(1_000),
        ..request("few", "abc", 1)
    };
    let mut stream = gpu.open(long).await;
    assert!(rest(&mut stream).await.is_err());
    let (status, _) = gpu.server.wait();
    assert_ne!(status.code(), Some(0), "{}", gpu.server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_computes_wrong_results_is_not_used() {
    let Some(stand_in) = stand_in() else { return };
    let cpu = on_cpu(with_models()).await;
    let wrong = ("CUDA_STAND_IN_IS_WRONG", "1");
    let flags = ["--gpu-failure", "cpu"];
    let gpu = on_gpu(with_models(), stand_in, &flags, Some(wrong)).await;
    let asked = || request("few", "abc", 1);
    assert_eq!(answer(&gpu, asked()).await, answer(&cpu, asked()).await);
    let log = gpu.server.log();
    assert!(log.contains("the GPU failed"), "{log}");
}
