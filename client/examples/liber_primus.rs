//! Prints Cicero's *De finibus*, book one, which the crate `lipsum` carries:
//! the text that `make demo` trains on. Nothing of the client is used here.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    io::stdout().write_all(lipsum::LIBER_PRIMUS.as_bytes())
}
