//! A connection to the database that loses one message.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::database::DatabaseUrl;

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// A statement, which the database never gets.
    Statement,
    /// The answer to a statement, which is carried out.
    Answer,
}

/// Forwards connections to a database. On request it loses the next statement that
/// contains a text, or its answer, and closes that connection; from then on, nothing
/// reaches the database until [`LossyLink::resume`].
pub(super) struct LossyLink {
    state: Arc<State>,
    url: DatabaseUrl,
    _task: AbortOnDropHandle<()>,
}

struct State {
    next: Mutex<Option<(Loss, Vec<u8>)>>,
    is_holding: watch::Sender<bool>,
}

impl LossyLink {
    /// Starts to forward connections to the database of a URL without a password.
    pub(super) async fn start(url: &DatabaseUrl) -> Self {
        let text = url.to_string();
        let (before, path) = text.rsplit_once('/').unwrap();
        let (user, port) = before.rsplit_once(':').unwrap();
        let target: u16 = port.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            next: Mutex::default(),
            is_holding: watch::Sender::new(false),
        });
        let accepting = accept(listener, target, Arc::clone(&state));
        Self {
            state,
            url: format!("{user}:{port}/{path}").parse().unwrap(),
            _task: AbortOnDropHandle::new(tokio::spawn(accepting)),
        }
    }

    /// The URL of the database by way of this connection.
    pub(super) fn url(&self) -> DatabaseUrl {
        self.url.clone()
    }

    /// Loses the next statement that contains a text, or its answer.
    pub(super) fn lose(&self, loss: Loss, text: &str) {
        let mut next = self.state.next.lock().unwrap();
        *next = Some((loss, text.as_bytes().to_vec()));
    }

    /// Waits until something was lost.
    pub(super) async fn wait_until_lost(&self) {
        let mut is_holding = self.state.is_holding.subscribe();
        is_holding.wait_for(|is_holding| *is_holding).await.unwrap();
    }

    /// Forwards everything again.
    pub(super) fn resume(&self) {
        self.state.is_holding.send_replace(false);
    }
}

impl State {
    /// Returns what is to be lost if these bytes are the statement.
    fn loss(&self, bytes: &[u8]) -> Option<Loss> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.take_if(|(_, text)| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_slice())
        })
        .map(|(loss, _)| loss)
    }
}

async fn accept(listener: TcpListener, target: u16, state: Arc<State>) {
    while let Ok((near, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            // Its end closes both connections.
            let _ = forward(near, target, &state).await;
        });
    }
}

async fn forward(mut near: TcpStream, target: u16, state: &State) -> io::Result<()> {
    let mut far = TcpStream::connect(("127.0.0.1", target)).await?;
    let mut is_holding = state.is_holding.subscribe();
    let (mut statement, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut loses_answer = false;
    loop {
        tokio::select! {
            read = near.read(&mut statement) => {
                let bytes = &statement[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                match state.loss(bytes) {
                    Some(Loss::Statement) => {
                        state.is_holding.send_replace(true);
                        return Ok(());
                    }
                    Some(Loss::Answer) => loses_answer = true,
                    None if !loses_answer => {
                        let resumed = is_holding.wait_for(|is_holding| !is_holding).await;
                        resumed.map_err(io::Error::other)?;
                    }
                    None => {}
                }
                far.write_all(bytes).await?;
            }
            read = far.read(&mut answer) => {
                let bytes = &answer[..read?];
                if loses_answer || bytes.is_empty() {
                    if loses_answer {
                        state.is_holding.send_replace(true);
                    }
                    return Ok(());
                }
                near.write_all(bytes).await?;
            }
        }
    }
}
