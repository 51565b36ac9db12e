//! A file that is written and digested in one go.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use sha2::{Digest, Sha256};

/// Takes the SHA-256 of all that is written through it.
pub(super) struct Digesting {
    inner: BufWriter<File>,
    digest: Sha256,
}

impl Digesting {
    pub(super) fn new(file: File) -> Self {
        Self {
            inner: BufWriter::with_capacity(1 << 20, file),
            digest: Sha256::new(),
        }
    }

    /// The file, with all that was written in it, and the digest.
    pub(super) fn finish(self) -> io::Result<(File, [u8; 32])> {
        let file = self
            .inner
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        Ok((file, self.digest.finalize().into()))
    }
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digest.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
