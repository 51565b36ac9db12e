//! `run`: the quick start. Uses a running server or starts one, trains if the
//! model does not exist, opens the REPL, and stops the server that it started
//! (see `local_server`).

mod local_server;

use std::path::{Path, PathBuf};

use charlstm_proto::v1::{ListModelsRequest, ListTrainingsRequest, Model, State, Training};
use tokio::signal::unix::{SignalKind, signal};

use self::local_server::LocalServer;
use super::{repl, train, trainings};
use crate::args::{
    CorpusFlags, GlobalFlags, PlotFlags, ReplArgs, RunArgs, SamplingFlags, TrainArgs,
};
use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::suggestion::nearest;

/// Maximum length of a model name that the server accepts.
const MAX_NAME_CHARS: usize = 64;

/// How to get the model. Each variant has the name of the model.
#[derive(Debug, PartialEq)]
enum Plan {
    /// The model exists.
    Use { model: String },
    /// Train the model on the text.
    Train { model: String },
    /// Resume an unfinished training of the model.
    Resume { training_id: String, model: String },
    /// Wait for a training of the model.
    Watch { training_id: String, model: String },
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
        let (global, connection) = connect_or_start(&args, global, output, local_server).await?;
        let plan = plan(&args, &connection).await?;
        Ok::<_, Failure>((global, connection, plan))
    };
    let (global, connection, plan) = tokio::select! {
        prepared = prepare => prepared?,
        () = interrupts.next() => return Err(Failure::Interrupted),
    };
    // The training and the REPL handle Ctrl-C in their own way.
    drop(interrupts);
    let model = get_model(&args, plan, &global, &connection, output).await?;
    if !output.json {
        output.note(&format!("using model {model}"));
    }
    let repl_args = ReplArgs {
        model,
        session: None,
        length: args.length,
        // The REPL changes these with `/set`.
        sampling: SamplingFlags::default(),
    };
    repl::run(repl_args, &connection, output).await
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
        Ok(connection) => return Ok((global.clone(), connection)),
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

/// Chooses a plan by the models and trainings of the server.
async fn plan(args: &RunArgs, connection: &Connection) -> Result<Plan, Failure> {
    let request = ListModelsRequest {};
    let models = connection.models().list_models(request).await?;
    let request = ListTrainingsRequest {};
    let trainings = connection.training().list_trainings(request).await?;
    let models = models.into_inner().models;
    let trainings = trainings.into_inner().trainings;
    choose_plan(
        args.model.as_deref(),
        args.text.first().map(PathBuf::as_path),
        &models,
        &trainings,
    )
}

fn choose_plan(
    model: Option<&str>,
    text: Option<&Path>,
    models: &[Model],
    trainings: &[Training],
) -> Result<Plan, Failure> {
    let name = match (model, text) {
        (Some(name), _) => name.to_owned(),
        (None, Some(text)) => model_name(text),
        (None, None) => {
            let newest = models.iter().max_by_key(|model| model.created_unix_ms);
            let name_of = |training: &Training| Some(training.spec.as_ref()?.model.clone());
            newest
                .map(|model| model.name.clone())
                .or_else(|| unfinished(trainings, None).and_then(name_of))
                .ok_or_else(|| {
                    Failure::Usage(
                        "there is no model yet; specify a text to train on with --text FILE".into(),
                    )
                })?
        }
    };
    let without_version = name.split('@').next().unwrap_or_default();
    if models.iter().any(|model| model.name == without_version) {
        return Ok(Plan::Use { model: name });
    }
    if let Some(training) = unfinished(trainings, Some(&name)) {
        let (training_id, model) = (training.training_id.clone(), name);
        return Ok(match training.state() {
            State::Running | State::Queued => Plan::Watch { training_id, model },
            _ => Plan::Resume { training_id, model },
        });
    }
    if text.is_none() {
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        let suggestion = nearest(without_version, names)
            .map_or_else(String::new, |name| format!(" (did you mean {name:?}?)"));
        return Err(Failure::Refused(format!(
            "there is no model {without_version:?}{suggestion}; \
             use --text FILE to train a model of that name"
        )));
    }
    Ok(Plan::Train { model: name })
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
/// extension, with other characters replaced by `-`.
fn model_name(text: &Path) -> String {
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
    fn an_existing_model_is_used_and_a_new_one_is_trained() {
        let models = [model("book", 1), model("tale", 2)];
        let text = Some(Path::new("dir/book.txt"));
        let plan = |model, text| choose_plan(model, text, &models, &[]).unwrap();
        let use_model = |model: &str| Plan::Use {
            model: model.into(),
        };
        assert_eq!(plan(None, text), use_model("book"));
        assert_eq!(plan(Some("book@1"), None), use_model("book@1"));
        // Without a name or a text, the newest model is used.
        assert_eq!(plan(None, None), use_model("tale"));
        let model = "new".into();
        assert_eq!(plan(Some("new"), text), Plan::Train { model });
    }

    #[test]
    fn an_unfinished_training_is_resumed_and_a_running_one_is_watched() {
        let trainings = [
            training("t3", "book", State::Failed, 9),
            training("t2", "book", State::Cancelled, 0),
            training("t1", "book", State::Cancelled, 9),
            training("t0", "tale", State::Running, 9),
        ];
        let plan = |model| choose_plan(Some(model), None, &[], &trainings).unwrap();
        let (training_id, model) = ("t1".into(), "book".into());
        assert_eq!(plan("book"), Plan::Resume { training_id, model });
        let (training_id, model) = ("t0".into(), "tale".into());
        assert_eq!(plan("tale"), Plan::Watch { training_id, model });
    }

    #[test]
    fn without_a_model_and_a_text_the_error_says_what_to_specify() {
        let nothing = choose_plan(None, None, &[], &[]).unwrap_err();
        assert_eq!(nothing.exit_code(), 2);
        assert!(nothing.to_string().contains("--text FILE"), "{nothing}");
        let mistyped = choose_plan(Some("bock"), None, &[model("book", 1)], &[]).unwrap_err();
        assert!(
            mistyped.to_string().contains("did you mean \"book\"?"),
            "{mistyped}"
        );
    }

    #[test]
    fn a_model_is_named_after_its_text_in_valid_characters() {
        assert_eq!(
            model_name(Path::new("a/Beyond Good.v2.txt")),
            "Beyond-Good.v2"
        );
        assert_eq!(model_name(Path::new("_é.txt")), "text");
        assert_eq!(model_name(Path::new("-")), "text");
    }
}
