//! What docs/determinism.md promises, on the real server: a text depends on
//! model, precision, seed, prompt, sampling and session, and on nothing else.
//! The decode steps, the sampler and the engine have tests of their own.

use std::fs;

use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::model_service_client::ModelServiceClient;
use charlstm_proto::v1::server_service_client::ServerServiceClient;
use charlstm_proto::v1::{
    GenerateRequest, GenerationStarted, GetModelRequest, GetServerStatusRequest, Sampling,
    ScoreRequest,
};
use charlstm_store::folder_copy::copy_folder;
use tempfile::TempDir;
use tonic::Code;

use crate::support::client::ask_ok;
use crate::support::root;
use crate::support::server::{Server, command, fail_to_start};
use crate::support::wire::{Wire, assert_status, drain, resume};

/// Models with 2 and 3 layers, whose 8 and 5 units do not fill a register, and
/// the texts of 120 characters that they generate.
const GOLDEN: [(&str, &str, &str); 4] = [
    (
        "small@2",
        "int8",
        "bcqrngaugycglehlfafdit aeiuabyqhnglld nihsuudhialtrbftcyrneaeunifosbuelcgvfqcsn  buwlguagtfoltlhteocsutleno ocvafbheiflv",
    ),
    (
        "small@2",
        "float32",
        "bcqrngaugycglehlfafdit aeiuabyqhnglld nihsuudhialtrbftcyrneaeunifosbuelcgvfqcsn  buwlguagtfoltlhteocsutleno ocvafbheiflv",
    ),
    (
        "three@1",
        "int8",
        "ccrrogaugycgldhleafdit aeluabyrhnflld oihsuuchi ntraftcwsoeadunifosbvelbgvfqcso  auwlfuaftfqntnhteqcsutlenq obvaebheiflv",
    ),
    (
        "three@1",
        "float32",
        "ccrrogaugycgldhleafdit aeluabyrhnflld oihsuuchi ntraftcwsoe dunifosbuelbgveqcso  auwlfuaftfqltnhteqcsutnenq obvaebheiflv",
    ),
];

/// Returns a folder with a copy of the data folder of version 0.1.
fn golden_data() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(
        &root().join("tests/golden/data-0.1"),
        &folder.path().join("data"),
    )
    .unwrap();
    folder
}

fn request(model: &str, precision: &str, session: &str, chars: u32) -> GenerateRequest {
    GenerateRequest {
        model: model.to_owned(),
        prime: "the qu".to_owned(),
        precision: Some(precision.to_owned()),
        sampling: Some(Sampling {
            seed: Some(7),
            ..Sampling::default()
        }),
        ..resume(session, chars)
    }
}

async fn started(wire: &mut Wire, request: GenerateRequest) -> GenerationStarted {
    let mut stream = wire.open(request).await;
    match stream.message().await.unwrap().unwrap().event.unwrap() {
        Event::Started(started) => started,
        other => panic!("{other:?}"),
    }
}

/// The kernels that this machine has, which the server itself names.
fn available_kernels() -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (code, error) = fail_to_start(&mut command(folder.path(), &["--kernels", "amx"]));
    assert_eq!(code, Some(1), "{error}");
    let (_, list) = error.split_once("(available: ").unwrap();
    let (list, _) = list.split_once(')').unwrap();
    list.split(", ").map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kernel_and_number_of_threads_generates_the_golden_texts_also_in_pieces() {
    for (number, kernels) in available_kernels().iter().enumerate() {
        let threads = ["1", "2"][number % 2];
        let flags = ["--kernels", kernels, "--threads", threads];
        let mut wire = Wire::to(Server::start_in(golden_data(), &flags)).await;
        let mut texts = Vec::new();
        for (model, precision, _) in GOLDEN {
            let alone = wire.text(request(model, precision, "", 120)).await;
            let id = format!("{}-{precision}", &model[..5]);
            let first = wire.text(request(model, precision, &id, 50)).await;
            let second = wire.text(resume(&id, 70)).await;
            assert_eq!(first + &second, alone, "{kernels}, {model}, {precision}");
            texts.push(alone);
        }
        // The same among others of both precisions.
        let mut others = Vec::new();
        for n in 0..12 {
            let precision = ["int8", "float32"][n % 2];
            let other = request("small@1", precision, "", 400);
            others.push(drain(wire.open(other).await));
        }
        for ((model, precision, _), alone) in GOLDEN.iter().zip(&texts) {
            let among = wire.text(request(model, precision, "", 120)).await;
            assert_eq!(among, *alone, "{kernels}, {model}, {precision}");
        }
        for other in others {
            other.await.unwrap();
        }
        let golden: Vec<&str> = GOLDEN.iter().map(|(_, _, text)| *text).collect();
        assert_eq!(texts, golden, "{kernels}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_version_0_1_continue_in_float32_with_the_text_of_version_0_1() {
    let mut wire = Wire::to(Server::start_in(golden_data(), &[])).await;
    let expected = fs::read_to_string(root().join("tests/golden/data-0.1.texts")).unwrap();
    for line in expected.lines() {
        let (id, rest) = line.split_once('|').unwrap();
        let text = rest.strip_suffix('|').unwrap();
        assert_eq!(wire.session(id).await.unwrap().precision, "float32");
        // As the client of version 0.1 has asked.
        let mut request = resume(id, 40);
        request.sampling = Some(Sampling {
            top_k: Some(3),
            ..Sampling::default()
        });
        assert_eq!(wire.text(request).await, text, "session {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_precision_on_servers_of_either() {
    let mut wire = Wire::to(Server::start_in(golden_data(), &[])).await;
    let whole = wire.text(request("small", "int8", "", 90)).await;
    let mut first = request("small", "int8", "s", 30);
    first.precision = None;
    let mut joined = wire.text(first).await;
    assert_eq!(wire.session("s").await.unwrap().precision, "int8");
    let exported = wire.export("s").await.unwrap();

    let flags = ["--precision", "float32"];
    let mut wire = Wire::to(Server::start_in(wire.server.stop(), &flags)).await;
    assert_eq!(wire.session("s").await.unwrap().precision, "int8");
    assert_eq!(started(&mut wire, resume("s", 0)).await.precision, "int8");
    joined += &wire.text(resume("s", 30)).await;
    let mut new = request("small", "float32", "new", 30);
    new.precision = None;
    assert_eq!(started(&mut wire, new).await.precision, "float32");
    let mut other = resume("s", 30);
    other.precision = Some("float32".to_owned());
    let status = wire.rejection(other).await;
    assert_status(&status, Code::FailedPrecondition, "SESSION_OTHER_PRECISION");
    wire.import(&exported, "imported").await.unwrap();
    assert_eq!(wire.text(resume("imported", 60)).await, whole[30..]);

    let mut wire = Wire::to(Server::start_in(wire.server.stop(), &[])).await;
    joined += &wire.text(resume("s", 30)).await;
    assert_eq!(joined, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_score_is_computed_in_float32_whatever_the_server_generates_in() {
    let mut scores = Vec::new();
    for precision in ["int8", "float32"] {
        let flags = ["--precision", precision];
        let mut wire = Wire::to(Server::start_in(golden_data(), &flags)).await;
        let request = ScoreRequest {
            model: "three@1".to_owned(),
            text: "the queen and the dragon ".replace(['k', 'm'], " "),
            ..ScoreRequest::default()
        };
        scores.push(wire.generation.score(request).await.unwrap().into_inner());
    }
    assert_eq!(scores[0], scores[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_models_show_precision_kernels_and_the_cost_of_int8() {
    let flags = ["--kernels", "portable"];
    let mut wire = Wire::to(Server::start_in(golden_data(), &flags)).await;
    let mut server = ServerServiceClient::new(wire.server.connect().await);
    let mut models = ModelServiceClient::new(wire.server.connect().await);
    let request_of = |model: &str| GetModelRequest {
        model: model.to_owned(),
    };
    // A version that was stored by 0.1 is measured when it is first loaded.
    let before = models.get_model(request_of("small@2")).await.unwrap();
    let before = before.into_inner().model.unwrap();
    assert_eq!(
        (&*before.precision, before.int8_loss_bits_per_char),
        ("", None)
    );
    let mut own = request("small@2", "", "", 5);
    own.precision = None;
    wire.text(own).await;
    wire.text(request("small@2", "float32", "", 5)).await;
    let after = models.get_model(request_of("small@2")).await.unwrap();
    let after = after.into_inner().model.unwrap();
    assert_eq!(after.precision, "int8");
    assert!(after.int8_loss_bits_per_char.unwrap().abs() < 0.005);
    let file = wire
        .server
        .data_dir()
        .join("models/small/2/quantisation.json");
    assert!(file.exists());

    let status = server.get_server_status(GetServerStatusRequest {}).await;
    let status = status.unwrap().into_inner();
    assert_eq!(status.precision, "int8");
    assert_eq!(status.kernels, "portable");
    let checks: Vec<&str> = status.step_checks.iter().map(|c| &*c.precision).collect();
    assert_eq!(checks, ["float32", "int8"]);
    let text = ask_ok(&wire.server, &["status"]);
    assert!(text.contains("portable"), "{text}");
    assert!(text.contains("small@2 in float32: "), "{text}");
    let text = ask_ok(&wire.server, &["models", "show", "small@2"]);
    assert!(text.contains("int8 (int8 costs"), "{text}");
    assert!(wire.server.log().contains("measured what int8 costs"));
}

#[test]
fn a_setting_that_this_machine_cannot_follow_is_rejected_at_startup_with_those_that_it_can() {
    let kernels = available_kernels();
    assert_eq!(kernels[0], "portable");
    let folder = tempfile::tempdir().unwrap();
    for (flags, expected) in [
        (["--kernels", "mmx"], "must be auto, portable, avx2"),
        (["--precision", "int4"], "must be int8 or float32"),
    ] {
        let (code, error) = fail_to_start(&mut command(folder.path(), &flags));
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}
