//! The settings of HTTP on the port of gRPC.

use clap::{ArgAction, Args};

use super::value::{Checked, on_or_off};
use crate::http::{allowed_host, cors_origin};

/// What is served besides gRPC, and to whom.
// The doc comments of the fields are the help texts.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Whether the same port also serves HTTP: the web page, an API in the
    /// format of OpenAI's completions, gRPC-Web and /healthz: on or off
    #[arg(
        long = "http",
        env = "CHARLSTM_HTTP",
        value_name = "on|off",
        action = ArgAction::Set,
        default_value = "on",
        value_parser = Checked(on_or_off)
    )]
    pub is_on: bool,

    /// Names, separated by commas, that HTTP requests may have as their Host
    /// besides IP addresses, localhost and the names in the certificate; may be
    /// given several times
    #[arg(long = "allowed-host", env = "CHARLSTM_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', value_parser = Checked(allowed_host))]
    pub allowed_hosts: Vec<String>,

    /// Origins, separated by commas, such as `https://app.example.com`, whose web
    /// pages may call this server; may be given several times
    #[arg(long = "cors-origin", env = "CHARLSTM_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = Checked(cors_origin))]
    pub cors_origins: Vec<String>,
}
