#!/usr/bin/env python3
"""Runs a command in a terminal and saves what it shows as an SVG picture.

    scripts/picture.py docs/images/train.svg -- target/release/charlstm-client train ...
    scripts/picture.py docs/images/train.svg --until "epoch 12/" -- COMMAND ...
    scripts/picture.py docs/images/train.svg --from session.txt

The command runs in a pseudo-terminal, so it shows its colours and its progress
bar. `--save FILE` saves the captured output, for `--from`. With `--until TEXT`
the picture shows the terminal at the first moment when it contained TEXT; the
command still runs to its end.

Supports the escape sequences that the client uses: colours, bold, cursor
movement, clearing. Uses the standard library only.
"""

import argparse
import os
import pty
import re
import struct
import sys
import termios
from fcntl import ioctl
from html import escape
from pathlib import Path

# Size of a character cell and of the font, in SVG user units.
WIDTH, HEIGHT, SIZE = 8.4, 18, 14
MARGIN = 16
BACKGROUND, FOREGROUND = "#1b1f24", "#d7dae0"
# Black, red, green, yellow, blue, magenta, cyan, white.
COLOURS = ["#4b5263", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d7dae0"]

SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>78]")
PLAIN = (None, False)


class Screen:
    """A terminal with a fixed number of columns and unlimited rows."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines: list[list[tuple[str, tuple]]] = [[]]
        self.row = self.column = 0
        self.style = PLAIN

    def feed(self, text: str) -> None:
        offset = 0
        while offset < len(text):
            if sequence := SEQUENCE.match(text, offset):
                self.execute(sequence[1] or "", sequence[2] or "")
                offset = sequence.end()
            else:
                self.put(text[offset])
                offset += 1

    def put(self, character: str) -> None:
        if character == "\n":
            self.move_to(self.row + 1, self.column)
        elif character == "\r":
            self.column = 0
        elif character == "\b":
            self.column = max(0, self.column - 1)
        elif character >= " ":
            if self.column >= self.columns:
                self.move_to(self.row + 1, 0)
            line = self.lines[self.row]
            line.extend([(" ", PLAIN)] * (self.column + 1 - len(line)))
            line[self.column] = (character, self.style)
            self.column += 1

    def move_to(self, row: int, column: int) -> None:
        self.row, self.column = max(0, row), max(0, column)
        while len(self.lines) <= self.row:
            self.lines.append([])

    def execute(self, parameters: str, command: str) -> None:
        numbers = [int(number) for number in re.findall(r"\d+", parameters)]
        count = (numbers or [1])[0] or 1
        if command == "m":
            self.set_style(numbers or [0])
        elif command in "AB":
            self.move_to(self.row + (count if command == "B" else -count), self.column)
        elif command in "CD":
            self.move_to(self.row, self.column + (count if command == "C" else -count))
        elif command == "G":
            self.column = count - 1
        elif command == "K":
            mode = (numbers or [0])[0]
            line = self.lines[self.row]
            if mode == 0:
                del line[self.column :]
            elif mode == 2:
                line.clear()
        elif command == "J":
            del self.lines[self.row][self.column :]
            del self.lines[self.row + 1 :]

    def set_style(self, numbers: list[int]) -> None:
        colour, bold = self.style
        for number in numbers:
            if number == 0:
                colour, bold = PLAIN
            elif number in (1, 22):
                bold = number == 1
            elif 30 <= number <= 37:
                colour = COLOURS[number - 30]
            elif 90 <= number <= 97:
                colour = COLOURS[number - 90]
            elif number == 39:
                colour = None
        self.style = (colour, bold)

    def text(self) -> str:
        return "\n".join("".join(character for character, _ in line) for line in self.lines)


def runs(line: list) -> list[tuple[int, str, tuple]]:
    """Splits a line into runs of one style: start column, text, style."""
    result: list[tuple[int, str, tuple]] = []
    for column, (character, style) in enumerate(line):
        if result and result[-1][2] == style:
            start, text, _ = result[-1]
            result[-1] = (start, text + character, style)
        else:
            result.append((column, character, style))
    return result


def svg(screen: Screen, title: str, rows: int) -> str:
    lines = screen.lines[:]
    while lines and not any(character.strip() for character, _ in lines[-1]):
        lines.pop()
    lines = lines[-rows:]
    bar = 34
    width = round(screen.columns * WIDTH + 2 * MARGIN)
    height = bar + len(lines) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{SIZE}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
    ]
    for index, fill in enumerate(("#e06c75", "#e5c07b", "#98c379")):
        parts.append(f'<circle cx="{20 + 20 * index}" cy="18" r="6" fill="{fill}"/>')
    parts.append(
        f'<text x="{width / 2:g}" y="23" text-anchor="middle" fill="#8b929e">{escape(title)}</text>'
    )
    for row, line in enumerate(lines):
        y = bar + MARGIN + row * HEIGHT + SIZE
        for column, text, (colour, bold) in runs(line):
            if not text.strip():
                continue
            weight = ' font-weight="bold"' if bold else ""
            # The explicit length keeps columns aligned in any font.
            parts.append(
                f'<text x="{MARGIN + column * WIDTH:g}" y="{y}" xml:space="preserve"'
                f' textLength="{len(text) * WIDTH:g}" lengthAdjust="spacingAndGlyphs"'
                f' fill="{colour or FOREGROUND}"{weight}>{escape(text)}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def capture(command: list[str], columns: int, rows: int) -> tuple[list[bytes], int]:
    """Runs the command in a pseudo-terminal; returns its output, in the pieces
    that were read, and its exit code."""
    process, terminal = pty.fork()
    if process == 0:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        ioctl(0, termios.TIOCSWINSZ, size)
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("NO_COLOR", None)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}")
            os._exit(127)
    pieces = []
    try:
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
    except OSError:
        pass  # On Linux, reading fails (EIO) after the other side has closed.
    return pieces, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def frames(captured: str) -> list[str]:
    """Splits the output before each carriage return; at these points the screen
    is completely drawn."""
    return re.split(r"(?=\r(?!\n))", captured)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    parser.add_argument("--from", dest="source", type=Path, help="a captured session")
    parser.add_argument("--save", type=Path, help="save the captured output to this file")
    parser.add_argument("--until", help="show the first moment at which this text was shown")
    parser.add_argument("--title", help="default: the command")
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--rows", type=int, default=30, help="lines to show, the last ones")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments, command = parser.parse_args(given[:end]), given[end + 1 :]
    if bool(arguments.source) == bool(command):
        parser.error("give either --from FILE or a command after --")

    code = 0
    if arguments.source:
        captured = arguments.source.read_bytes()
    else:
        pieces, code = capture(command, arguments.columns, arguments.rows)
        captured = b"".join(pieces)
    if code != 0:
        print(f"the command failed with exit code {code}", file=sys.stderr)
        return 1
    if arguments.save:
        arguments.save.write_bytes(captured)
    screen = Screen(arguments.columns)
    found = not arguments.until
    for frame in frames(captured.decode("utf-8", errors="replace")):
        screen.feed(frame)
        if arguments.until and arguments.until in screen.text():
            found = True
            break
    if not found:
        print(f"{arguments.until!r} never appeared on the terminal", file=sys.stderr)
        return 1
    title = arguments.title or (" ".join([Path(command[0]).name, *command[1:]]) if command else "")
    arguments.picture.write_text(svg(screen, title, arguments.rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
