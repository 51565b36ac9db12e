//! `run`: the quick start. Uses a running server or starts one, trains if the
//! model does not exist, opens the REPL, and stops the server that it started
//! (see `local_server`).

mod local_server;

use std::path::{Path, PathBuf};

use charlstm_proto::v1::{
    GetModelRequest, ListModelsRequest, ListTrainingsRequest, Model, State, Training,
};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;

use self::local_server::LocalServer;
use super::corpus::Corpus;
use super::{repl, train, trainings};
use crate::args::{
    CorpusFlags, GlobalFlags, PlotFlags, ReplArgs, RunArgs, SamplingFlags, TrainArgs, Unknown,
};
use crate::connection::{self, Connection};
use crate::display;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::suggestion::nearest;

/// Maximum length of a model name that the server accepts.
const MAX_NAME_CHARS: usize = 64;

/// Number of hexadecimal digits that distinguish two file names: enough for
/// the texts of one person.
const DIGEST_CHARS: usize = 6;

/// How to get the model.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// The model exists; NAME@VERSION.
    Use { model: String },
    /// Train the model on the text.
    Train { model: String },
    /// Resume an unfinished training of the model.
    Resume { training_id: String, model: String },
    /// Wait for a training of the model.
    Watch { training_id: String, model: String },
}

/// The model that the user asked for.
#[derive(Clone, Debug)]
struct Wanted {
    name: String,
    /// A certain version of it.
    version: Option<u64>,
    /// SHA-256 of the text that it should have been trained on.
    text: Option<String>,
}

/// What the server knows about the wanted model.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its versions, the newest first.
    versions: Vec<Model>,
    /// Its newest training that has not ended or can be resumed.
    unfinished: Option<Training>,
}

/// Runs all steps. A server that was started is stopped in any case, also on
/// SIGTERM and SIGHUP.
pub(crate) async fn run(
    args: RunArgs,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let mut local_server = None;
    let outcome = tokio::select! {
        outcome = run_steps(args, global, output, &mut local_server) => outcome,
        () = termination() => Err(Failure::Interrupted),
    };
    if let Some(server) = local_server {
        server.stop(output).await;
    }
    outcome
}

async fn run_steps(
    args: RunArgs,
    global: &GlobalFlags,
    output: Output,
    local_server: &mut Option<LocalServer>,
) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    let prepare = async {
        let text = read_texts(&args, output).await?;
        let (global, connection) = connect_or_start(&args, global, output, local_server).await?;
        let (plan, reason) = plan(&args, text, &connection).await?;
        Ok::<_, Failure>((global, connection, plan, reason))
    };
    let (global, connection, plan, reason) = tokio::select! {
        prepared = prepare => prepared?,
        () = interrupts.next() => return Err(Failure::Interrupted),
    };
    // The training and the REPL handle Ctrl-C in their own way.
    drop(interrupts);
    if !output.json {
        if let Some(reason) = reason {
            output.note(&reason);
        }
        if let Some(message) = unused_flags(&args, &plan) {
            output.note(&message);
        }
    }
    let model = get_model(&args, plan, &global, &connection, output).await?;
    if !output.json {
        output.note(&format!("using model {model}"));
    }
    let repl_args = ReplArgs {
        model,
        session: None,
        length: args.length,
        // The REPL changes these with `/set`.
        unknown: Unknown::default(),
        sampling: SamplingFlags::default(),
    };
    repl::run(repl_args, &connection, output).await
}

/// Reads the texts once, so that a missing one is an error, and returns what
/// identifies them; `None` without `--text`.
async fn read_texts(args: &RunArgs, output: Output) -> Result<Option<String>, Failure> {
    if args.text.is_empty() {
        return Ok(None);
    }
    if args.text.iter().any(|path| path == Path::new("-")) {
        return Err(Failure::Usage(
            "--text: `run` reads its prompts from standard input; use `charlstm-client train \
             --text -` to train on it"
                .into(),
        ));
    }
    let corpus = Corpus::open(&args.text, &args.reading)?;
    for message in corpus.messages() {
        output.note(&message);
    }
    let digest = tokio::task::spawn_blocking(move || corpus.digest());
    let digest = digest
        .await
        .map_err(|error| Failure::Internal(error.to_string()))??;
    Ok(Some(digest))
}

/// Returns a message about the flags that have no effect, because the model is
/// not trained now.
fn unused_flags(args: &RunArgs, plan: &Plan) -> Option<String> {
    let flags = args.spec.given();
    if matches!(plan, Plan::Train { .. }) || flags.is_empty() {
        return None;
    }
    let verb = if flags.len() == 1 { "has" } else { "have" };
    Some(format!(
        "{} {verb} no effect, because the model is not trained again; `charlstm-client train` \
         trains another version",
        flags.join(", ")
    ))
}

/// Connects to the server at `--addr`. If no server answers and the address is
/// local, starts one there.
async fn connect_or_start(
    args: &RunArgs,
    global: &GlobalFlags,
    output: Output,
    local_server: &mut Option<LocalServer>,
) -> Result<(GlobalFlags, Connection), Failure> {
    let failure = match Connection::open(global).await {
        Ok(connection) => {
            if args.data_dir.is_some() && !output.json {
                output.note(&format!(
                    "--data-dir has no effect, because a server is running at {}",
                    global.addr
                ));
            }
            return Ok((global.clone(), connection));
        }
        Err(failure) => failure,
    };
    let address = connection::local_address(&global.addr);
    let (Failure::NoServer { .. }, Some(listen)) = (&failure, address) else {
        return Err(failure);
    };
    let data_dir = match &args.data_dir {
        Some(folder) => folder.clone(),
        None => default_data_dir()?,
    };
    // The caller owns the server before it is ready, so that it is stopped
    // even if Ctrl-C arrives during the start.
    let server = local_server.insert(LocalServer::start(&listen, &data_dir)?);
    let global = GlobalFlags {
        addr: server.wait_until_ready().await?,
        ..global.clone()
    };
    if !output.json {
        output.note(&format!(
            "started a server at {} with its data in {}",
            global.addr,
            data_dir.display()
        ));
    }
    let connection = Connection::open(&global).await?;
    Ok((global, connection))
}

/// Chooses a plan by what the server knows about the wanted model, and says why.
async fn plan(
    args: &RunArgs,
    text: Option<String>,
    connection: &Connection,
) -> Result<(Plan, Option<String>), Failure> {
    let request = ListModelsRequest {};
    let models = connection.models().list_models(request).await?;
    let models = models.into_inner().models;
    let request = ListTrainingsRequest { owner: None };
    let trainings = connection.training().list_trainings(request).await?;
    let trainings = trainings.into_inner().trainings;

    let name = wanted_name(args, &models, &trainings)?;
    let (name, version) = match name.split_once('@') {
        Some((name, version)) => (name.to_owned(), version.parse().ok()),
        None => (name, None),
    };
    let mut known = Known {
        unfinished: unfinished(&trainings, Some(&name)).cloned(),
        ..Default::default()
    };
    if models.iter().any(|model| model.name == name) {
        known.versions = versions(connection, &name).await?;
    }
    let wanted = Wanted {
        name,
        version,
        text,
    };
    let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    choose_plan(&wanted, &known, &names)
}

/// Returns the name of the wanted model: that of `--model`, or that of the text,
/// or that of the newest model.
fn wanted_name(
    args: &RunArgs,
    models: &[Model],
    trainings: &[Training],
) -> Result<String, Failure> {
    if let Some(name) = &args.model {
        return Ok(name.clone());
    }
    if let Some(text) = args.text.first() {
        return Ok(model_name(text));
    }
    let newest = models.iter().max_by_key(|model| model.created_unix_ms);
    let name_of = |training: &Training| Some(training.spec.as_ref()?.model.clone());
    newest
        .map(|model| model.name.clone())
        .or_else(|| unfinished(trainings, None).and_then(name_of))
        .ok_or_else(|| {
            Failure::Usage(
                "there is no model yet; specify a text to train on with --text FILE".into(),
            )
        })
}

/// Returns the versions of a model, the newest first. A version that is deleted
/// in the meantime is left out.
async fn versions(connection: &Connection, name: &str) -> Result<Vec<Model>, Failure> {
    let get = async |model: String| {
        let request = GetModelRequest { model };
        connection.models().get_model(request).await
    };
    let latest = get(name.to_owned()).await?.into_inner();
    let mut versions = Vec::new();
    for version in latest.versions.iter().rev() {
        match get(format!("{name}@{version}")).await {
            Ok(response) => versions.extend(response.into_inner().model),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    Ok(versions)
}

/// Chooses a plan, and describes the reason if the user may not expect it.
/// `names` are those of all models.
fn choose_plan(
    wanted: &Wanted,
    known: &Known,
    names: &[&str],
) -> Result<(Plan, Option<String>), Failure> {
    let name = &wanted.name;
    let id = |model: &Model| format!("{name}@{}", model.version);
    let sha256 = |model: &Model| model.training.as_ref().map(|it| it.corpus_sha256.clone());
    let uses = |model: &Model| Plan::Use { model: id(model) };
    let Some(text) = &wanted.text else {
        return choose_without_text(wanted, known, names).map(|plan| (plan, None));
    };
    let is_trained_on_text = |model: &&Model| sha256(model).as_ref() == Some(text);
    if let Some(version) = wanted.version {
        let Some(model) = known.versions.iter().find(|it| it.version == version) else {
            return Err(no_such_model(&format!("{name}@{version}"), name, names));
        };
        let reason = (!is_trained_on_text(&model)).then(|| {
            format!(
                "--text has no effect: {} was not trained on this text; leave out the version \
                 to train a new one",
                id(model)
            )
        });
        return Ok((uses(model), reason));
    }
    if let Some(model) = known.versions.iter().find(is_trained_on_text) {
        let reason = format!("{} was trained on this text", id(model));
        return Ok((uses(model), Some(reason)));
    }
    if let Some(training) = &known.unfinished
        && training.corpus_sha256 == *text
    {
        return Ok((continue_training(training, name), None));
    }
    match known.versions.first() {
        None => Ok((
            Plan::Train {
                model: name.clone(),
            },
            None,
        )),
        Some(latest) if sha256(latest).is_none_or(|sha256| sha256.is_empty()) => {
            let reason = format!(
                "--text has no effect: {} was imported, so it is not known which text it was \
                 trained on; `charlstm-client train` trains a new version",
                id(latest)
            );
            Ok((uses(latest), Some(reason)))
        }
        Some(latest) => {
            let reason = format!(
                "{} was trained on another text; training a new version (use --model NAME to \
                 give it another name)",
                id(latest)
            );
            Ok((
                Plan::Train {
                    model: name.clone(),
                },
                Some(reason),
            ))
        }
    }
}

/// Chooses a plan if no text to train on is given.
fn choose_without_text(wanted: &Wanted, known: &Known, names: &[&str]) -> Result<Plan, Failure> {
    let name = &wanted.name;
    let is_wanted = |model: &&Model| wanted.version.is_none_or(|it| it == model.version);
    if let Some(model) = known.versions.iter().find(is_wanted) {
        return Ok(Plan::Use {
            model: format!("{name}@{}", model.version),
        });
    }
    if let (Some(training), None) = (&known.unfinished, wanted.version) {
        return Ok(continue_training(training, name));
    }
    let wanted_id = match wanted.version {
        Some(version) => format!("{name}@{version}"),
        None => name.clone(),
    };
    Err(no_such_model(&wanted_id, name, names))
}

fn continue_training(training: &Training, model: &str) -> Plan {
    let (training_id, model) = (training.training_id.clone(), model.to_owned());
    match training.state() {
        State::Running | State::Queued => Plan::Watch { training_id, model },
        _ => Plan::Resume { training_id, model },
    }
}

fn no_such_model(wanted: &str, name: &str, names: &[&str]) -> Failure {
    let similar = nearest(name, names.iter().copied()).filter(|similar| *similar != name);
    let suggestion = similar.map_or_else(String::new, |similar| {
        format!(" (did you mean {similar:?}?)")
    });
    Failure::Refused(format!(
        "there is no model {wanted:?}{suggestion}; use --text FILE to train a model of that name"
    ))
}

/// Returns the newest training, of `model` if it is given, that has not ended or
/// can be resumed.
fn unfinished<'t>(trainings: &'t [Training], model: Option<&str>) -> Option<&'t Training> {
    trainings.iter().find(|training| {
        let trained = training.spec.as_ref().map(|spec| spec.model.as_str());
        let can_continue = match training.state() {
            State::Running | State::Queued | State::Interrupted => true,
            // Before the first step there is no checkpoint.
            State::Cancelled => training.step > 0,
            _ => false,
        };
        can_continue && model.is_none_or(|model| trained == Some(model))
    })
}

/// Executes the plan and returns the name of the model.
async fn get_model(
    args: &RunArgs,
    plan: Plan,
    global: &GlobalFlags,
    connection: &Connection,
    output: Output,
) -> Result<String, Failure> {
    match plan {
        Plan::Use { model } => Ok(model),
        Plan::Train { model } => {
            let training = TrainArgs {
                corpus: CorpusFlags {
                    text: args.text.clone(),
                    reading: args.reading.clone(),
                },
                model: model.clone(),
                spec: args.spec.clone(),
                detach: false,
                plot: PlotFlags::default(),
            };
            train::run(training, global, output).await?;
            Ok(model)
        }
        Plan::Resume { training_id, model } => {
            output.note(&format!(
                "model {model} has an unfinished training, {training_id}; resuming it"
            ));
            trainings::resume(connection, training_id, false, PlotFlags::default(), output).await?;
            Ok(model)
        }
        Plan::Watch { training_id, model } => {
            output.note(&format!(
                "model {model} is being trained by {training_id}; waiting for it"
            ));
            trainings::watch(connection, &training_id, PlotFlags::default(), output).await?;
            Ok(model)
        }
    }
}

/// Returns a valid model name for a text: the name of the file without its
/// extension, or that of the folder, with other characters replaced by `-`. If
/// it contains letters that a model name cannot have, a part of its digest is
/// appended, so that two such names do not become one.
fn model_name(text: &Path) -> String {
    let full = text.canonicalize().unwrap_or_else(|_| text.to_owned());
    let stem = if full.is_dir() {
        full.file_name()
    } else {
        full.file_stem()
    };
    let stem = stem.unwrap_or_default().to_string_lossy();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = stem
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(MAX_NAME_CHARS)
        .collect();
    let name = if name.is_empty() { "text" } else { &name };
    if stem.is_ascii() {
        return name.to_owned();
    }
    let mut digest = display::hexadecimal(&Sha256::digest(stem.as_bytes()));
    digest.truncate(DIGEST_CHARS);
    // The name is ASCII, so that it can be cut anywhere.
    let name = &name[..name.len().min(MAX_NAME_CHARS - DIGEST_CHARS - 1)];
    format!("{}-{digest}", name.trim_end_matches('-'))
}

/// Returns `$XDG_DATA_HOME/charlstm`, by default `~/.local/share/charlstm`.
fn default_data_dir() -> Result<PathBuf, Failure> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("XDG_DATA_HOME")
        .or_else(|| Some(folder("HOME")?.join(".local/share")))
        .map(|data| data.join("charlstm"))
        .ok_or_else(|| {
            Failure::Usage(
                "cannot find your home folder; specify a data folder with --data-dir".into(),
            )
        })
}

/// Waits for SIGTERM, or for SIGHUP when the terminal is closed.
async fn termination() {
    let (Ok(mut terminate), Ok(mut hang_up)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_proto::v1::{TrainingSpec, TrainingSpecSummary};

    use super::*;

    const TEXT: &str = "0123";
    const OTHER_TEXT: &str = "4567";

    /// A version that was trained on the text with this digest, or imported.
    fn version(version: u64, sha256: Option<&str>) -> Model {
        Model {
            name: "book".into(),
            version,
            training: sha256.map(|sha256| TrainingSpecSummary {
                corpus_sha256: sha256.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn training(id: &str, model: &str, state: State, step: u64) -> Training {
        Training {
            training_id: id.into(),
            state: state.into(),
            step,
            spec: Some(TrainingSpec {
                model: model.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn wanted(version: Option<u64>, has_text: bool) -> Wanted {
        Wanted {
            name: "book".into(),
            version,
            text: has_text.then(|| TEXT.into()),
        }
    }

    fn uses(model: &str) -> Plan {
        Plan::Use {
            model: model.into(),
        }
    }

    /// Asserts the plan and returns the reason.
    fn assert_plan(wanted: &Wanted, known: &Known, expected: &Plan) -> String {
        let (plan, reason) = choose_plan(wanted, known, &["book"]).unwrap();
        assert_eq!(&plan, expected);
        reason.unwrap_or_default()
    }

    #[test]
    fn the_version_that_was_trained_on_the_text_is_used() {
        let known = Known {
            versions: vec![version(2, Some(OTHER_TEXT)), version(1, Some(TEXT))],
            ..Default::default()
        };
        let reason = assert_plan(&wanted(None, true), &known, &uses("book@1"));
        assert_eq!(reason, "book@1 was trained on this text");
        // Without a text, the latest version is used.
        assert_plan(&wanted(None, false), &known, &uses("book@2"));
        assert_plan(&wanted(Some(1), false), &known, &uses("book@1"));
        let reason = assert_plan(&wanted(Some(2), true), &known, &uses("book@2"));
        assert!(reason.starts_with("--text has no effect"), "{reason}");
    }

    #[test]
    fn a_model_of_another_text_gets_a_new_version_and_an_imported_one_is_used() {
        let mut known = Known {
            versions: vec![version(1, Some(OTHER_TEXT))],
            ..Default::default()
        };
        let train = Plan::Train {
            model: "book".into(),
        };
        let reason = assert_plan(&wanted(None, true), &known, &train);
        assert!(
            reason.contains("book@1 was trained on another text"),
            "{reason}"
        );
        known.versions = vec![version(1, None)];
        let reason = assert_plan(&wanted(None, true), &known, &uses("book@1"));
        assert!(reason.contains("book@1 was imported"), "{reason}");
        assert_plan(&wanted(None, true), &Known::default(), &train);
    }

    #[test]
    fn an_unfinished_training_is_continued_if_it_has_the_same_text() {
        let known = |state, text: &str| Known {
            unfinished: Some(Training {
                corpus_sha256: text.into(),
                ..training("t1", "book", state, 9)
            }),
            ..Default::default()
        };
        let (training_id, model) = ("t1".to_owned(), "book".to_owned());
        let resume = Plan::Resume {
            training_id: training_id.clone(),
            model: model.clone(),
        };
        let watch = Plan::Watch {
            training_id,
            model: model.clone(),
        };
        let text = wanted(None, true);
        assert_plan(&text, &known(State::Interrupted, TEXT), &resume);
        assert_plan(&text, &known(State::Running, TEXT), &watch);
        let train = Plan::Train { model };
        assert_plan(&text, &known(State::Interrupted, OTHER_TEXT), &train);
        assert_plan(
            &wanted(None, false),
            &known(State::Interrupted, OTHER_TEXT),
            &resume,
        );
    }

    #[test]
    fn a_training_that_can_be_continued_is_found() {
        let trainings = [
            training("t3", "book", State::Failed, 9),
            training("t2", "book", State::Cancelled, 0),
            training("t1", "book", State::Cancelled, 9),
            training("t0", "tale", State::Running, 9),
        ];
        let found = |model| unfinished(&trainings, model).map(|it| it.training_id.as_str());
        assert_eq!(found(Some("book")), Some("t1"));
        assert_eq!(found(Some("tale")), Some("t0"));
        assert_eq!(found(Some("poem")), None);
        assert_eq!(found(None), Some("t1"));
    }

    #[test]
    fn a_model_that_does_not_exist_is_an_error_with_a_suggestion() {
        let wanted = Wanted {
            name: "bock".into(),
            version: None,
            text: None,
        };
        let mistyped = choose_plan(&wanted, &Known::default(), &["book"]).unwrap_err();
        assert!(
            mistyped.to_string().contains("did you mean \"book\"?"),
            "{mistyped}"
        );
        let known = Known {
            versions: vec![version(1, None)],
            ..Default::default()
        };
        let missing = choose_plan(&self::wanted(Some(9), true), &known, &["book"]);
        let missing = missing.unwrap_err().to_string();
        assert!(
            missing.contains("there is no model \"book@9\";"),
            "{missing}"
        );
    }

    #[test]
    fn a_model_is_named_after_its_text_in_valid_characters() {
        assert_eq!(
            model_name(Path::new("a/Beyond Good.v2.txt")),
            "Beyond-Good.v2"
        );
        let names = [
            "первый.txt",
            "второй.txt",
            "Глава 1.txt",
            "Книга 1.txt",
            "Café.txt",
        ];
        let names = names.map(|name| model_name(Path::new(name)));
        assert!(names[0].starts_with("text-") && names[1].starts_with("text-"));
        assert!(names[2].starts_with("1-") && names[4].starts_with("Caf-"));
        for name in &names {
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1);
        }
        let long = model_name(Path::new(&format!("{}é.txt", "a".repeat(100))));
        assert_eq!(long.len(), MAX_NAME_CHARS);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my novels");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(model_name(&path.join(".")), "my-novels");
    }
}
