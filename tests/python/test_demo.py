"""Tests that scripts/demo.py leaves nothing behind when its terminal is closed.
The programs are stubs: the server waits, and so does the client."""

import os
import pty
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"

SERVER = """#!/bin/sh
echo $$ > "$CHARLSTM_STUB/server"
echo "listening on http://127.0.0.1:1"
exec sleep 600
"""
CLIENT = """#!/bin/sh
echo $$ > "$CHARLSTM_STUB/client"
exec sleep 600
"""

# Far longer than anything here takes.
PATIENCE_SECONDS = 60


def wait_until(condition) -> bool:
    for _ in range(PATIENCE_SECONDS * 20):
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class DemoTest(unittest.TestCase):
    def test_a_closed_terminal_ends_the_server_and_removes_the_folder(self):
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            release, temporary = base / "release", base / "tmp"
            (release / "examples").mkdir(parents=True)
            temporary.mkdir()
            for program, script in (
                ("charlstm-server", SERVER),
                ("charlstm-client", CLIENT),
                ("examples/liber_primus", "#!/bin/sh\n"),
            ):
                (release / program).write_text(script)
                (release / program).chmod(0o755)
            variables = {
                **os.environ,
                "CARGO_TARGET_DIR": str(base),
                "CHARLSTM_STUB": str(base),
                "TMPDIR": str(temporary),
            }
            process, terminal = pty.fork()
            if process == 0:
                os.execve(sys.executable, [sys.executable, str(DEMO)], variables)
            self.assertTrue(wait_until((base / "client").exists))
            server = int((base / "server").read_text())
            self.assertTrue(is_alive(server))
            self.assertEqual(len(list(temporary.iterdir())), 1)
            # The kernel sends SIGHUP to the session of the terminal.
            os.close(terminal)
            _, status = os.waitpid(process, 0)
            self.assertEqual(os.waitstatus_to_exitcode(status), 128 + signal.SIGHUP)
            self.assertTrue(wait_until(lambda: not is_alive(server)))
            self.assertEqual(list(temporary.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
