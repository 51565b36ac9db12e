//! End-to-end tests: the real programs, real sockets, real files, and clients
//! that share no code with the server. One program with a module for each
//! file; `registration` fails if a file is missing here.

#![allow(clippy::unwrap_used)]

mod bad_disk;
mod bad_input;
mod broken_connection;
mod browser;
mod call_log;
mod dependencies;
mod deployment_docs;
mod determinism;
mod examples;
mod gpu;
mod gpu_bundle;
mod http;
mod inference_only;
mod interruption;
mod json;
mod metrics;
mod model_import;
mod models;
mod principals;
mod protocol;
mod python_package;
mod quick_start;
mod quotas;
mod registration;
mod reload;
mod security;
mod service_manager;
mod serving;
mod sessions;
mod settings;
mod source_rules;
mod stalled_transfers;
mod support;
mod tensorboard;
mod third_party_clients;
mod traces;
mod train_and_generate;
mod training_faults;
mod training_precision;
mod uploads;
