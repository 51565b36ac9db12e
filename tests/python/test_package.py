"""Tests of scripts/package.py with stub programs and libraries. `make try-package`
runs the real archive in a root folder of its own."""

import os
import re
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import package  # noqa: E402

# Answers `--version` and `completions SHELL`.
PROGRAM = """#!/bin/sh
case "$1" in
    --version) echo "charlstm-client 1.2.3" ;;
    completions) echo "script for $2" ;;
esac
"""


class PackageTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.base = Path(temporary.name)
        self.programs, self.libtorch = self.base / "release", self.base / "libtorch"
        self.manual, self.into = self.base / "man", self.base / "prefix"
        for folder in (self.programs, self.libtorch / "lib" / "folder", self.manual):
            folder.mkdir(parents=True)
        for name in package.PROGRAMS:
            (self.programs / name).write_text(PROGRAM)
            (self.programs / name).chmod(0o755)
        for name in ("libtorch.so", "libgomp.so.1", "libother.a"):
            (self.libtorch / "lib" / name).write_text("library")
        (self.manual / "charlstm-client.1").write_text("page")

    def sources(self):
        return self.programs, self.libtorch, self.manual

    def test_programs_libraries_pages_and_completions_are_installed(self):
        package.install(self.into, *self.sources())
        for name, mode in (
            ("bin/charlstm-server", 0o755),
            ("bin/charlstm-client", 0o755),
            ("lib/charlstm/libtorch.so", 0o644),
            ("lib/charlstm/libgomp.so.1", 0o644),
            ("share/man/man1/charlstm-client.1", 0o644),
            ("share/doc/charlstm/LICENSE-MIT", 0o644),
            ("share/bash-completion/completions/charlstm-client", 0o644),
        ):
            self.assertEqual((self.into / name).stat().st_mode & 0o777, mode, name)
        self.assertFalse((self.into / "lib/charlstm/libother.a").exists())
        script = self.into / "share/zsh/site-functions/_charlstm-client"
        self.assertEqual(script.read_text(), "script for zsh\n")

    def test_the_links_of_the_installed_pages_lead_to_installed_files(self):
        package.install(self.into, *self.sources())
        folder = self.into / "share/doc/charlstm"
        pages = [folder / "README.md", *folder.glob("docs/*.md")]
        self.assertGreater(len(pages), 10)
        for page in pages:
            links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
            for link in links:
                if "://" not in link:
                    self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")

    def test_a_second_installation_replaces_files_and_leaves_nothing_else(self):
        count = package.install(self.into, *self.sources())
        self.assertEqual(package.install(self.into, *self.sources()), count)
        installed = [path for path in self.into.rglob("*") if path.is_file()]
        self.assertEqual(len(installed), count)

    def test_a_missing_part_is_an_error_that_says_what_makes_it(self):
        (self.programs / "charlstm-server").unlink()
        with self.assertRaisesRegex(package.Failure, "cargo build --release"):
            package.install(self.into, *self.sources())
        (self.programs / "charlstm-server").write_text(PROGRAM)
        (self.manual / "charlstm-client.1").unlink()
        with self.assertRaisesRegex(package.Failure, "make man"):
            package.install(self.into, *self.sources())

    def test_an_archive_has_one_folder_named_after_version_and_platform(self):
        # The stub programs have no debug information.
        strip, package.strip = package.strip, lambda folder: None
        self.addCleanup(setattr, package, "strip", strip)
        path = package.archive(self.into, *self.sources())
        machine = os.uname().machine
        self.assertRegex(path.name, rf"^charlstm-1\.2\.3-\w+-{machine}\.tar\.gz$")
        with tarfile.open(path) as tar:
            names = tar.getnames()
            self.assertEqual({name.split("/")[0] for name in names}, {names[0]})
            self.assertIn(f"{names[0]}/bin/charlstm-server", names)
            self.assertTrue(all(member.uid == 0 for member in tar))
        self.assertEqual(list(self.into.iterdir()), [path])


if __name__ == "__main__":
    unittest.main()
