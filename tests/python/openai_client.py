#!/usr/bin/env python3
"""The official client of OpenAI's API, as it is, against the HTTP API.

    openai_client.py ADDRESS MODEL PROMPT TEXT SCORES

TEXT is what gRPC generates with seed 7 after PROMPT, 60 characters. SCORES are
the log-probabilities of the characters of PROMPT but the first, as gRPC reports
them, separated by spaces. Prints a line for each check; exits with code 1 at the
first failure.
"""

import sys
import time
import urllib.error
import urllib.request

import httpx2
import openai

SEED = 7
# If the server hangs, the test must fail, not hang.
TIMEOUT_SECONDS = 120


def check(condition: bool, description: str) -> None:
    print(f"{'ok' if condition else 'FAILED'}: {description}", flush=True)
    if not condition:
        sys.exit(1)


class LosesFirstResponse(httpx2.HTTPTransport):
    """Sends every request, and loses the response of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        self.requests += 1
        if self.requests == 1:
            response.read()
            response.close()
            raise httpx2.ReadTimeout("the response was lost", request=request)
        return response


def connect(address: str, **options) -> openai.OpenAI:
    url = f"http://{address}/v1"
    return openai.OpenAI(base_url=url, api_key="none", timeout=TIMEOUT_SECONDS, **options)


def check_models(client: openai.OpenAI, model: str) -> None:
    check(model in [one.id for one in client.models.list()], "the model is listed")
    found = client.models.retrieve(f"{model}@1")
    check(found.id == f"{model}@1" and found.created > 0, "a version is described")
    try:
        client.models.retrieve("unknown")
        check(False, "an unknown model is not found")
    except openai.NotFoundError as error:
        check(error.code == "MODEL_NOT_FOUND", f"an unknown model: {error}")


def check_texts(client: openai.OpenAI, model: str, prompt: str, expected: str) -> None:
    ask = {"model": model, "prompt": prompt, "seed": SEED}
    whole = client.completions.create(**ask, max_tokens=60)
    choice = whole.choices[0]
    check(choice.text == expected, f"the text is that of gRPC ({choice.text!r})")
    check(choice.finish_reason == "length", "it ends because of its length")
    check(whole.model == f"{model}@1" and whole.seed == SEED, "version and seed are reported")
    usage = whole.usage
    check(usage.completion_tokens == 60 and usage.prompt_tokens == len(prompt), f"{usage}")
    check(len(client.completions.create(**ask).choices[0].text) == 16, "16 by default")

    parts = list(
        client.completions.create(
            **ask, max_tokens=60, stream=True, stream_options={"include_usage": True}, logprobs=0
        )
    )
    texts = [choice.text for part in parts for choice in part.choices]
    check("".join(texts) == expected, f"a stream of {len(parts)} parts has the same text")
    check(parts[-1].usage.total_tokens == 60 + len(prompt), "the last part has the usage")
    logprobs = [choice.logprobs for part in parts for choice in part.choices if choice.logprobs]
    values = [value for part in logprobs for value in part.token_logprobs]
    check(len(values) == 60 and max(values) <= 0, "each character has a logprob")

    long = list(client.completions.create(**ask, max_tokens=20_000, stream=True))
    check(len(long) > 10, f"a long text arrives in parts while it is generated ({len(long)})")
    check("".join(part.choices[0].text for part in long).startswith(expected), "and is the same")

    stop = expected[20:23]
    before = expected[: expected.index(stop)]
    stopped = client.completions.create(**ask, max_tokens=60, stop=[stop]).choices[0]
    check((stopped.text, stopped.finish_reason) == (before, "stop"), "a stop string ends a text")
    several = client.completions.create(
        model=model, prompt=[prompt, prompt[:3]], seed=SEED, n=2, echo=True, max_tokens=5
    )
    texts = [choice.text for choice in several.choices]
    check(len(texts) == 4 and texts[0] == prompt + expected[:5], "two texts of two prompts")
    check(texts[2].startswith(prompt[:3]), "in the order of the prompts")


def check_echoed_logprobs(client: openai.OpenAI, ask: dict, text: str, scores: list) -> None:
    prompt = ask["prompt"]
    fields = {**ask, "echo": True, "logprobs": 0}
    plain = client.completions.create(**ask, max_tokens=60, logprobs=0).choices[0].logprobs
    expected = [None, *scores, *plain.token_logprobs]
    choice = client.completions.create(**fields, max_tokens=60).choices[0]
    whole = choice.logprobs
    check(choice.text == "".join(whole.tokens) == prompt + text, "tokens of prompt and text")
    check(whole.token_logprobs == expected, f"the prompt has log-probabilities, {expected[:4]}")
    check(whole.text_offset == list(range(len(choice.text))), "positions from the prompt on")
    stream = client.completions.create(**fields, max_tokens=60, stream=True)
    parts = [it.choices[0].logprobs for it in stream if it.choices[0].logprobs]
    streamed = [value for part in parts for value in part.token_logprobs]
    check(streamed == expected, "a stream has the same ones")
    offsets = [offset for part in parts for offset in part.text_offset]
    check(offsets == whole.text_offset, "at the same positions")
    several = client.completions.create(
        **{**fields, "prompt": [prompt, prompt[:1]], "max_tokens": 0, "n": 2}
    )
    values = [it.logprobs.token_logprobs for it in several.choices]
    check(values == [[None, *scores]] * 2 + [[None]] * 2, "max_tokens=0 scores prompts")


def check_sessions(client: openai.OpenAI, address: str, ask: dict, expected: str) -> None:
    def create(client=client, session="openai", **fields):
        extra = {"session_id": session}
        for name in ("expected_position", "top_k"):
            if name in fields:
                extra[name] = fields.pop(name)
        return client.completions.create(**fields, extra_body=extra)

    prompt = ask["prompt"]
    first = create(**ask, max_tokens=30)
    check(first.position == len(prompt) + 30, "a session reports its position")
    second = create(model="", prompt="", max_tokens=30, expected_position=first.position)
    check(first.choices[0].text + second.choices[0].text == expected, "30 + 30 give the text of 60")
    again = create(model="", prompt="", max_tokens=30, expected_position=first.position)
    check(again.choices[0].text == second.choices[0].text, "a repeat gives the same text")
    check(again.position == second.position, "and advances the session once")

    lost = LosesFirstResponse()
    unlucky = connect(address, http_client=httpx2.Client(transport=lost), max_retries=2)
    repeated = create(unlucky, "lost", **ask, max_tokens=60, expected_position=0)
    check(lost.requests == 2, "the official client repeats a call whose response was lost")
    check(repeated.choices[0].text == expected, "with expected_position it gives the same text")
    check(repeated.position == len(prompt) + 60, "and advances the session once")
    lost = LosesFirstResponse()
    unlucky = connect(address, http_client=httpx2.Client(transport=lost), max_retries=2)
    try:
        create(unlucky, "lost", model="", prompt="", max_tokens=10)
        check(False, "without expected_position the repeat is rejected")
    except openai.ConflictError as error:
        check(error.code == "UNSAFE_REPEAT", f"without expected_position: {error}")
    check(lost.requests == 2, "and is not tried a third time")
    try:
        create(session="lost", model="", prompt="", max_tokens=1, expected_position=5)
        check(False, "a wrong position is rejected")
    except openai.ConflictError as error:
        positions = error.body["metadata"]
        check(positions["position"] == str(repeated.position + 10), f"a wrong position: {error}")


def check_disconnect(client: openai.OpenAI, ask: dict) -> None:
    body = {"session_id": "left"}
    stream = client.completions.create(**ask, max_tokens=1_000_000, stream=True, extra_body=body)
    for count, _ in enumerate(stream):
        if count == 50:
            break
    stream.close()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            more = client.completions.create(model="", prompt="", max_tokens=1, extra_body=body)
            break
        except openai.ConflictError:
            time.sleep(0.05)
    else:
        check(False, "the session is released after a disconnect")
    check(more.position < 500_000, "a client that disconnects ends its generation")


def check_errors(client: openai.OpenAI, ask: dict) -> None:
    for field, value in [
        ("prompt", "\u2603"),
        ("temperature", -1),
        ("top_p", 0),
        ("max_tokens", 100_001),
        ("logprobs", 6),
        ("best_of", 3),
        ("frequency_penalty", 1),
        ("logit_bias", {"1": 1}),
        ("suffix", "x"),
        ("stop", [""]),
    ]:
        try:
            client.completions.create(**{**ask, field: value})
            check(False, f"{field}={value!r} is rejected")
        except openai.BadRequestError as error:
            check((error.param or "").startswith(field), f"{field}={value!r}: {error}")
    try:
        session = {"session_id": "scored"}
        client.completions.create(**ask, echo=True, logprobs=0, extra_body=session)
        check(False, "echo with logprobs in a session is rejected")
    except openai.BadRequestError as error:
        check(error.param == "logprobs", f"echo with logprobs in a session: {error}")
    try:
        client.completions.create(**ask, extra_body={"min_q": 1})
        check(False, "an unknown field is rejected")
    except openai.BadRequestError as error:
        check(error.param == "min_q", f"an unknown field: {error}")


def check_large_body(address: str) -> None:
    body = b'{"model": "m", "prompt": "' + b"a" * 9_000_000 + b'"}'
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{address}/v1/completions", body, headers)
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        check(False, "a large body is rejected")
    except urllib.error.HTTPError as error:
        check(error.code == 413, f"a large body: {error.read().decode()}")
    except (BrokenPipeError, ConnectionResetError, urllib.error.URLError) as error:
        # The server answers before it has read all, and closes.
        check(True, f"a large body: {error}")


def main() -> None:
    address, model, prompt, expected, scores = sys.argv[1:]
    client = connect(address)
    check_models(client, model)
    check_texts(client, model, prompt, expected)
    ask = {"model": model, "prompt": prompt, "seed": SEED}
    check_echoed_logprobs(client, ask, expected, [float(it) for it in scores.split()])
    check_sessions(client, address, ask, expected)
    check_disconnect(client, ask)
    check_errors(client, ask)
    check_large_body(address)


if __name__ == "__main__":
    main()
