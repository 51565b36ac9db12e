#!/usr/bin/env python3
"""Writes tests/golden/checkpoints/: PyTorch checkpoints as the notebook saves
them, and PyTorch's results for them, which the Rust tests compare with.

    pip install torch==2.11.0 numpy safetensors
    python3 bench/reference/checkpoints.py

The random numbers are seeded, but may differ in another release of PyTorch:
always regenerate the checkpoints and expected.json together.
"""

import json
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

from notebook import CharLstm, one_hot

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "checkpoints"
# Not sorted, like the tokens of the notebook, which come from a set().
TOKENS = tuple("ńe\nda cb’")
HIDDEN, LAYERS = 8, 2
PROMPT = "abe’d ca\nń"
GREEDY_CHARS = 60


class Elsewhere:
    """A class that a checkpoint refers to, so that loading it requires code."""


def network(seed: int) -> CharLstm:
    """Returns the first network, trying seeds from this one upwards, whose greedy
    text is not a repetition of one character. Its weights are larger than newly
    initialised ones."""
    torch.manual_seed(seed)
    model = CharLstm(len(TOKENS), HIDDEN, LAYERS, dropout=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Values that float16 can represent exactly.
            parameter.copy_((parameter * (1.0 if "bias" in name else 6.0)).half().float())
    model.eval()
    varied = len(set(expected(model)["greedy"][20:])) > 3
    return model if varied else network(seed + 1)


def logits(model: CharLstm, indices: list, state):
    with torch.no_grad():
        inputs = torch.from_numpy(one_hot(numpy.array([indices]), len(TOKENS)))
        output, state = model.lstm(inputs, state)
        return model.fc(output)[0], state


def expected(model: CharLstm) -> dict:
    """Logits, in the order of the sorted characters, and greedy text."""
    order = [TOKENS.index(character) for character in sorted(TOKENS)]
    rows, state = logits(model, [TOKENS.index(character) for character in PROMPT], None)
    text, row = "", rows[-1]
    for _ in range(GREEDY_CHARS):
        index = int(row.argmax())
        text += TOKENS[index]
        next_rows, state = logits(model, [index], state)
        row = next_rows[-1]
    return {
        "logits": [[float(f"{value:.9g}") for value in one[order].tolist()] for one in rows],
        "greedy": text,
    }


def checkpoint(model: CharLstm, **extra) -> dict:
    return {"n_hidden": HIDDEN, "n_layers": LAYERS, "state_dict": model.state_dict(), **extra}


def shared(model: CharLstm) -> dict:
    """A state_dict whose tensors share one storage, as after training on a GPU."""
    state = model.state_dict()
    row = torch.cat([tensor.reshape(-1) for tensor in state.values()])
    start = 0
    for name, tensor in state.items():
        state[name] = row[start : start + tensor.numel()].reshape(tensor.shape)
        start += tensor.numel()
    return state


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = network(1)
    save = lambda value, name, **flags: torch.save(value, FOLDER / name, **flags)
    save(checkpoint(model, tokens=TOKENS), "tokens.pth")
    save(checkpoint(model), "plain.pth")
    save(checkpoint(model, tokens=TOKENS), "legacy.pth", _use_new_zipfile_serialization=False)
    save(checkpoint(model, tokens=TOKENS), "protocol4.pth", pickle_protocol=4)
    save(shared(model), "shared.pth")
    save({name: tensor.double() for name, tensor in model.state_dict().items()}, "double.pth")
    save_file({name: t.clone() for name, t in model.state_dict().items()}, FOLDER / "plain.safetensors")

    save({name: tensor.half() for name, tensor in model.state_dict().items()}, "half.pth")
    save({name: tensor.bfloat16() for name, tensor in model.state_dict().items()}, "bfloat16.pth")

    # Files that must be rejected.
    state = model.state_dict()
    save(checkpoint(model, net=Elsewhere()), "code.pth")
    save({**state, "lstm.weight_hh_l0": state["lstm.weight_hh_l0"].t().contiguous().t()}, "strided.pth")
    save({**state, "fc.bias": state["fc.bias"] * float("inf")}, "infinite.pth")
    save({name: tensor.long() for name, tensor in state.items()}, "integers.pth")
    save({**checkpoint(model, tokens=TOKENS), "n_hidden": HIDDEN + 1}, "contradicting.pth")

    results = {
        "about": "PyTorch's results for the files, written by bench/reference/checkpoints.py: "
        "logits after each character of the prompt, in the order of the sorted characters, and "
        "the most probable characters after it; they do not hold for bfloat16.pth, which is "
        "rounded",
        "torch": torch.__version__,
        "tokens": "".join(TOKENS),
        "prime": PROMPT,
        **expected(model),
    }
    (FOLDER / "expected.json").write_text(
        json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n"
    )
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
