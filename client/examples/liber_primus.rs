//! Prints the text that `make demo` trains on: book one of Cicero's *De
//! finibus*, from the crate `lipsum`. Does not use the client.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    io::stdout().write_all(lipsum::LIBER_PRIMUS.as_bytes())
}
