#!/usr/bin/env python3
"""Checks the files in deploy/.

- The systemd unit: `systemd-analyze security --offline=true` rates it below 2.5.
- The alert rules: `promtool check rules` and `promtool test rules`.
- The files for Kubernetes: they match its schemas, and the configuration has no unknown
  setting. compose.yaml names settings that exist, and nginx accepts nginx.conf.
- The dashboard: every query returns something on a Prometheus that scrapes a
  running server with some load.

A tool that is not installed skips its check, unless CHARLSTM_REQUIRE_ALL is set.
The programs are those in target/debug, or in the folder CHARLSTM_BIN.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from free_port import free_port

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(os.environ.get("CHARLSTM_BIN", ROOT / "target/debug"))
UNIT = ROOT / "deploy/systemd/charlstm-server.service"
RULES = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/charlstm.json"
KUBERNETES = ROOT / "deploy/kubernetes"
COMPOSE = ROOT / "deploy/compose.yaml"
NGINX = ROOT / "deploy/nginx.conf"
# The oldest version of Kubernetes that is maintained.
KUBERNETES_VERSION = "1.34"
MAX_EXPOSURE = 2.5
# Reached only if something hangs.
PATIENCE = 120


def tool(name: str):
    """The path of a program, or None after a message."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CHARLSTM_REQUIRE_ALL"):
            sys.exit(f"deploy: {name} is not installed")
        print(f"deploy: skipped: {name} is not installed")
    return path


def check_unit() -> None:
    analyze = tool("systemd-analyze")
    if analyze is None:
        return
    command = [analyze, "security", "--offline=true", "--no-pager", str(UNIT)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
    if exposure is None:
        sys.exit(f"deploy: systemd-analyze did not rate the unit:\n{output}")
    if float(exposure[1]) >= MAX_EXPOSURE:
        sys.exit(f"deploy: the unit has exposure {exposure[1]}, at most {MAX_EXPOSURE} is allowed")
    print(f"deploy: systemd unit: exposure {exposure[1]}")


def check_rules() -> None:
    promtool = tool("promtool")
    if promtool is None:
        return
    for command in (["check", "rules", "charlstm.rules.yml"], ["test", "rules", "charlstm.rules.test.yml"]):
        run = subprocess.run([promtool, *command], cwd=RULES, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            sys.exit(f"deploy: promtool {' '.join(command)} failed:\n{run.stdout}{run.stderr}")
    print("deploy: alert rules: passed")


def check_kubernetes() -> None:
    try:
        import kubernetes_validate
        import yaml
    except ImportError:
        if os.environ.get("CHARLSTM_REQUIRE_ALL"):
            sys.exit("deploy: kubernetes-validate is not installed (make python)")
        print("deploy: skipped: kubernetes-validate is not installed")
        return
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
            try:
                kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"deploy: {name}: {error}")
    flags = subprocess.run([BIN / "charlstm-server", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z0-9-]+", flags))
    settings = re.findall(r"^([a-z-]+) =", (KUBERNETES / "server.toml").read_text(), re.MULTILINE)
    replica = yaml.safe_load(COMPOSE.read_text())["x-replica"]["command"]
    for flag in [f"--{setting}" for setting in settings] + [part.split("=")[0] for part in replica]:
        if flag not in known:
            sys.exit(f"deploy: {flag} is not a setting of charlstm-server")
    print(f"deploy: Kubernetes {KUBERNETES_VERSION} and compose: valid")


def check_nginx() -> None:
    nginx = tool("nginx")
    if nginx is None:
        return
    # The names of the replicas exist in compose.yaml only.
    text = re.sub(r"replica-\d:", "127.0.0.1:", NGINX.read_text())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nginx.conf"
        path.write_text(f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n{text}")
        run = subprocess.run([nginx, "-t", "-c", path], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            sys.exit(f"deploy: nginx rejects nginx.conf:\n{run.stderr}")
    print("deploy: nginx.conf: accepted")


def query(port: int, expression: str):
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)["data"]["result"]


def until(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"deploy: {what}: nothing after {PATIENCE} s")


def expressions():
    """The queries of the dashboard, with its variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield panel["title"], text


class Server:
    """A server with a principal, whose metrics Prometheus scrapes."""

    def __init__(self, folder: Path, metrics_port: int):
        self.token = folder / "token"
        token = secrets.token_hex(16)
        self.write(self.token, token)
        principals = folder / "principals.toml"
        digest = hashlib.sha256(token.encode()).hexdigest()
        self.write(
            principals,
            f'[[principal]]\nname = "ops"\ntoken_sha256 = "{digest}"\nroles = ["admin"]\n'
            "max_streams = 9\nmax_sessions = 9\nmax_trainings = 9\n",
        )
        command = [
            str(BIN / "charlstm-server"), "--listen", "127.0.0.1:0", "--device", "cpu",
            "--data-dir", str(folder / "data"), "--principals", str(principals),
            "--metrics-listen", f"127.0.0.1:{metrics_port}",
        ]
        self.log = open(folder / "server.log", "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            sys.exit("deploy: the server did not start:\n" + (folder / "server.log").read_text())
        self.url = line.split()[-1]
        self.folder = folder

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text)

    def client(self, *arguments: str) -> None:
        command = [
            str(BIN / "charlstm-client"), "--addr", self.url, "--token-file", str(self.token),
            *arguments,
        ]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def load(self) -> None:
        text = self.folder / "text.txt"
        text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
        self.client(
            "train", "--text", str(text), "--model", "fox", "--hidden-size", "16",
            "--batch-size", "4", "--sequence-length", "16", "--epochs", "1",
        )
        self.generate()

    def generate(self) -> None:
        self.client("generate", "--prime", "the ", "--length", "200", "--session", "s")


def check_dashboard() -> None:
    prometheus = tool("prometheus")
    if prometheus is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port, metrics_port = free_port(), free_port()
        server = Server(folder, metrics_port)
        configuration = folder / "prometheus.yml"
        configuration.write_text(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n"
            f"rule_files:\n  - {RULES / 'charlstm.rules.yml'}\n"
            "scrape_configs:\n  - job_name: charlstm\n    static_configs:\n"
            f"      - targets: ['127.0.0.1:{metrics_port}']\n"
        )
        command = [
            prometheus, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]
        scraper = subprocess.Popen(command)
        try:
            until(lambda: query(port, 'up{job="charlstm"} == 1'), "the server is not scraped")
            server.load()
            checked = 0
            for title, expression in expressions():
                def answers() -> bool:
                    # A rate needs events between two scrapes.
                    server.generate()
                    return any(sample["value"][1] != "NaN" for sample in query(port, expression))

                # No call fails here, so this one may have no result.
                if 'grpc_code!="OK"' in expression:
                    query(port, expression)
                else:
                    until(answers, f"panel {title!r}: {expression}")
                checked += 1
            print(f"deploy: dashboard: {checked} queries answered by a running server")
            server.process.terminate()
            server.process.wait(timeout=PATIENCE)
            firing = 'ALERTS{alertname="CharlstmDown"}'
            until(lambda: query(port, firing), "the alert about a stopped server")
            print("deploy: alert CharlstmDown is active after the server was stopped")
        finally:
            for process in (scraper, server.process):
                process.terminate()
                process.wait(timeout=PATIENCE)


def main() -> None:
    check_unit()
    check_rules()
    check_kubernetes()
    check_nginx()
    check_dashboard()


if __name__ == "__main__":
    main()
