"""Reads a text in chunks for an upload."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

#: A text: itself, the path of a file, or a file that is open.
Corpus = str | os.PathLike[str] | IO[str] | IO[bytes]

#: Characters or bytes per chunk: far below the limit of a gRPC message, and large
#: enough that messages cost little.
_CHUNK = 64 * 1024

#: A text this short could be meant as the path of a file.
_MAX_PATH_CHARS = 1024


def chunks(corpus: Corpus) -> Iterator[bytes]:
    """Yields a text as UTF-8, in chunks.

    A file that is given by its path is read as UTF-8; a byte order mark is removed,
    and CR LF and CR become LF. A binary file is passed on as it is.

    Raises:
        ValueError: The file is not UTF-8, or `corpus` is the name of a file. The
            latter is checked immediately, not only by the iterator.
        OSError: The file cannot be read.
    """
    if isinstance(corpus, str):
        _check_not_a_path(corpus)
        return _text_chunks(corpus)
    if isinstance(corpus, os.PathLike):
        path = Path(corpus)
        # Fails now if the file does not exist.
        return _file_chunks(path, path.open(encoding="utf-8-sig"))
    return _open_file_chunks(corpus)


def _check_not_a_path(text: str) -> None:
    if len(text) <= _MAX_PATH_CHARS and "\n" not in text and "\0" not in text:
        try:
            is_file = bool(text) and Path(text).is_file()
        except OSError:
            return
        if is_file:
            raise ValueError(
                f"the text is the name of a file; to read the file, use pathlib.Path({text!r})"
            )


def _text_chunks(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), _CHUNK):
        yield text[start : start + _CHUNK].encode()


def _file_chunks(path: Path, file: IO[str]) -> Iterator[bytes]:
    with file:
        try:
            yield from _open_file_chunks(file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error.reason}") from error


def _open_file_chunks(file: IO[Any]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk.encode() if isinstance(chunk, str) else bytes(chunk)
