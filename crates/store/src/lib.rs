//! What charlstm keeps on disk and how it is written: the model repository.

pub mod repository;
