//! `bench`.
use crate::args::{BenchArgs, Global};
use crate::exit::Failure;
use crate::output::Output;
pub(crate) async fn run(_: BenchArgs, _: &Global, _: Output) -> Result<(), Failure> {
    Err(Failure::Internal("not written yet".into()))
}
