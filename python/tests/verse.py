"""A corpus with a simple rule, and a model that trains on it within a second."""

from charlstm.training_flow import TrainingOptions

MODEL = "verse"
PRIME = "arma "

_WORDS = ["arma", "virumque", "cano", "Troiæ", "qui", "primus", "ab", "oris"]

OPTIONS: TrainingOptions = {
    "hidden_size": 32,
    "batch_size": 8,
    "sequence_length": 20,
    "learning_rate": 0.01,
    "epochs": 2,
    "seed": 5,
}


def verse(chars: int) -> str:
    """Returns a text of about `chars` characters."""
    text = ""
    number = 0
    while len(text) < chars:
        text += _WORDS[(number * number + number // 7) % len(_WORDS)]
        text += "\n" if number % 9 == 8 else " "
        number += 1
    return text
