"""The notebook's model, batches and optimizer steps, shared by the scripts in
this folder.

The arithmetic follows the notebook "Character-Level LSTM": one-hot input, nn.LSTM
with dropout between its layers, dropout, a linear layer, log-softmax and NLL
loss, Adam, gradient clipping by norm, and a hidden state that is carried over
the batches of an epoch.
"""

import numpy
import torch
from torch import nn
from torch.nn import functional


class CharLstm(nn.Module):
    """`lstm` and `fc` are the names in the notebook's state_dict."""

    def __init__(self, tokens: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.hidden = hidden
        self.lstm = nn.LSTM(tokens, hidden, layers, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, tokens)

    def forward(self, inputs, state):
        """`[batch, sequence, tokens]` -> log-probabilities `[batch * sequence, tokens]`."""
        output, state = self.lstm(inputs, state)
        logits = self.fc(self.dropout(output).reshape(-1, self.hidden))
        return functional.log_softmax(logits, dim=1), state


def one_hot(indices: numpy.ndarray, tokens: int) -> numpy.ndarray:
    """Integers of any shape -> float32 of that shape plus one dimension, `tokens`."""
    rows = numpy.zeros((indices.size, tokens), dtype=numpy.float32)
    rows[numpy.arange(indices.size), indices.reshape(-1)] = 1.0
    return rows.reshape(*indices.shape, tokens)


def batches(data: numpy.ndarray, batch: int, sequence: int):
    """Yields inputs and targets, each `[batch, sequence]`.

    The data is truncated to whole batches and reshaped into `batch` rows. The
    target of an input is the next number in its row, which may belong to the
    next batch. The target of the last number of a row is the first number of
    the row.
    """
    count = len(data) // (batch * sequence)
    rows = data[: count * batch * sequence].reshape(batch, -1)
    following = numpy.roll(rows, -1, axis=1)
    for start in range(0, count * sequence, sequence):
        stop = start + sequence
        yield rows[:, start:stop], following[:, start:stop]


class Trainer:
    """Takes optimizer steps as the notebook does."""

    def __init__(
        self, model: CharLstm, tokens: int, learning_rate: float, clip: float, bf16: bool = False
    ):
        """With `bf16`, `torch.autocast` computes the products in bfloat16; the
        parameters and the optimizer stay in float32."""
        self.model, self.tokens, self.clip, self.bf16 = model, tokens, clip, bf16
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.loss = nn.NLLLoss()
        self.state = None

    def begin_epoch(self) -> None:
        """Resets the hidden state."""
        self.state = None

    def backward(self, inputs: numpy.ndarray, targets: numpy.ndarray) -> float:
        """Computes the gradients, without clipping; returns the loss."""
        device = next(self.model.parameters()).device
        features = torch.from_numpy(one_hot(inputs, self.tokens)).to(device)
        goal = torch.from_numpy(numpy.ascontiguousarray(targets)).reshape(-1).to(device)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            output, state = self.model(features, self.state)
            loss = self.loss(output, goal)
        self.state = tuple(part.detach() for part in state)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()

    def update(self) -> float:
        """Clips the gradients and takes the step; returns the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return norm.item()
