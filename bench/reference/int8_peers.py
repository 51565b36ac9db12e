#!/usr/bin/env python3
"""Measures one decode step with sampling in the int8 arithmetic of PyTorch
(`quantize_dynamic`, traced by `torch.jit`) and of ONNX Runtime
(`DynamicQuantizeLSTM`), and how much a row's log-probabilities depend on the
other rows of its batch.

    int8_peers.py MODEL.safetensors [--seconds 2 --threads 2]

The model is one that `charlstm-client models export` has written. Prints one JSON
object per peer and batch size.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from notebook import CharLstm, one_hot

ROWS = (1, 64)
INVARIANCE_STEPS = 200


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="duration of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    model = load(options.model)
    peers = [("PyTorch int8, jit", options.threads, TorchStep(model))]
    with tempfile.TemporaryDirectory(prefix="charlstm-bench-") as folder:
        file = quantised_graph(model, Path(folder))
        peers += [("ONNX Runtime int8", threads, OnnxStep(model, file, threads))
                  for threads in sorted({1, options.threads})]
        for name, threads, step in peers:
            for rows in ROWS:
                speed = measure(step, rows, options)
                report(peer=name, threads=threads, rows=rows, chars_per_second=speed)
            report(peer=name, threads=threads,
                   log_probability_change=change(step, model.fc.out_features))


def load(file: Path) -> CharLstm:
    """Reads a model in the safetensors format: the length of a JSON header, the header, and
    the values."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    weights = {}
    for name, tensor in header.items():
        if name.startswith(("lstm.", "fc.")):
            begin, end = tensor["data_offsets"]
            values = numpy.frombuffer(data[start + begin:start + end], dtype="<f4")
            weights[name] = torch.from_numpy(values.reshape(tensor["shape"]).copy())
    tokens, hidden = weights["fc.weight"].shape
    layers = sum(name.startswith("lstm.weight_hh_l") for name in weights)
    model = CharLstm(tokens, hidden, layers, 0.0)
    model.load_state_dict(weights)
    return model.eval()


def report(**measured) -> None:
    print(json.dumps(measured), flush=True)


def measure(step, rows: int, options) -> float:
    """Characters per second of decode steps with sampling from the top k."""
    generator = numpy.random.default_rng(1)
    tokens, state = numpy.zeros(rows, dtype=numpy.int64), step.zeros(rows)
    for _ in range(20):
        logits, state = step(tokens, state)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < options.seconds:
        logits, state = step(tokens, state)
        tokens = sample(logits, options.top_k, generator)
        steps += 1
    return rows * steps / (time.perf_counter() - begin)


def sample(logits: numpy.ndarray, top_k: int, generator) -> numpy.ndarray:
    """Draws one token id for each row by the Gumbel trick, which needs no loop."""
    candidates = numpy.argpartition(logits, -top_k, axis=1)[:, -top_k:]
    scores = numpy.take_along_axis(logits, candidates, axis=1)
    chosen = numpy.argmax(scores + generator.gumbel(size=scores.shape), axis=1)
    return candidates[numpy.arange(len(candidates)), chosen]


def change(step, tokens: int) -> float:
    """Largest change of a log-probability of a sequence that runs among 63 others
    instead of among 63 different ones, in nats."""
    generator = numpy.random.default_rng(2)
    given = generator.integers(tokens, size=(INVARIANCE_STEPS, 64))
    found = []
    for others in (given, generator.integers(tokens, size=given.shape)):
        rows, state = [], step.zeros(64)
        for number, row in enumerate(others):
            row[0] = given[number, 0]
            logits, state = step(row, state)
            row = logits[0].astype(numpy.float64)
            rows.append(row - numpy.logaddexp.reduce(row))
        found.append(numpy.array(rows))
    return float(numpy.abs(found[0] - found[1]).max())


class TorchStep:
    """`quantize_dynamic` of the LSTM and the linear layer, traced."""

    def __init__(self, model: CharLstm):
        self.model, self.tokens = model, model.fc.out_features
        torch.backends.quantized.engine = "x86"
        quantised = torch.ao.quantization.quantize_dynamic(
            model, {torch.nn.LSTM, torch.nn.Linear}, dtype=torch.qint8)
        self.traced = {}
        self.quantised = quantised

    def zeros(self, rows: int):
        shape = (self.model.lstm.num_layers, rows, self.model.hidden)
        state = (torch.zeros(shape), torch.zeros(shape))
        inputs = torch.zeros(rows, 1, self.tokens)
        with torch.no_grad():
            self.traced[rows] = torch.jit.trace(self.quantised, (inputs, state))
        return state

    def __call__(self, tokens: numpy.ndarray, state):
        inputs = torch.from_numpy(one_hot(tokens[:, None], self.tokens))
        with torch.no_grad():
            output, state = self.traced[len(tokens)](inputs, state)
        return output.numpy(), state


class OnnxStep:
    """One step of the quantised graph."""

    def __init__(self, model: CharLstm, file: Path, threads: int):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(file), settings, providers=["CPUExecutionProvider"])
        self.layers, self.hidden = model.lstm.num_layers, model.hidden
        self.tokens = model.fc.out_features

    def zeros(self, rows: int):
        return [numpy.zeros((1, rows, self.hidden), dtype=numpy.float32)
                for _ in range(2 * self.layers)]

    def __call__(self, tokens: numpy.ndarray, state):
        feeds = {"tokens": one_hot(tokens[None, :], self.tokens)}
        for layer in range(self.layers):
            feeds[f"h{layer}"], feeds[f"c{layer}"] = state[2 * layer], state[2 * layer + 1]
        logits, *state = self.session.run(None, feeds)
        return logits, state


def quantised_graph(model: CharLstm, folder: Path) -> Path:
    """Writes the graph of one step with int8 weights; returns its file."""
    hidden, layers, tokens = model.hidden, model.lstm.num_layers, model.fc.out_features
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    initializers, nodes = [], []

    def constant(name: str, values: numpy.ndarray) -> str:
        array = numpy.ascontiguousarray(values, dtype=numpy.float32)
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def reordered(values: numpy.ndarray) -> numpy.ndarray:
        """PyTorch's order of gates (i, f, c, o) -> that of ONNX (i, o, f, c)."""
        i, f, c, o = numpy.split(values, 4)
        return numpy.concatenate([i, o, f, c])

    inputs = [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [1, "rows", tokens])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", tokens])]
    last = "tokens"
    for layer in range(layers):
        w = constant(f"W{layer}", reordered(weights[f"lstm.weight_ih_l{layer}"])[None])
        r = constant(f"R{layer}", reordered(weights[f"lstm.weight_hh_l{layer}"])[None])
        biases = [reordered(weights[f"lstm.bias_{kind}_l{layer}"]) for kind in ("ih", "hh")]
        b = constant(f"B{layer}", numpy.concatenate(biases)[None])
        names = [f"Y{layer}", f"h{layer}_next", f"c{layer}_next"]
        nodes.append(helper.make_node(
            "LSTM", [last, w, r, b, "", f"h{layer}", f"c{layer}"], names,
            hidden_size=hidden))
        for kind in ("h", "c"):
            shape = [1, "rows", hidden]
            inputs.append(helper.make_tensor_value_info(
                f"{kind}{layer}", TensorProto.FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(
                f"{kind}{layer}_next", TensorProto.FLOAT, shape))
        # [1, 1, rows, hidden] -> [1, rows, hidden]
        axes = numpy_helper.from_array(numpy.array([1], dtype=numpy.int64), f"axes{layer}")
        initializers.append(axes)
        nodes.append(helper.make_node("Squeeze", [names[0], f"axes{layer}"], [f"X{layer + 1}"]))
        last = f"X{layer + 1}"
    first = numpy_helper.from_array(numpy.array([0], dtype=numpy.int64), "first")
    initializers.append(first)
    nodes.append(helper.make_node("Squeeze", [last, "first"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", constant("FC", weights["fc.weight"].T)],
                                  ["product"]))
    nodes.append(helper.make_node("Add", ["product", constant("FCB", weights["fc.bias"])],
                                  ["logits"]))
    graph = helper.make_graph(nodes, "step", inputs, outputs, initializers)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(whole)
    plain, quantised = folder / "step.onnx", folder / "step-int8.onnx"
    onnx.save(whole, plain)
    quantize_dynamic(plain, quantised, weight_type=QuantType.QInt8)
    operators = {node.op_type for node in onnx.load(quantised).graph.node}
    if "DynamicQuantizeLSTM" not in operators:
        raise SystemExit(f"ONNX Runtime left the LSTM in float32: {sorted(operators)}")
    check(model, plain)
    return quantised


def check(model: CharLstm, file: Path) -> None:
    """Compares the float32 graph with PyTorch."""
    step = OnnxStep(model, file, 1)
    state, expected_state = step.zeros(3), None
    for tokens in ([0, 1, 2], [3, 4, 5]):
        logits, state = step(numpy.array(tokens), state)
        with torch.no_grad():
            inputs = torch.from_numpy(one_hot(numpy.array(tokens)[:, None], step.tokens))
            expected, expected_state = model(inputs, expected_state)
    found = torch.log_softmax(torch.from_numpy(logits), dim=1)
    if not torch.allclose(found, expected, atol=1e-4):
        raise SystemExit("the ONNX graph differs from the PyTorch model")


if __name__ == "__main__":
    main()
