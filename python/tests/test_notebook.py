"""The notebook does its whole job against a server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: Longest duration of a cell, ample for a slow machine.
CELL_SECONDS = 120


@pytest.mark.skipif(
    importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None,
    reason="needs nbclient and ipykernel",
)
def test_the_notebook_runs(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            # The same job with a network that trains within seconds.
            cell.source = "hidden_size = 32\nepochs = 2"
    monkeypatch.setenv("CHARLSTM_ADDR", server.address)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1] / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    resources = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=CELL_SECONDS, resources=resources).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "SUCCEEDED finibus@1 from epoch 2" in printed
    assert "the loaded model generates the same text" in printed
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert "image/png" in kinds
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    # Only the progress bar.
    lines = errors.replace("\r", "\n").split("\n")
    assert [it for it in lines if it.strip() and not it.startswith("training:")] == []
