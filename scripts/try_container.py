#!/usr/bin/env python3
"""Tries the image of deploy/Dockerfile without a container engine.

Runs the steps of the last stage of the Dockerfile in namespaces of their own: its
RUN and COPY steps on a copy-on-write layer over this system's root (on Debian
bookworm, which the image is based on), and then its ENTRYPOINT as its USER, without
capabilities, with a read-only root file system, an empty /tmp, a volume for the data,
and a configuration that is mounted read-only. Requires that the health check
succeeds, that nothing but the volume and /tmp can be written to, and that SIGTERM
stops the server.

The first stage compiles: `make try-container` does that in the checkout. The programs
are those in target/release, or in the folder CHARLSTM_BIN. Needs root, or user
namespaces that may mount overlays.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BIN = Path(os.environ.get("CHARLSTM_BIN", ROOT / "target" / "release")).resolve()

# Timeout in seconds for a command, and for the server to become healthy.
TIMEOUT = 60

LISTEN = "127.0.0.1:50051"


class Image:
    """The last stage of a Dockerfile."""

    def __init__(self, text):
        text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
        text = text.replace("\\\n", " ")
        stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
        self.steps, self.environment, self.user = [], {}, "root"
        self.entrypoint, self.command, self.health, self.volume = [], [], [], None
        for line in filter(None, map(str.strip, stages[-1].splitlines()[1:])):
            instruction, arguments = line.split(None, 1)
            if instruction in ("RUN", "COPY"):
                self.steps.append((instruction, arguments))
            elif instruction == "ENV":
                self.environment.update(one.split("=", 1) for one in shlex.split(arguments))
            elif instruction == "USER":
                self.user = arguments
            elif instruction == "VOLUME":
                self.volume = arguments
            elif instruction == "ENTRYPOINT":
                self.entrypoint = json.loads(arguments)
            elif instruction == "CMD":
                self.command = json.loads(arguments)
            elif instruction == "HEALTHCHECK":
                self.health = json.loads(arguments.split("CMD", 1)[1])
            elif instruction not in ("EXPOSE", "STOPSIGNAL"):
                raise SystemExit(f"container: unknown instruction {instruction} in {DOCKERFILE}")


def sources(path):
    """Returns the files of this checkout that a path of the build stage means."""
    path = path.removeprefix("/src/")
    if path.startswith("target/release/"):
        return [BIN / path.removeprefix("target/release/")]
    found = sorted(ROOT.glob(path))
    if not found:
        raise SystemExit(f"container: {path} does not exist; see `make try-container`")
    return found


def copy(arguments, root):
    """Carries out a COPY step."""
    paths = [one for one in shlex.split(arguments) if not one.startswith("--")]
    target = root / paths.pop().lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        for file in sources(path):
            shutil.copy2(file, target / file.name)


def run(*command, **options):
    return subprocess.run(command, check=True, **options)


def start(root, image, command, **options):
    """Starts a command as the image's user, as a container engine does."""
    # `docker run --cap-drop ALL --security-opt no-new-privileges`.
    confined = [
        "chroot", str(root), "setpriv", f"--reuid={image.user}", f"--regid={image.user}",
        "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
    ]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", **image.environment}
    return subprocess.Popen([*confined, *command], env=environment, cwd="/", **options)


def build(image, folder):
    """Runs the steps of the image; returns its root folder."""
    # The upper layer of an overlay cannot be on an overlay itself.
    run("mount", "-t", "tmpfs", "none", str(folder))
    upper, work, root = folder / "upper", folder / "work", folder / "root"
    for one in (upper, work, root):
        one.mkdir()
    run("mount", "-t", "overlay", "overlay", "-o",
        f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
    for instruction, arguments in image.steps:
        print(f"container: {instruction} {arguments[:70]}", flush=True)
        if instruction == "RUN":
            run("chroot", str(root), "sh", "-ec", arguments)
        else:
            copy(arguments, root)
    return root


def mount(image, folder, root):
    """Mounts what a container has: a configuration, a volume for the data, and an
    empty /tmp; everything else is read-only. Returns the user id of the volume."""
    configuration = root / "etc" / "charlstm"
    configuration.mkdir()
    (configuration / "server.toml").write_text(f'listen = "{LISTEN}"\n')
    volume = root / image.volume.lstrip("/")
    owner = volume.stat()
    data = folder / "data"
    data.mkdir(mode=0o700)
    os.chown(data, owner.st_uid, owner.st_gid)
    run("mount", "-t", "proc", "proc", str(root / "proc"))
    run("mount", "--rbind", "/dev", str(root / "dev"))
    run("mount", "-o", "remount,ro", "overlay", str(root))
    run("mount", "-t", "tmpfs", "none", str(root / "tmp"))
    run("mount", "--bind", str(data), str(volume))
    return owner.st_uid


def try_image(folder):
    """Runs all steps, and checks the server; called in namespaces of its own."""
    image = Image(DOCKERFILE.read_text())
    root = build(image, folder)
    user = mount(image, folder, root)
    run("ip", "link", "set", "lo", "up")

    def exit_code(command):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return start(root, image, command, **quiet).wait(timeout=TIMEOUT)

    server = start(root, image, [*image.entrypoint, *image.command],
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until = time.monotonic() + TIMEOUT
        while exit_code(image.health) != 0:
            if server.poll() is not None or time.monotonic() > until:
                server.kill()
                raise SystemExit("container: the health check fails:\n" + server.stdout.read())
            time.sleep(0.5)
        print(f"container: healthy: {' '.join(image.health)}")
        status = (root / "proc" / str(server.pid) / "status").read_text()
        ids = set(re.search(r"^Uid:(.*)$", status, re.MULTILINE).group(1).split())
        capabilities = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE).group(1)
        require(ids == {str(user)} and user != 0, f"the user ids are {ids}")
        require(int(capabilities, 16) == 0, f"it has the capabilities {capabilities}")
        print(f"container: runs as user {user} without capabilities")
        for path in ("/usr/local/bin", "/etc/charlstm", "/"):
            require(exit_code(["touch", f"{path}/x"]) != 0, f"{path} can be written to")
        for path in ("/tmp", image.volume):
            require(exit_code(["touch", f"{path}/x"]) == 0, f"{path} cannot be written to")
        print(f"container: only /tmp and {image.volume} can be written to")
        server.terminate()
        stopped = server.wait(timeout=TIMEOUT)
        require(stopped == 0, f"SIGTERM: exit code {stopped}")
        print("container: SIGTERM stops it with exit code 0")
    finally:
        server.kill()
        server.wait()


def require(condition, text):
    if not condition:
        raise SystemExit(f"container: {text}")


def main():
    if len(sys.argv) > 1:
        return try_image(Path(sys.argv[1]))
    for program in ("charlstm-server", "charlstm-client"):
        require((BIN / program).exists(), f"{BIN / program} does not exist")
    with tempfile.TemporaryDirectory(prefix="charlstm-container-") as folder:
        namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            # The image has a user of its own, so the map needs more than one.
            namespaces += ["--map-root-user", "--map-auto"]
        return subprocess.run(
            [*namespaces, sys.executable, __file__, folder], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
