//! Requests over HTTP/1.1.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::Server;

/// Sends a request over HTTP/1.1, and returns status and the whole response.
pub(crate) fn send(
    server: &Server,
    head: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let mut request = format!("{head} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        request += &format!("host: {}\r\n", server.address());
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    let response = String::from_utf8_lossy(&response).into_owned();
    let status = response.split(' ').nth(1).unwrap_or_default();
    (status.parse().unwrap_or_default(), response)
}
