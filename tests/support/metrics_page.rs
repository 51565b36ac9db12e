//! The metrics page of a running server.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::Server;

/// Sends an HTTP request as Prometheus does; returns the head and the body of
/// the response.
pub(crate) fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The address of the metrics in the log of the server.
pub(crate) fn metrics_address(server: &Server) -> String {
    let log = server.log();
    let line = log
        .lines()
        .find(|line| line.contains("serving metrics"))
        .unwrap();
    let (_, rest) = line.split_once("address=").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

/// The value of the sample `name`, which includes the labels.
pub(crate) fn value(page: &str, name: &str) -> f64 {
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("{name} is not in\n{page}"))
}
