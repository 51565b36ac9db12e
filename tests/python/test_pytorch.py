"""Loads an exported model in PyTorch and compares its logits.

    python3 -m unittest discover -s tests/python

PyTorch is large, and is not installed for the tests. This test is skipped unless
CHARLSTM_TORCH_PYTHON is a Python that has torch, safetensors and numpy, and
CHARLSTM_EXPORTED is a file written by `charlstm-client models export`, from the
model imported with `models import tests/golden/checkpoints/tokens.pth --pth`:

    CHARLSTM_TORCH_PYTHON=.../bin/python CHARLSTM_EXPORTED=net.safetensors \\
        python3 -m unittest tests/python/test_pytorch.py
"""

import os
import subprocess
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Runs in the Python that has PyTorch. The vocabulary of the file is sorted, and
# so are the columns of the expected logits.
PROGRAM = """
import json, sys
from pathlib import Path
import numpy, torch
from safetensors import safe_open
from safetensors.torch import load_file
root, exported = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(root / "bench" / "reference"))
from notebook import CharLstm, one_hot
with safe_open(exported, "pt") as file:
    characters = file.metadata()["vocabulary"]
expected = json.loads((root / "tests/golden/checkpoints/expected.json").read_text())
model = CharLstm(len(characters), 8, 2, dropout=0.5)
model.load_state_dict(load_file(exported))
model.eval()
indices = numpy.array([[characters.index(one) for one in expected["prime"]]])
with torch.no_grad():
    output, _ = model.lstm(torch.from_numpy(one_hot(indices, len(characters))))
    logits = model.fc(output)[0]
difference = (logits - torch.tensor(expected["logits"])).abs().max().item()
print(f"largest difference of a logit: {difference:.2e}")
sys.exit(difference > 1e-5)
"""


class PyTorch(unittest.TestCase):
    def test_an_exported_model_gives_the_same_logits_in_pytorch(self):
        python = os.environ.get("CHARLSTM_TORCH_PYTHON")
        exported = os.environ.get("CHARLSTM_EXPORTED")
        if not (python and exported):
            self.skipTest("CHARLSTM_TORCH_PYTHON and CHARLSTM_EXPORTED are not set")
        command = [python, "-c", PROGRAM, str(ROOT), exported]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
