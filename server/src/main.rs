//! The program `charlstm-server`.

fn main() {}
