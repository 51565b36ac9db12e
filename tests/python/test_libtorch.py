"""Tests of scripts/libtorch.py with small stub wheels, without network access.

    python3 -m unittest discover -s tests/python
"""

import contextlib
import hashlib
import io
import os
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import libtorch  # noqa: E402

CONTENT = {
    "torch/lib/libtorch.so": b"library",
    "torch/lib/libtorch_cuda.so": b"too large",
    "torch/include/a/b.h": b"header",
    "torch/nn/module.py": b"python",
    "torch/lib/../../outside": b"escapes",
}


def wheel_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Case(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.base = Path(temporary.name)
        self.folder = self.base / "cpu"
        self.good = wheel_bytes()
        self.wheel = libtorch.Wheel(
            "stub==1",
            "stub.whl",
            hashlib.sha256(self.good).hexdigest(),
            (("torch/lib/", "lib/"), ("torch/include/", "include/")),
            without=("libtorch_cuda*",),
        )
        self.fetched = 0
        quiet = contextlib.redirect_stdout(io.StringIO())
        quiet.__enter__()
        self.addCleanup(quiet.__exit__, None, None, None)

    def fetcher(self, *downloads):
        """A fetch function that returns the downloads in order; each is the
        bytes of a file, or an error to raise."""
        queue = list(downloads)

        def fetch(wheel, into, retry):
            self.assertEqual(retry, self.fetched > 0)
            self.fetched += 1
            download = queue.pop(0)
            if isinstance(download, BaseException):
                raise download
            (into / wheel.filename).write_bytes(download)

        return fetch

    def ensure(self, *downloads, required=("lib/libtorch.so",)):
        return libtorch.ensure(self.folder, self.fetcher(*downloads), (self.wheel,), required)

    def leftovers(self):
        return [path.name for path in self.base.iterdir() if path.name not in ("cpu", ".lock")]

    def test_only_the_required_files_are_extracted(self):
        self.assertTrue(self.ensure(self.good))
        self.assertEqual((self.folder / "lib/libtorch.so").read_bytes(), b"library")
        self.assertEqual((self.folder / "include/a/b.h").read_bytes(), b"header")
        self.assertEqual((self.folder / "build-version").read_text().strip(), libtorch.VERSION)
        self.assertFalse((self.folder / "lib/libtorch_cuda.so").exists())
        self.assertFalse((self.folder / "nn").exists())
        self.assertEqual(self.leftovers(), [])

    def test_a_second_run_fetches_nothing(self):
        self.ensure(self.good)
        self.assertFalse(self.ensure())
        self.assertEqual(self.fetched, 1)

    def test_a_truncated_wheel_is_detected_and_fetched_again(self):
        self.assertTrue(self.ensure(self.good[:-20], self.good))
        self.assertEqual(self.fetched, 2)

    def test_a_failed_download_is_attempted_three_times(self):
        with self.assertRaisesRegex(libtorch.Failure, "no network.*after 3 attempts"):
            self.ensure(*[libtorch.Failure("no network")] * 3)
        self.assertFalse(self.folder.exists())

    def test_a_modified_wheel_is_never_extracted(self):
        modified = bytearray(self.good)
        modified[40] ^= 1
        with self.assertRaisesRegex(libtorch.Failure, "is corrupt"):
            self.ensure(*[bytes(modified)] * 3)
        self.assertFalse(self.folder.exists())
        self.assertFalse((self.base / ".download" / "stub.whl").exists())

    def test_a_truncated_wheel_of_an_earlier_run_is_not_used(self):
        downloads = self.base / ".download"
        downloads.mkdir()
        (downloads / "stub.whl").write_bytes(self.good[:50])
        libtorch.ensure(
            self.folder,
            lambda wheel, into, retry: (into / wheel.filename).write_bytes(self.good),
            (self.wheel,),
            (),
        )
        self.assertTrue(libtorch.is_complete(self.folder, (self.wheel,)))

    def test_a_folder_without_its_marker_is_replaced(self):
        (self.folder / "lib").mkdir(parents=True)
        (self.folder / "lib/half.so").write_bytes(b"half")
        (self.folder / "build-version").write_text(libtorch.VERSION)
        self.assertTrue(self.ensure(self.good))
        self.assertFalse((self.folder / "lib/half.so").exists())

    def test_an_interrupted_extraction_leaves_no_folder(self):
        for stop in (KeyboardInterrupt(), OSError("disk full")):
            self.fetched = 0
            with mock.patch.object(libtorch, "extract", side_effect=stop):
                with self.assertRaises(type(stop)):
                    self.ensure(self.good)
            self.assertFalse(self.folder.exists())
            self.assertEqual(list(self.base.glob(".cpu-extracting-*")), [])
            (self.base / ".download" / "stub.whl").unlink()

    def test_leftovers_of_a_killed_run_are_removed(self):
        leftover = self.base / ".cpu-extracting-dead"
        leftover.mkdir()
        (leftover / libtorch.MARKER).write_text(libtorch.stamp((self.wheel,)))
        self.ensure(self.good)
        self.assertFalse(leftover.exists())

    def test_a_missing_library_is_an_error(self):
        with self.assertRaisesRegex(libtorch.Failure, "missing in the wheels: lib/libmissing.so"):
            self.ensure(self.good, required=("lib/libmissing.so",))
        self.assertFalse(self.folder.exists())

    def test_a_symbolic_link_is_replaced_and_its_target_kept(self):
        elsewhere = self.base / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "precious").write_text("x")
        self.folder.symlink_to(elsewhere)
        self.ensure(self.good)
        self.assertTrue((elsewhere / "precious").exists())
        self.assertFalse(self.folder.is_symlink())

    def test_nothing_is_fetched_if_the_user_has_set_a_library(self):
        for name in ("LIBTORCH", "LIBTORCH_USE_PYTORCH"):
            cleared = {"LIBTORCH": "", "LIBTORCH_USE_PYTORCH": "", name: "/opt/mine"}
            with mock.patch.dict(os.environ, cleared):
                self.assertEqual(libtorch.main(["--into", str(self.base)]), 0)
            self.assertFalse(self.folder.exists())

    def test_on_another_platform_the_error_says_what_to_do(self):
        cleared = {"LIBTORCH": "", "LIBTORCH_USE_PYTORCH": ""}
        with mock.patch.dict(os.environ, cleared):
            with mock.patch("platform.system", return_value="FreeBSD"):
                with self.assertRaisesRegex(libtorch.Failure, "set LIBTORCH"):
                    libtorch.main(["--into", str(self.base)])

    def test_each_platform_has_its_own_wheels(self):
        for system, machine, name in (
            ("Linux", "x86_64", "linux-x86_64"),
            ("Linux", "aarch64", "linux-aarch64"),
            ("Darwin", "arm64", "macos-arm64"),
        ):
            with mock.patch("platform.system", return_value=system):
                with mock.patch("platform.machine", return_value=machine):
                    self.assertEqual(libtorch.this_platform(), name)
        stamps = {libtorch.stamp(it.wheels) for it in libtorch.PLATFORMS.values()}
        self.assertEqual(len(stamps), len(libtorch.PLATFORMS))
        for platform in libtorch.PLATFORMS.values():
            for wheel in platform.wheels:
                self.assertEqual(len(wheel.sha256), 64)
                self.assertTrue(any(tag in wheel.filename for tag in platform.tags))

    @unittest.skipUnless(os.environ.get("CHARLSTM_TEST_WHEELS"), "downloads 0.6 GB")
    def test_the_wheels_of_the_untested_platforms_are_unpacked(self):
        cleared = {"LIBTORCH": "", "LIBTORCH_USE_PYTORCH": ""}
        for name in ("linux-aarch64", "macos-arm64"):
            with mock.patch.dict(os.environ, cleared):
                into = self.base / name
                self.assertEqual(libtorch.main(["--platform", name, "--into", str(into)]), 0)
            for path in libtorch.PLATFORMS[name].required:
                self.assertGreater((into / "cpu" / path).stat().st_size, 100)


if __name__ == "__main__":
    unittest.main()
