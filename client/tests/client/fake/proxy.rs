//! A proxy that breaks connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Passes bytes on to a server, and breaks connections.
pub(crate) struct CuttingProxy {
    pub(crate) address: SocketAddr,
}

impl CuttingProxy {
    /// Starts a proxy for the server at `target`. The n-th connection breaks
    /// after `cuts[n]` bytes from the server; later ones do not.
    pub(crate) fn start(target: SocketAddr, cuts: Vec<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let cuts = cuts.into_iter().chain(std::iter::repeat(usize::MAX));
            for (client, cut) in listener.incoming().zip(cuts) {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else {
                    return;
                };
                let upload = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(upload.0, upload.1, usize::MAX));
                thread::spawn(move || pass(server, client, cut));
            }
        });
        Self { address }
    }
}

/// Passes at most `limit` bytes on, then breaks both connections.
fn pass(mut from: TcpStream, mut to: TcpStream, mut limit: usize) {
    let mut buffer = [0; 64];
    while limit > 0 {
        let size = limit.min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..size]) else {
            break;
        };
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        limit -= read;
    }
    // Fails only if the other side has broken the connection already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
