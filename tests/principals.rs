//! Principals: what belongs to whom, and what each may do.

use charlstm_proto::v1::*;
use tonic::Code;

use crate::support::Server;
use crate::support::files::write_secret;
use crate::support::principals::{Entry, Fixture, token};
use crate::support::server::{command, fail_to_start};
use crate::support::wire::{self, assert_status};

/// The principals of these tests.
const PRINCIPALS: [Entry; 5] = [
    Entry::new("alice", &["generate", "train"]),
    Entry::new("bob", &["generate"]),
    Entry::new("carol", &["generate", "train"]),
    Entry::new("trainer", &["train"]),
    Entry::new("root", &["admin"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_principal_has_its_own_sessions_trainings_and_model_names() {
    let fixture = Fixture::start(tempfile::tempdir().unwrap(), &PRINCIPALS).await;
    assert_eq!(fixture.train("alice", "verse"), Some(0));
    sessions_are_separate(&fixture).await;
    snapshots_are_bound_to_their_principal(&fixture).await;
    trainings_are_separate(&fixture).await;
    model_names_have_owners(&fixture).await;
    roles_are_required(&fixture).await;
    let log = fixture.server.log();
    for (_, token) in &fixture.tokens {
        assert!(!log.contains(token.as_str()), "a token is in the log");
    }
}

async fn sessions_are_separate(fixture: &Fixture) {
    let own = fixture.generate("alice", wire::start("tale", 30)).await;
    let other = fixture.generate("bob", wire::start("tale", 7)).await;
    assert_eq!(own.unwrap().finished.position, wire::PRIMED + 30);
    assert_eq!(other.unwrap().finished.position, wire::PRIMED + 7);
    for (name, chars) in [("alice", 30), ("bob", 7)] {
        let session = fixture.get(name, "tale", None).await.unwrap();
        assert_eq!(session.position, wire::PRIMED + chars);
        assert_eq!(session.owner, name);
        let listed = fixture.list(name, None).await.unwrap();
        assert_eq!(listed, [format!("{name}/tale")]);
    }
    let status = fixture.get("carol", "tale", None).await.unwrap_err();
    assert_status(&status, Code::NotFound, "SESSION_NOT_FOUND");
    let denied = fixture.get("bob", "tale", Some("alice")).await;
    assert_status(
        &denied.unwrap_err(),
        Code::PermissionDenied,
        "ROLE_REQUIRED",
    );
    let denied = fixture.list("bob", Some("alice")).await.unwrap_err();
    assert_status(&denied, Code::PermissionDenied, "ROLE_REQUIRED");
    let request = GenerateRequest {
        owner: Some("alice".to_owned()),
        ..wire::resume("tale", 1)
    };
    let denied = fixture.generate("bob", request.clone()).await;
    assert_status(
        &denied.err().unwrap(),
        Code::PermissionDenied,
        "ROLE_REQUIRED",
    );

    // An administrator sees all, and acts for others.
    let all = fixture.list("root", None).await.unwrap();
    assert_eq!(all, ["alice/tale", "bob/tale"]);
    let of_bob = fixture.list("root", Some("bob")).await.unwrap();
    assert_eq!(of_bob, ["bob/tale"]);
    let status = fixture.get("root", "tale", None).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "it has no own session");
    let session = fixture.get("root", "tale", Some("bob")).await.unwrap();
    assert_eq!(session.owner, "bob");
    let continued = fixture.generate("root", request).await.unwrap();
    assert_eq!(continued.finished.position, wire::PRIMED + 31);
}

async fn snapshots_are_bound_to_their_principal(fixture: &Fixture) {
    let request = ExportSessionRequest {
        session_id: "tale".to_owned(),
        owner: None,
    };
    let request = fixture.of("alice", request);
    let exported = fixture.sessions().export_session(request).await.unwrap();
    let data = exported.into_inner().data;
    let import = |owner: Option<&str>| ImportSessionRequest {
        data: data.clone(),
        session_id: "copy".to_owned(),
        owner: owner.map(str::to_owned),
    };
    let import = async |name: &str, owner| {
        let request = fixture.of(name, import(owner));
        fixture.sessions().import_session(request).await
    };
    let status = import("bob", None).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    import("alice", None).await.unwrap();
    import("root", Some("bob")).await.unwrap();
    let copy = fixture.get("bob", "copy", None).await.unwrap();
    assert_eq!(copy.position, wire::PRIMED + 31);
    let request = GenerateRequest {
        session_id: None,
        session_snapshot: data.clone(),
        ..wire::resume("", 1)
    };
    let status = fixture.generate("bob", request.clone()).await;
    let status = status.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    fixture.generate("alice", request).await.unwrap();
}

async fn trainings_are_separate(fixture: &Fixture) {
    let list = async |name: &str, owner: Option<&str>| {
        let owner = owner.map(str::to_owned);
        let request = fixture.of(name, ListTrainingsRequest { owner });
        let response = fixture.trainings().list_trainings(request).await;
        response.map(|response| response.into_inner().trainings)
    };
    let [training] = &list("alice", None).await.unwrap()[..] else {
        panic!("alice has one training");
    };
    assert_eq!(training.owner, "alice");
    assert!(list("carol", None).await.unwrap().is_empty());
    assert_eq!(list("root", None).await.unwrap().len(), 1);
    assert_eq!(list("root", Some("carol")).await.unwrap().len(), 0);
    let denied = list("carol", Some("alice")).await.unwrap_err();
    assert_status(&denied, Code::PermissionDenied, "ROLE_REQUIRED");

    let training_id = training.training_id.clone();
    let mut client = fixture.trainings();
    let get = GetTrainingRequest {
        training_id: training_id.clone(),
    };
    let unknown = GetTrainingRequest {
        training_id: training_id.replace("t-", "t-0"),
    };
    let hidden = client.get_training(fixture.of("carol", get.clone())).await;
    let hidden = hidden.unwrap_err();
    assert_status(&hidden, Code::NotFound, "TRAINING_NOT_FOUND");
    let unknown = client.get_training(fixture.of("carol", unknown)).await;
    let text = unknown.unwrap_err().message().replace("t-0", "t-");
    assert_eq!(hidden.message(), text, "as if it did not exist");
    client.get_training(fixture.of("root", get)).await.unwrap();
    let watch = WatchTrainingRequest {
        training_id: training_id.clone(),
        from_sequence: None,
    };
    let status = client.watch_training(fixture.of("carol", watch)).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let cancel = CancelTrainingRequest {
        training_id: training_id.clone(),
    };
    let status = client.cancel_training(fixture.of("carol", cancel)).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let delete = DeleteTrainingRequest {
        training_id: training_id.clone(),
    };
    let status = client.delete_training(fixture.of("carol", delete)).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let resume = ResumeTrainingRequest { training_id };
    let status = client.resume_training(fixture.of("carol", resume)).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
}

async fn model_names_have_owners(fixture: &Fixture) {
    let mut client = fixture.models();
    let get = GetModelRequest {
        model: "verse".to_owned(),
    };
    let model = client.get_model(fixture.of("bob", get)).await.unwrap();
    assert_eq!(model.into_inner().model.unwrap().owner, "alice");
    let start = |model: &str| StartTrainingRequest {
        spec: Some(TrainingSpec {
            model: model.to_owned(),
            ..TrainingSpec::default()
        }),
        corpus: "abc".into(),
    };
    let status = fixture
        .trainings()
        .start_training(fixture.of("carol", start("verse")))
        .await
        .unwrap_err();
    assert_status(
        &status,
        Code::PermissionDenied,
        "MODEL_OF_ANOTHER_PRINCIPAL",
    );
    let header = ImportModelRequest {
        payload: Some(import_model_request::Payload::Header(ImportModelHeader {
            name: "verse".to_owned(),
            ..ImportModelHeader::default()
        })),
    };
    let import = fixture.of("carol", tokio_stream::iter([header]));
    let status = client.import_model(import).await.unwrap_err();
    assert_status(
        &status,
        Code::PermissionDenied,
        "MODEL_OF_ANOTHER_PRINCIPAL",
    );
    let mut delete = async |name: &str, force: bool| {
        let request = DeleteModelRequest {
            model: "verse".to_owned(),
            force: Some(force),
        };
        client.delete_model(fixture.of(name, request)).await
    };
    let status = delete("carol", true).await.unwrap_err();
    assert_status(
        &status,
        Code::PermissionDenied,
        "MODEL_OF_ANOTHER_PRINCIPAL",
    );
    // Others have sessions on it.
    let status = delete("alice", false).await.unwrap_err();
    assert_status(&status, Code::FailedPrecondition, "MODEL_IN_USE");
    let status = delete("alice", true).await.unwrap_err();
    assert_status(&status, Code::PermissionDenied, "MODEL_IN_USE");
    delete("root", true).await.unwrap();
}

async fn roles_are_required(fixture: &Fixture) {
    let status = fixture.generate("trainer", wire::start("x", 1)).await;
    let status = status.err().unwrap();
    assert_status(&status, Code::PermissionDenied, "ROLE_REQUIRED");
    assert!(status.message().contains("role generate"), "{status}");
    let request = fixture.of("bob", ListTrainingsRequest { owner: None });
    let status = fixture.trainings().list_trainings(request).await;
    let status = status.unwrap_err();
    assert_status(&status, Code::PermissionDenied, "ROLE_REQUIRED");
    assert!(status.message().contains("role train"), "{status}");
    let log = fixture.server.log();
    assert!(log.contains("call rejected"), "{log}");
    let spec = TrainingSpec {
        model: "new".to_owned(),
        init_from: Some("verse".to_owned()),
        ..TrainingSpec::default()
    };
    let request = StartTrainingRequest {
        spec: Some(spec),
        corpus: "abc".into(),
    };
    let request = fixture.of("trainer", request);
    let status = fixture.trainings().start_training(request).await;
    let status = status.unwrap_err();
    assert_status(&status, Code::PermissionDenied, "ROLE_REQUIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_created_without_principals_belongs_to_admin() {
    let mut wire = wire::Wire::start(&[]).await;
    wire.generate(wire::start("tale", 9)).await;
    let fixture = Fixture::start(wire.server.stop(), &PRINCIPALS).await;
    let listed = fixture.list("root", None).await.unwrap();
    assert_eq!(listed, ["admin/tale"]);
    assert!(fixture.list("alice", None).await.unwrap().is_empty());
    // Everybody may use the model, and nobody but an administrator replace it.
    fixture
        .generate("alice", wire::start("tale", 9))
        .await
        .unwrap();
    assert_ne!(fixture.train("alice", "verse"), Some(0));
    assert_eq!(fixture.train("root", "verse"), Some(0));
    // Without principals again, it is all there.
    let Fixture { server, .. } = fixture;
    let wire = wire::Wire::to(Server::start_in(server.stop(), &[])).await;
    let mut sessions = wire.sessions;
    let listed = sessions.list_sessions(ListSessionsRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().total, 2);
}

#[test]
fn a_file_that_everybody_can_read_and_an_open_address_are_rejected_at_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let path = folder.path().join("principals.toml");
    write_secret(&path, &token("alice", &["train"]).1);
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&path, readable).unwrap();
    let path = path.to_str().unwrap();
    for flag in ["--principals", "--auth-token-file"] {
        let (code, error) = fail_to_start(&mut command(&data, &[flag, path]));
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(&format!("chmod o-rwx {path}")), "{error}");
    }
    let open = ["--listen", "0.0.0.0:0"];
    let (code, error) = fail_to_start(&mut command(&data, &open));
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--insecure"), "{error}");
}
