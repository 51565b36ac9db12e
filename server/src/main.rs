//! The program `charlstm-server`: reads the settings, starts the log, runs the
//! server, and sets the exit code.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;
use std::time::Duration;

use charlstm_server::access::token;
use charlstm_server::config::{Config, ConfigError, LogFormat, Task, unknown_variables};
use charlstm_server::{backup, serve, shutdown};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(ConfigError::Usage(usage)) => usage.exit(),
        Err(error) => return fail(&error, 2),
    };
    set_up_gpu(&config);
    start_log(&config);
    for message in unknown_variables() {
        tracing::warn!("{message}");
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let outcome = runtime.block_on(run(config));
    // Closes the connections that are still open.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Makes libtorch compute on a GPU as configured. Must be called before any thread
/// is started.
#[cfg(feature = "torch")]
fn set_up_gpu(config: &Config) {
    for (name, value) in charlstm_torch::environment::variables(config.gpu_math) {
        // SAFETY: no other thread reads or writes variables yet.
        unsafe { std::env::set_var(name, value) };
    }
}

#[cfg(not(feature = "torch"))]
fn set_up_gpu(_config: &Config) {}

async fn run(config: Config) -> anyhow::Result<()> {
    match &config.task {
        Some(Task::Backup { folder }) => {
            return Ok(backup::back_up(&config.data_dir, folder).await?);
        }
        Some(Task::Migrate) => {
            let copied = serve::migrate(&config).await?;
            return Ok(stdout().write_all(format!("{copied}\n").as_bytes())?);
        }
        Some(Task::Token { name, roles }) => {
            return Ok(stdout().write_all(token::describe(name, roles).as_bytes())?);
        }
        None => {}
    }
    if config.print_config {
        return Ok(stdout().write_all(config.effective.as_bytes())?);
    }
    if config.check_config {
        serve::check(&config)?;
        return Ok(stdout().write_all(b"the configuration is valid\n")?);
    }
    let signals = shutdown::on_signals()?;
    let listener = serve::listen("--listen", config.listen).await?;
    serve::serve(config, listener, signals).await?;
    Ok(())
}

/// Starts the log, which is written to standard error.
fn start_log(config: &Config) {
    // Notices of the database are of no interest, unless the filter says so.
    let directives = format!(
        "{},sqlx::postgres::notice=warn,{}",
        config.log_level, config.log_filter
    );
    let filter = EnvFilter::builder().parse_lossy(directives);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Reporting an error of the log on standard error would panic if that is
        // a terminal that was closed.
        .log_internal_errors(false);
    let log = log
        .with_writer(stderr)
        .with_ansi(config.log_colours && stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}
