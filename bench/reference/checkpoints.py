#!/usr/bin/env python3
"""Writes tests/golden/checkpoints/: files as the notebook saves them, and what
PyTorch makes of them, which Rust tests compare with.

    pip install torch==2.11.0 numpy safetensors
    python3 bench/reference/checkpoints.py

The random numbers are seeded, but another release of PyTorch may draw others:
the files and expected.json belong together.
"""

import json
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

from notebook import CharLstm, one_hot

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "checkpoints"
# As set() gives them: in no order.
TOKENS = tuple("ńe\nda cb’")
HIDDEN, LAYERS = 8, 2
PRIME = "abe’d ca\nń"
GREEDY_CHARS = 60


class Elsewhere:
    """What only a program that knows this class can load."""


def network(seed: int) -> CharLstm:
    """The first network from this seed on whose greedy text is not one
    character again and again: its weights are larger than a fresh one's."""
    torch.manual_seed(seed)
    model = CharLstm(len(TOKENS), HIDDEN, LAYERS, dropout=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Numbers that float16 holds too.
            parameter.copy_((parameter * (1.0 if "bias" in name else 6.0)).half().float())
    model.eval()
    lively = len(set(expected(model)["greedy"][20:])) > 3
    return model if lively else network(seed + 1)


def logits(model: CharLstm, indices: list, state):
    with torch.no_grad():
        inputs = torch.from_numpy(one_hot(numpy.array([indices]), len(TOKENS)))
        output, state = model.lstm(inputs, state)
        return model.fc(output)[0], state


def expected(model: CharLstm) -> dict:
    """Rows of logits in the order of the sorted characters."""
    order = [TOKENS.index(character) for character in sorted(TOKENS)]
    rows, state = logits(model, [TOKENS.index(character) for character in PRIME], None)
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


def checkpoint(model: CharLstm, **further) -> dict:
    return {"n_hidden": HIDDEN, "n_layers": LAYERS, "state_dict": model.state_dict(), **further}


def shared(model: CharLstm) -> dict:
    """A state_dict whose tensors lie in one storage, as those of a GPU do."""
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

    # What must be refused.
    state = model.state_dict()
    save(checkpoint(model, net=Elsewhere()), "code.pth")
    save({**state, "lstm.weight_hh_l0": state["lstm.weight_hh_l0"].t().contiguous().t()}, "strided.pth")
    save({**state, "fc.bias": state["fc.bias"] * float("inf")}, "infinite.pth")
    save({name: tensor.long() for name, tensor in state.items()}, "integers.pth")
    save({**checkpoint(model, tokens=TOKENS), "n_hidden": HIDDEN + 1}, "contradicting.pth")

    facts = {
        "about": "What PyTorch makes of the files, by bench/reference/checkpoints.py: logits after "
        "each character of the prime, in the order of the sorted characters, and the most probable "
        "characters after it; of bfloat16.pth the numbers are rounded, and these are not its",
        "torch": torch.__version__,
        "tokens": "".join(TOKENS),
        "prime": PRIME,
        **expected(model),
    }
    (FOLDER / "expected.json").write_text(
        json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n"
    )
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
