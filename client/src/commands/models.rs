//! `models`: lists, describes, deletes, exports and imports models.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use charlstm_proto::v1::import_model_request::Payload as ImportPayload;
use charlstm_proto::v1::{
    DeleteModelRequest, ExportModelRequest, GetModelRequest, GetModelResponse, ImportModelHeader,
    ImportModelRequest, ListModelsRequest, Model, ModelFormat, export_model_response,
};
use indicatif::ProgressBar;

use super::input::{Input, words};
use super::upload;
use crate::args::{Global, ImportModelArgs, ModelsCommand};
use crate::connect::Connection;
use crate::exit::Failure;
use crate::human;
use crate::json;
use crate::output::Output;
use crate::progress;

/// Does what `command` says.
pub(crate) async fn run(
    command: ModelsCommand,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    match command {
        ModelsCommand::List => list(&Connection::open(global).await?, output).await,
        ModelsCommand::Show { name } => show(&Connection::open(global).await?, name, output).await,
        ModelsCommand::Delete { name, force } => {
            delete(&Connection::open(global).await?, name, force, output).await
        }
        ModelsCommand::Export { name, output: path } => {
            export(&Connection::open(global).await?, name, &path, output).await
        }
        ModelsCommand::Import(args) => import(args, global, output).await,
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
        output.note("no models yet; `charlstm-client train --text FILE --model NAME` makes one");
        return Ok(());
    }
    output.line(&table(&models))
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
    name: String,
    force: bool,
    output: Output,
) -> Result<(), Failure> {
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
        || format!("deleted {name}: versions {}", versions(&response.versions)),
    )
}

/// Writes the file under another name first, so that a broken export leaves
/// no half file behind.
async fn export(
    connection: &Connection,
    name: String,
    path: &Path,
    output: Output,
) -> Result<(), Failure> {
    let request = ExportModelRequest { model: name };
    let mut stream = connection
        .models()
        .export_model(request)
        .await?
        .into_inner();
    let unwritable = |error: std::io::Error| Failure::Io {
        what: format!("write {}", path.display()),
        source: error,
    };
    let mut partial = PartialFile::create(path).map_err(unwritable)?;
    let (mut announced, mut written) = (None, 0);
    let mut bar = ProgressBar::hidden();
    while let Some(response) = stream.message().await? {
        match response.payload {
            Some(export_model_response::Payload::Header(header)) => {
                bar = progress::upload_bar(Some(header.bytes), output);
                announced = Some(header);
            }
            Some(export_model_response::Payload::Chunk(chunk)) => {
                partial.file.write_all(&chunk).map_err(unwritable)?;
                written += chunk.len() as u64;
                bar.inc(chunk.len() as u64);
            }
            None => {}
        }
    }
    bar.finish_and_clear();
    let header = announced
        .filter(|header| header.bytes == written)
        .ok_or_else(|| Failure::Refused("the server sent only a part of the model".into()))?;
    partial.keep(path).map_err(unwritable)?;
    output.result(
        || json::named("exported", json::object("ExportModelHeader", &header)),
        || {
            format!(
                "wrote {}@{} to {} ({})",
                header.name,
                header.version,
                path.display(),
                human::bytes(written)
            )
        },
    )
}

/// A file that is removed again unless it is kept.
struct PartialFile {
    file: File,
    path: PathBuf,
}

impl PartialFile {
    fn create(target: &Path) -> std::io::Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        Ok(Self {
            file: File::create(&path)?,
            path,
        })
    }

    fn keep(self, target: &Path) -> std::io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, target)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After `keep` there is nothing left under this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn import(args: ImportModelArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let input = Input::open(&args.file)?;
    let header = ImportModelHeader {
        name: args.model.clone(),
        format: if args.pth {
            ModelFormat::Pth.into()
        } else {
            ModelFormat::Unspecified.into()
        },
        vocabulary: vocabulary(&args)?,
    };
    let connection = Connection::open(global).await?;
    let bar = progress::upload_bar(input.bytes, output);
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
        response = client.import_model(requests) => response?.into_inner(),
        Ok(error) = read_error => return Err(Failure::Unreadable {
            path: args.file.clone(),
            reason: words(&error),
        }),
    };
    bar.finish_and_clear();
    let model = response.model.unwrap_or_default();
    output.result(
        || json::named("imported", json::object("Model", &model)),
        || {
            format!(
                "imported {} as {}@{}",
                args.file.display(),
                model.name,
                model.version
            )
        },
    )
}

/// The vocabulary that goes with the file, where a flag names one.
fn vocabulary(args: &ImportModelArgs) -> Result<String, Failure> {
    if let Some(path) = &args.vocabulary {
        return Input::open(path)?.text(path);
    }
    let Some(path) = &args.text else {
        return Ok(String::new());
    };
    let unreadable = |error: std::io::Error| Failure::Unreadable {
        path: path.clone(),
        reason: words(&error),
    };
    distinct(BufReader::new(File::open(path).map_err(unreadable)?)).map_err(unreadable)
}

/// The distinct characters of a text, sorted, as a training orders them. The
/// text is read line by line and never held whole.
fn distinct(mut text: impl BufRead) -> std::io::Result<String> {
    let mut characters = BTreeSet::new();
    let mut line = String::new();
    while text.read_line(&mut line)? > 0 {
        characters.extend(line.chars());
        line.clear();
    }
    Ok(characters.into_iter().collect())
}

/// Models as a table, one a line.
pub(crate) fn table(models: &[Model]) -> String {
    let heading = [
        "MODEL",
        "LAYERS",
        "CHARACTERS",
        "PARAMETERS",
        "SIZE",
        "LOSS",
        "VALIDATION",
        "MADE",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(models.iter().map(|model| {
        vec![
            format!("{}@{}", model.name, model.version),
            format!("{} x {}", model.num_layers, model.hidden_size),
            model.vocabulary.chars().count().to_string(),
            human::count(model.parameters),
            human::bytes(model.bytes),
            loss(model.train_loss),
            loss(model.validation_loss),
            human::ago(model.created_unix_ms),
        ]
    }));
    human::table(&rows)
}

/// A loss, or a dash where there is none.
pub(crate) fn loss(loss: Option<f64>) -> String {
    loss.map_or_else(|| "-".into(), |loss| format!("{loss:.3}"))
}

fn description(response: &GetModelResponse) -> String {
    let model = response.model.clone().unwrap_or_default();
    let mut facts = vec![
        ("model", format!("{}@{}", model.name, model.version)),
        ("versions", versions(&response.versions)),
        (
            "layers",
            format!("{} x {}", model.num_layers, model.hidden_size),
        ),
        ("parameters", human::count(model.parameters)),
        ("size", human::bytes(model.bytes)),
        ("made", human::ago(model.created_unix_ms)),
        ("loss", loss(model.train_loss)),
        ("validation", loss(model.validation_loss)),
        (
            "vocabulary",
            format!(
                "{} characters: {}",
                model.vocabulary.chars().count(),
                human::quoted(&model.vocabulary)
            ),
        ),
    ];
    if !model.training_id.is_empty() {
        facts.push(("training", model.training_id));
    }
    if let Some(training) = model.training {
        facts.push((
            "trained",
            format!(
                "{} epochs, {} steps, recipe {}, on {} characters (sha256 {})",
                training.epochs,
                human::count(training.steps),
                training.recipe,
                human::count(training.corpus_chars),
                training.corpus_sha256
            ),
        ));
    }
    human::facts(&facts)
}

fn versions(versions: &[u64]) -> String {
    let versions: Vec<String> = versions.iter().map(u64::to_string).collect();
    versions.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_of_a_text_is_its_distinct_characters_sorted() {
        assert_eq!(distinct("béa\nab\r\n".as_bytes()).unwrap(), "\n\rabé");
    }

    #[test]
    fn an_export_that_breaks_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.safetensors");
        drop(PartialFile::create(&target).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        PartialFile::create(&target).unwrap().keep(&target).unwrap();
        assert!(target.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
