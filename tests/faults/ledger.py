"""What the clients of a server were promised, and whether it still holds.

Every session generates with a fixed prompt and seed and no later prompt, so
its whole text is a prefix of one reference text, whatever calls it was
generated in. The ledger records the last acknowledged position of each
session, and the position that a call in flight may have reached.
"""

import threading

PROMPT = "arma "


class Broken(Exception):
    """A promise was broken."""


class Reference:
    """The text of each seed, generated once by an undisturbed server."""

    def __init__(self, client, model, chars, seeds):
        self.texts = {
            seed: client.generate(model=model, prime=PROMPT, seed=seed, chars=chars)[0]
            for seed in seeds
        }

    def check(self, seed, position, text, where):
        """Raises `Broken` unless `text` is what follows `position`."""
        begin = position - len(PROMPT)
        expected = self.texts[seed][begin:begin + len(text)]
        if text != expected:
            raise Broken(f"{where}: at position {position} expected {expected[:40]!r}..., "
                         f"got {text[:40]!r}...")


class Entry:
    """One session as its client knows it."""

    def __init__(self, seed):
        self.seed = seed
        # Acknowledged position; 0 before the first acknowledged call.
        self.position = 0
        # Position that an unacknowledged call would reach, or None.
        self.pending = None
        # Whether that call was cancelled by its client, so that it may have been
        # committed at any character.
        self.cancelled = False
        # Characters that the unacknowledged call has delivered.
        self.delivered = ""
        self.deleted = False
        # A creation or deletion that was sent and not answered.
        self.uncertain = False


class Ledger:
    """All sessions of one run. Safe to use from several threads."""

    def __init__(self, reference):
        self.reference = reference
        self.entries = {}
        self.models = {}
        self.pending_models = {}
        self.lock = threading.Lock()
        self.acknowledged = 0

    def begin(self, name, seed):
        with self.lock:
            return self.entries.setdefault(name, Entry(seed))

    def verify(self, client):
        """Compares a restarted server with the ledger; returns the number of sessions.

        Raises `Broken` on the first difference. Afterwards the ledger states
        what the server states.
        """
        for name, entry in sorted(self.entries.items()):
            position = client.position(name)
            allowed = {None if entry.position == 0 or entry.deleted else entry.position}
            if entry.pending is not None:
                allowed.add(entry.pending)
            if entry.pending is not None and entry.cancelled:
                allowed.update(range(entry.position, entry.pending))
            if entry.uncertain:
                allowed.add(None)
                allowed.add(entry.position or None)
            if position not in allowed:
                raise Broken(f"session {name}: expected a position in {allowed}, got {position}")
            if entry.pending is not None and not entry.deleted and not entry.uncertain:
                self._retry(client, name, entry)
            elif position is not None:
                entry.position, entry.deleted = position, False
            else:
                entry.position, entry.deleted = 0, True
            entry.pending, entry.delivered = None, ""
            entry.cancelled, entry.uncertain = False, False
        served = client.list_models()
        for name, version in self.models.items():
            latest = served.get(name, 0)
            if latest not in {version, self.pending_models.get(name, version)}:
                raise Broken(f"model {name}: version {version} was acknowledged, "
                             f"the latest is {latest}")
            self.models[name] = latest
        self.pending_models.clear()
        return len(self.entries)

    def _retry(self, client, name, entry):
        """Repeats the interrupted call and checks the promised text."""
        begin = entry.position
        first = begin == 0
        chars = entry.pending - begin - (len(PROMPT) if first else 0)
        text, finished = client.generate(
            session=name, chars=chars, prime=PROMPT if first else "", seed=entry.seed if first
            else None, expected=begin, model="verse@1" if first else "")
        self.reference.check(entry.seed, begin or len(PROMPT), text, f"retry in {name}")
        if not text.startswith(entry.delivered):
            raise Broken(f"session {name}: the retry does not begin with the text delivered before")
        if finished.position != entry.pending:
            raise Broken(f"session {name}: the retry ended at {finished.position}, "
                         f"not at {entry.pending}")
        entry.position = finished.position
