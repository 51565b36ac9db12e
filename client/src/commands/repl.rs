//! `repl`.
use crate::args::ReplArgs;
use crate::connect::Connection;
use crate::exit::Failure;
use crate::output::Output;
pub(crate) async fn run(_: ReplArgs, _: &Connection, _: Output) -> Result<(), Failure> {
    Err(Failure::Internal("not written yet".into()))
}
