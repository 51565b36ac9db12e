//! `run`: the shortest way in. Finds a server or starts one, trains where
//! there is no model yet, opens the conversation, and stops the server that it
//! started. How a server is started and stopped is in `own_server`.

mod own_server;

use std::path::{Path, PathBuf};

use charlstm_proto::v1::{ListModelsRequest, ListTrainingsRequest, Model, State, Training};
use tokio::signal::unix::{SignalKind, signal};

use self::own_server::OwnServer;
use super::{repl, train, trainings};
use crate::args::{CorpusFlags, Global, LineEnds, ReplArgs, RunArgs, SamplingFlags, TrainArgs};
use crate::connect::{self, Connection};
use crate::exit::{Failure, Interrupts};
use crate::human;
use crate::output::Output;

/// Longest name of a model that the server takes.
const MAX_NAME_CHARS: usize = 64;

/// What has to happen before the conversation can begin.
#[derive(Debug, PartialEq)]
enum Plan {
    /// The model is there.
    Talk(String),
    /// The model has to be made from the text.
    Train(String),
    /// A training of the model was broken off: its id and the model.
    Resume(String, String),
    /// A training of the model is under way: its id and the model.
    Watch(String, String),
}

/// Does all of it. The server that was started is stopped whatever happens.
pub(crate) async fn run(args: RunArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let mut own_server = None;
    let outcome = tokio::select! {
        outcome = work(args, global, output, &mut own_server) => outcome,
        () = told_to_end() => Err(Failure::Interrupted),
    };
    if let Some(server) = own_server {
        server.stop(output).await;
    }
    outcome
}

async fn work(
    args: RunArgs,
    global: &Global,
    output: Output,
    own_server: &mut Option<OwnServer>,
) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen();
    let begin = async {
        let (global, connection) = reach(&args, global, output, own_server).await?;
        let plan = plan(&args, &connection).await?;
        Ok::<_, Failure>((global, connection, plan))
    };
    let (global, connection, plan) = tokio::select! {
        begun = begin => begun?,
        () = interrupts.next() => return Err(Failure::Interrupted),
    };
    // From here on each step has its own meaning for Ctrl-C.
    drop(interrupts);
    let model = make(&args, plan, &global, &connection, output).await?;
    if !output.json {
        output.note(&format!("model {model}"));
    }
    let conversation = ReplArgs {
        model,
        session: None,
        length: args.length,
        // The conversation has `/set` for these.
        sampling: SamplingFlags::default(),
    };
    repl::run(conversation, &connection, output).await
}

/// A connection to the server at the address, or to one that is started here.
async fn reach(
    args: &RunArgs,
    global: &Global,
    output: Output,
    own_server: &mut Option<OwnServer>,
) -> Result<(Global, Connection), Failure> {
    let failure = match Connection::open(global).await {
        Ok(connection) => return Ok((global.clone(), connection)),
        Err(failure) => failure,
    };
    // Only the person who named another machine can start a server there.
    let (Failure::NoServer { .. }, Some(listen)) = (&failure, connect::local(&global.addr)) else {
        return Err(failure);
    };
    let data_dir = match &args.data_dir {
        Some(folder) => folder.clone(),
        None => default_data_dir()?,
    };
    // Kept before it is waited for, so that Ctrl-C stops it as well.
    let server = own_server.insert(OwnServer::start(&listen, &data_dir)?);
    let global = Global {
        addr: server.ready().await?,
        ..global.clone()
    };
    if !output.json {
        output.note(&format!(
            "started a server at {}, which keeps what it learns in {}",
            global.addr,
            data_dir.display()
        ));
    }
    let connection = Connection::open(&global).await?;
    Ok((global, connection))
}

/// Looks at what the server has.
async fn plan(args: &RunArgs, connection: &Connection) -> Result<Plan, Failure> {
    let request = ListModelsRequest {};
    let models = connection.models().list_models(request).await?;
    let request = ListTrainingsRequest {};
    let trainings = connection.training().list_trainings(request).await?;
    let models = models.into_inner().models;
    let trainings = trainings.into_inner().trainings;
    choose(
        args.model.as_deref(),
        args.text.first().map(PathBuf::as_path),
        &models,
        &trainings,
    )
}

fn choose(
    model: Option<&str>,
    text: Option<&Path>,
    models: &[Model],
    trainings: &[Training],
) -> Result<Plan, Failure> {
    let name = match (model, text) {
        (Some(name), _) => name.to_owned(),
        (None, Some(text)) => name_of(text),
        (None, None) => {
            let newest = models.iter().max_by_key(|model| model.created_unix_ms);
            let of_training = |training: &Training| Some(training.spec.as_ref()?.model.clone());
            newest
                .map(|model| model.name.clone())
                .or_else(|| unfinished(trainings, None).and_then(of_training))
                .ok_or_else(|| {
                    Failure::Usage(
                        "there is no model yet; name a text to learn from with --text FILE".into(),
                    )
                })?
        }
    };
    let known = name.split('@').next().unwrap_or_default();
    if models.iter().any(|model| model.name == known) {
        return Ok(Plan::Talk(name));
    }
    if let Some(training) = unfinished(trainings, Some(&name)) {
        let id = training.training_id.clone();
        return Ok(match training.state() {
            State::Running | State::Queued => Plan::Watch(id, name),
            _ => Plan::Resume(id, name),
        });
    }
    if text.is_none() {
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        let nearest = human::nearest(known, names).map_or_else(String::new, |nearest| {
            format!(" (did you mean {nearest:?}?)")
        });
        return Err(Failure::Refused(format!(
            "there is no model {known:?}{nearest}; --text FILE trains one of that name"
        )));
    }
    Ok(Plan::Train(name))
}

/// The newest training, of that model where one is named, that may still come
/// to a model.
fn unfinished<'t>(trainings: &'t [Training], model: Option<&str>) -> Option<&'t Training> {
    trainings.iter().find(|training| {
        let of_model = training.spec.as_ref().map(|spec| spec.model.as_str());
        let may_go_on = match training.state() {
            State::Running | State::Queued | State::Interrupted => true,
            // Before the first step there is nothing to go on from.
            State::Cancelled => training.step > 0,
            _ => false,
        };
        may_go_on && model.is_none_or(|model| of_model == Some(model))
    })
}

/// Makes the model, where it is not there; its name.
async fn make(
    args: &RunArgs,
    plan: Plan,
    global: &Global,
    connection: &Connection,
    output: Output,
) -> Result<String, Failure> {
    match plan {
        Plan::Talk(model) => Ok(model),
        Plan::Train(model) => {
            let training = TrainArgs {
                corpus: CorpusFlags {
                    text: args.text.clone(),
                    crlf: LineEnds::default(),
                },
                model: model.clone(),
                spec: args.spec.clone(),
                detach: false,
                plot: None,
            };
            train::run(training, global, output).await?;
            Ok(model)
        }
        Plan::Resume(id, model) => {
            output.note(&format!(
                "the training {id} of {model} was broken off; going on with it"
            ));
            trainings::resume(connection, id, output).await?;
            Ok(model)
        }
        Plan::Watch(id, model) => {
            output.note(&format!("the training {id} of {model} is under way"));
            trainings::watch(connection, &id, output).await?;
            Ok(model)
        }
    }
}

/// The name of a model for a text: that of the file, in the letters that a
/// model may have.
fn name_of(text: &Path) -> String {
    let stem = text
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = stem
        .unwrap_or_default()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(MAX_NAME_CHARS)
        .collect();
    if name.is_empty() { "text".into() } else { name }
}

/// `$XDG_DATA_HOME/charlstm`.
fn default_data_dir() -> Result<PathBuf, Failure> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("XDG_DATA_HOME")
        .or_else(|| Some(folder("HOME")?.join(".local/share")))
        .map(|data| data.join("charlstm"))
        .ok_or_else(|| Failure::Usage("there is no home folder; name one with --data-dir".into()))
}

/// Resolves when the terminal is closed or the process is told to end: then
/// the server must not stay behind.
async fn told_to_end() {
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
    use charlstm_proto::v1::TrainingSpec;

    use super::*;

    fn model(name: &str, created_unix_ms: u64) -> Model {
        Model {
            name: name.into(),
            created_unix_ms,
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

    #[test]
    fn a_model_that_is_there_is_not_trained_again() {
        let models = [model("book", 1), model("tale", 2)];
        let text = Some(Path::new("dir/book.txt"));
        let plan = |model, text| choose(model, text, &models, &[]).unwrap();
        assert_eq!(plan(None, text), Plan::Talk("book".into()));
        assert_eq!(plan(Some("book@1"), None), Plan::Talk("book@1".into()));
        // Without a word, the newest one.
        assert_eq!(plan(None, None), Plan::Talk("tale".into()));
        assert_eq!(plan(Some("new"), text), Plan::Train("new".into()));
    }

    #[test]
    fn a_training_that_was_broken_off_goes_on() {
        let trainings = [
            training("t3", "book", State::Failed, 9),
            training("t2", "book", State::Cancelled, 0),
            training("t1", "book", State::Cancelled, 9),
            training("t0", "tale", State::Running, 9),
        ];
        let plan = |model| choose(Some(model), None, &[], &trainings).unwrap();
        assert_eq!(plan("book"), Plan::Resume("t1".into(), "book".into()));
        assert_eq!(plan("tale"), Plan::Watch("t0".into(), "tale".into()));
    }

    #[test]
    fn without_text_and_model_it_says_what_is_missing() {
        let nothing = choose(None, None, &[], &[]).unwrap_err();
        assert_eq!(nothing.exit_code(), 2);
        assert!(nothing.to_string().contains("--text FILE"), "{nothing}");
        let mistyped = choose(Some("bock"), None, &[model("book", 1)], &[]).unwrap_err();
        assert!(
            mistyped.to_string().contains("did you mean \"book\"?"),
            "{mistyped}"
        );
    }

    #[test]
    fn a_file_lends_its_name_in_the_letters_that_a_model_may_have() {
        assert_eq!(name_of(Path::new("a/Beyond Good.v2.txt")), "Beyond-Good.v2");
        assert_eq!(name_of(Path::new("_é.txt")), "text");
        assert_eq!(name_of(Path::new("-")), "text");
    }
}
