//! `models`: lists, shows, deletes, exports and imports models; `transfer` copies
//! and renames them.

mod transfer;

use charlstm_proto::v1::import_model_request::Payload as ImportPayload;
use charlstm_proto::v1::{
    DeleteModelRequest, ExportModelRequest, GetModelRequest, GetModelResponse, ImportModelHeader,
    ImportModelRequest, ListModelsRequest, Model, ModelFormat, ScoreRequest, UnknownCharacters,
    export_model_response,
};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

use super::corpus::Corpus;
use super::input::Input;
use super::upload;
use crate::args::{
    DeleteModelArgs, ExportFlags, GlobalFlags, ImportModelArgs, ModelsCommand, TextFlags,
};
use crate::connection::Connection;
use crate::display;
use crate::failure::{self, Failure};
use crate::json;
use crate::output::{self, Output};
use crate::output_file::{Existing, OutputFile};
use crate::progress;
use crate::text_decoder::LineEndings;

/// Number of characters of a text that are scored to check a vocabulary: a
/// second of work, and enough to tell sense from noise.
const SAMPLE_CHARS: usize = 20_000;

/// Runs a command of `models`.
pub(crate) async fn run(
    command: ModelsCommand,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    match command {
        ModelsCommand::List => list(&Connection::open(global).await?, output).await,
        ModelsCommand::Show { name } => show(&Connection::open(global).await?, name, output).await,
        ModelsCommand::Delete(args) => delete(&Connection::open(global).await?, args, output).await,
        ModelsCommand::Copy(args) => {
            transfer::copy(&Connection::open(global).await?, args, output).await
        }
        ModelsCommand::Rename(args) => {
            transfer::rename(&Connection::open(global).await?, args, output).await
        }
        ModelsCommand::Export { name, file } => {
            export(&Connection::open(global).await?, name, &file, output).await
        }
        ModelsCommand::Import(args) => import(args, global, output).await,
    }
}

/// Returns the names of all models; none if the server does not list them.
pub(super) async fn names(connection: &Connection) -> Result<Vec<String>, Failure> {
    match connection.models().list_models(ListModelsRequest {}).await {
        Ok(response) => {
            let models = response.into_inner().models;
            Ok(models.into_iter().map(|model| model.name).collect())
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(Vec::new()),
        Err(status) => Err(status.into()),
    }
}

/// Returns NAME@VERSION of the model that `reference` names: NAME means its
/// latest version, and nothing means the only model. Fails if there is none.
pub(super) async fn resolve(connection: &Connection, reference: &str) -> Result<String, Failure> {
    let name = if reference.is_empty() {
        match <[String; 1]>::try_from(names(connection).await?) {
            Ok([name]) => name,
            Err(names) if names.is_empty() => return Ok(String::new()),
            Err(names) => {
                return Err(Failure::Usage(format!(
                    "there are several models; choose one with --model: {}",
                    names.join(", ")
                )));
            }
        }
    } else {
        reference.to_owned()
    };
    let request = GetModelRequest {
        model: name.clone(),
    };
    match connection.models().get_model(request).await {
        Ok(response) => {
            let model = response.into_inner().model.unwrap_or_default();
            Ok(format!("{}@{}", model.name, model.version))
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(name),
        Err(status) => Err(status.into()),
    }
}

async fn list(connection: &Connection, output: Output) -> Result<(), Failure> {
    let response = connection
        .models()
        .list_models(ListModelsRequest {})
        .await?;
    let models = response.into_inner().models;
    if output.json {
        return models
            .iter()
            .try_for_each(|model| output.object(&json::object("Model", model)));
    }
    if models.is_empty() {
        output
            .note("no models yet; train one with `charlstm-client train --text FILE --model NAME`");
        return Ok(());
    }
    output.line(&table(&models, output::stdout_columns()))
}

async fn show(connection: &Connection, name: String, output: Output) -> Result<(), Failure> {
    let request = GetModelRequest { model: name };
    let response = connection.models().get_model(request).await?.into_inner();
    output.result(
        || json::object("GetModelResponse", &response),
        || description(&response),
    )
}

async fn delete(
    connection: &Connection,
    args: DeleteModelArgs,
    output: Output,
) -> Result<(), Failure> {
    let DeleteModelArgs { name, force } = args;
    let request = DeleteModelRequest {
        model: name.clone(),
        force: force.then_some(true),
    };
    let response = connection
        .models()
        .delete_model(request)
        .await?
        .into_inner();
    output.result(
        || json::named("deleted", json::object("DeleteModelResponse", &response)),
        || {
            let noun = match response.versions.len() {
                1 => "version",
                _ => "versions",
            };
            format!("deleted {name}: {noun} {}", versions(&response.versions))
        },
    )
}

/// Writes a model to a file. If the export fails, the file is not created, and
/// an older one is unchanged.
async fn export(
    connection: &Connection,
    name: String,
    flags: &ExportFlags,
    output: Output,
) -> Result<(), Failure> {
    let mut file = OutputFile::create(&flags.output, Existing::from_force(flags.force))?;
    let request = ExportModelRequest { model: name };
    let mut stream = connection
        .models()
        .export_model(request)
        .await?
        .into_inner();
    let (mut header, mut written) = (None, 0);
    let mut sha256 = Sha256::new();
    let mut bar = ProgressBar::hidden();
    while let Some(response) = stream.message().await? {
        match response.payload {
            Some(export_model_response::Payload::Header(received)) => {
                bar = progress::transfer_bar(Some(received.bytes), output);
                header = Some(received);
            }
            Some(export_model_response::Payload::Chunk(chunk)) => {
                file.write(&chunk)?;
                sha256.update(&chunk);
                written += chunk.len() as u64;
                bar.inc(chunk.len() as u64);
            }
            None => {}
        }
    }
    bar.finish_and_clear();
    let header = header
        .filter(|header| header.bytes == written)
        .ok_or_else(|| Failure::Refused("the server sent an incomplete model file".into()))?;
    let sha256 = display::hexadecimal(&sha256.finalize());
    if !header.sha256.is_empty() && header.sha256 != sha256 {
        return Err(Failure::Refused(
            "the model file was changed on the way from the server".into(),
        ));
    }
    let is_stdout = file.is_stdout();
    file.commit()?;
    let object = || {
        let mut fields = json::object("ExportModelHeader", &header);
        // Servers before version 0.2 do not send it.
        fields["sha256"] = sha256.clone().into();
        json::named("exported", fields)
    };
    let text = || {
        format!(
            "exported {}@{} to {} ({}, sha256 {sha256})",
            header.name,
            header.version,
            display::path(&flags.output),
            display::bytes(written)
        )
    };
    if is_stdout {
        output.note(&text());
        return Ok(());
    }
    output.result(object, text)
}

async fn import(
    args: ImportModelArgs,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let input = Input::open(&args.file)?;
    let (vocabulary, sample) = vocabulary(&args, output)?;
    let header = ImportModelHeader {
        name: args.model.clone(),
        format: if args.pth {
            ModelFormat::Pth.into()
        } else {
            ModelFormat::Unspecified.into()
        },
        vocabulary,
        sha256: args.sha256.clone().unwrap_or_default(),
    };
    let connection = Connection::open(global).await?;
    let bar = progress::transfer_bar(input.bytes, output);
    let message = |payload| ImportModelRequest {
        payload: Some(payload),
    };
    let (requests, read_error) = upload::stream(
        message(ImportPayload::Header(header)),
        input,
        bar.clone(),
        move |chunk| message(ImportPayload::Chunk(chunk)),
    );
    let mut client = connection.models();
    let response = tokio::select! {
        response = client.import_model(requests) => {
            response.map_err(|status| import_failure(status, &args))?.into_inner()
        }
        Ok(error) = read_error => return Err(Failure::unreadable(&args.file, &error)),
    };
    bar.finish_and_clear();
    let model = response.model.unwrap_or_default();
    let score = match &sample {
        Some(sample) => check_vocabulary(&connection, &model, sample, output).await?,
        None => None,
    };
    output.result(
        || json::named("imported", json::object("Model", &model)),
        || {
            let (file, name) = (display::path(&args.file), &model.name);
            let score = score.map_or_else(String::new, |bits| {
                format!("; it predicts the text with {bits:.2} bits per character")
            });
            format!("imported {file} as {name}@{}{score}", model.version)
        },
    )
}

/// Creates the failure of an import, with the flags that help if the file lacks
/// a vocabulary that fits.
fn import_failure(status: Status, args: &ImportModelArgs) -> Failure {
    let lacks_vocabulary = failure::has_reason(&status, "VOCABULARY_NEEDED");
    let failure = Failure::from(status);
    if lacks_vocabulary && args.text.is_none() && args.vocabulary.is_none() {
        return failure.with_remedy(
            "specify its characters with --text CORPUS (the text that the model was trained \
             on) or --vocabulary FILE",
        );
    }
    failure
}

/// Scores the beginning of the text that the vocabulary was taken from, and
/// returns the bits per character. If the model predicts it no better than
/// chance, its characters are in another order: deletes the model and fails.
async fn check_vocabulary(
    connection: &Connection,
    model: &Model,
    text: &str,
    output: Output,
) -> Result<Option<f64>, Failure> {
    let id = format!("{}@{}", model.name, model.version);
    let request = ScoreRequest {
        model: id.clone(),
        text: text.to_owned(),
        // The text may have been changed since the model was trained.
        unknown: UnknownCharacters::Skip.into(),
        ..Default::default()
    };
    let score = match connection.generation().score(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            output.note(&format!(
                "cannot check the order of the characters: {}",
                Failure::from(status)
            ));
            return Ok(None);
        }
    };
    let chance = (model.vocabulary.chars().count() as f64).log2();
    if score.bits_per_char <= chance {
        return Ok(Some(score.bits_per_char));
    }
    let request = DeleteModelRequest {
        model: id,
        force: None,
    };
    connection.models().delete_model(request).await?;
    Err(Failure::Refused(format!(
        "the model predicts the text no better than chance ({:.2} bits per character, chance is \
         {chance:.2}), so its characters are in another order than sorted; the import was undone",
        score.bits_per_char
    ))
    .with_remedy("specify the characters in their order with --vocabulary FILE"))
}

/// Returns the vocabulary that a flag names, or an empty one; and with `--text`
/// the beginning of the text, to check the vocabulary.
fn vocabulary(args: &ImportModelArgs, output: Output) -> Result<(String, Option<String>), Failure> {
    if let Some(path) = &args.vocabulary {
        let flags = TextFlags {
            // Every character of the file is one of the vocabulary.
            crlf: LineEndings::Keep,
            ..args.reading.clone()
        };
        let vocabulary = Corpus::open(std::slice::from_ref(path), &flags)?.into_text()?;
        return Ok((vocabulary, None));
    }
    let Some(path) = &args.text else {
        return Ok((String::new(), None));
    };
    let corpus = Corpus::open(std::slice::from_ref(path), &args.reading)?;
    let changes = corpus.changes();
    let (characters, beginning) = corpus.vocabulary(SAMPLE_CHARS)?;
    for message in changes.messages() {
        output.note(&message);
    }
    // One character cannot be scored.
    let sample = (beginning.chars().count() > 1).then_some(beginning);
    Ok((characters, sample))
}

/// Formats models as a table with one line per model.
pub(super) fn table(models: &[Model], columns: Option<usize>) -> String {
    let heading = [
        "MODEL",
        "LAYERS",
        "VOCABULARY",
        "PARAMETERS",
        "SIZE",
        "LOSS",
        "VALIDATION",
        "CREATED",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(models.iter().map(|model| {
        vec![
            format!("{}@{}", model.name, model.version),
            format!("{} x {}", model.num_layers, model.hidden_size),
            model.vocabulary.chars().count().to_string(),
            display::count(model.parameters),
            display::bytes(model.bytes),
            display::loss(model.train_loss),
            display::loss(model.validation_loss),
            display::ago(model.created_unix_ms),
        ]
    }));
    let drop_first = ["SIZE", "VOCABULARY", "PARAMETERS", "LAYERS", "LOSS"];
    display::table(&rows, columns, &drop_first)
}

fn description(response: &GetModelResponse) -> String {
    let model = response.model.clone().unwrap_or_default();
    let mut pairs = vec![
        ("model", format!("{}@{}", model.name, model.version)),
        ("versions", versions(&response.versions)),
        (
            "layers",
            format!("{} x {}", model.num_layers, model.hidden_size),
        ),
        ("parameters", display::count(model.parameters)),
        ("size", display::bytes(model.bytes)),
        ("created", display::ago(model.created_unix_ms)),
        ("loss", display::loss(model.train_loss)),
        ("validation", display::loss(model.validation_loss)),
        (
            "vocabulary",
            format!(
                "{}: {}",
                display::plural(model.vocabulary.chars().count() as u64, "character"),
                display::quoted(&model.vocabulary)
            ),
        ),
    ];
    if let Some(precision) = precision(&model) {
        pairs.push(("precision", precision));
    }
    if !model.training_id.is_empty() {
        pairs.push(("training", model.training_id));
    }
    if let Some(training) = model.training {
        pairs.push((
            "trained",
            format!(
                "{}, {}, recipe {}{}, on {} (sha256 {})",
                display::plural(training.epochs.into(), "epoch"),
                display::plural(training.steps, "step"),
                training.recipe,
                match training.precision.as_str() {
                    "" => String::new(),
                    precision => format!(", {precision}"),
                },
                display::plural(training.corpus_chars, "character"),
                training.corpus_sha256
            ),
        ));
    }
    display::key_values(&pairs, output::stdout_columns())
}

/// Describes in which precision a model generates, and why. `None` if the
/// server is older and does not report it.
fn precision(model: &Model) -> Option<String> {
    let mut text = match model.precision.as_str() {
        "" if model.int8_objection.is_empty() && model.int8_loss_bits_per_char.is_none() => {
            return None;
        }
        "" => "not decided yet".to_owned(),
        precision => precision.to_owned(),
    };
    if !model.int8_objection.is_empty() {
        text.push_str(&format!(" ({})", model.int8_objection));
    } else if let Some(loss) = model.int8_loss_bits_per_char {
        text.push_str(&format!(" (int8 costs {loss:.5} bits per character)"));
    }
    Some(text)
}

/// Lists version numbers.
fn versions(versions: &[u64]) -> String {
    let versions: Vec<String> = versions.iter().map(u64::to_string).collect();
    versions.join(", ")
}
