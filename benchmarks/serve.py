"""Load on `zoo serve`: one client, many clients, and llama.cpp's server with as many slots, in turns on this machine.

    python benchmarks/serve.py [--model-path PATH] [--clients 16] [--rounds 2] [--json]

Every client sends one chat request after the other, streamed and with a prompt of its own, and all answers have the
same length. Tokens per second are those of all answers together over wall time, prompts included. The servers run as
processes of their own and in turns, so that nothing else of this script loads the machine while one is measured. Also
the time to the first token of the first and of the second turn of a long chat. Needs the openai and xllamacpp packages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai

TOPICS = ["rain", "bread", "trains", "glass", "bees", "salt", "maps", "chess", "wool", "tides", "ink", "clocks"]
CHAT_WORDS = 700  # about 1,000 tokens

# llama.cpp as a process of its own: prints the address when the model is there, ends with its standard input.
LLAMACPP = """
import sys
import xllamacpp
path, clients, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_parallel, params.n_ctx, params.warmup = clients, context * clients, True
params.port = 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_threads_http = clients + 2
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def server(kind: str, path: str, clients: int, threads: int) -> Iterator[openai.OpenAI]:
    """A running server of a kind, "zoo" or "llama.cpp", as its client."""
    context = 2048
    if kind == "zoo":
        command = [
            sys.executable,
            "-c",
            "from zoo.cli.main import main; main()",
            "serve",
            "--model-path",
            path,
            "--port",
            "0",
        ]
        command += ["--context", str(context), "--threads", str(threads)]
    else:
        command = [sys.executable, "-c", LLAMACPP, path, *map(str, (clients, context, threads))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        client = openai.OpenAI(base_url=f"{_address(process)}/v1", api_key="none", max_retries=0, timeout=600)
        _wait(client)
        yield client
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        # llama.cpp logs from several threads, so that anything may stand right behind it.
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            # What else it says has to be read, or it stops.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found[0]
    raise SystemExit("the server did not start:\n" + "".join(lines[-20:]))


def _wait(client: openai.OpenAI) -> None:
    """Until the model is there: an address may be printed before."""
    deadline = time.monotonic() + 120
    while True:
        try:
            client.models.list()
            return
        except (openai.InternalServerError, openai.APIConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def one_answer(client: openai.OpenAI, messages: Any, tokens: int, **extra: Any) -> tuple[float, int, str]:
    """Seconds to the first token, tokens of the answer, and its text."""
    started, first, text, count = time.perf_counter(), 0.0, "", 0
    stream = client.chat.completions.create(
        model="any", messages=messages, max_tokens=tokens, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True, **extra},
    )  # fmt: skip
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - started
            text += chunk.choices[0].delta.content
        if chunk.usage is not None:
            count = chunk.usage.completion_tokens
    return first, count, text


def load(client: openai.OpenAI, clients: int, requests: int, tokens: int, salt: str) -> float:
    """Tokens per second of `requests` answers for each of so many clients at once."""

    def work(number: int) -> int:
        total = 0
        for turn in range(requests):
            topic = f"{TOPICS[number % len(TOPICS)]} ({salt}, {number}, {turn})"
            _, count, _ = one_answer(client, [{"role": "user", "content": f"Write a story about {topic}."}], tokens)
            assert count == tokens, f"an answer has {count} tokens in place of {tokens}"
            total += count
        return total

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        total = sum(pool.map(work, range(clients)))
    return total / (time.perf_counter() - started)


def turns(client: openai.OpenAI, salt: str) -> tuple[float, float]:
    """Seconds to the first token of the first and of the second turn of a long chat."""
    words = " ".join(f"{TOPICS[at % len(TOPICS)]}" for at in range(CHAT_WORDS))
    messages = [{"role": "user", "content": f"{salt}. Shorten this: {words}"}]
    first, _, text = one_answer(client, messages, 16)
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Shorter."}]
    return first, one_answer(client, messages, 16)[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default="smollm2", help="a GGUF file, or the name of a pulled model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from zoo.hub import resolve
    from zoo.settings import Settings

    path = str(resolve(options.model_path, Settings.from_env()))
    found: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        for kind in ("zoo", "llama.cpp"):
            with server(kind, path, options.clients, options.threads) as client:
                for clients in (1, options.clients):
                    load(client, clients, 1, 8, "warm")
                for clients, requests in ((1, 2), (options.clients, 2)):
                    rate = load(client, clients, requests, options.tokens, f"{turn} {clients}")
                    found.setdefault(f"{kind}, {clients} clients, tok/s", []).append(rate)
                for name, seconds in zip(("first", "second"), turns(client, str(turn)), strict=True):
                    found.setdefault(f"{kind}, {name} turn, s to first token", []).append(seconds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    many = f"{options.clients} clients, tok/s"
    ratios = {
        f"zoo, {options.clients} clients over 1": medians[f"zoo, {many}"] / medians["zoo, 1 clients, tok/s"],
        f"zoo over llama.cpp, {options.clients} clients": medians[f"zoo, {many}"] / medians[f"llama.cpp, {many}"],
        "zoo, first over second turn": (
            medians["zoo, first turn, s to first token"] / medians["zoo, second turn, s to first token"]
        ),
    }
    if options.json:
        print(json.dumps({"threads": options.threads, "measured": found, "medians": medians, "ratios": ratios}))
        return
    for name, value in medians.items():
        print(f"{name:45} {value:9.3f}  {[round(one, 3) for one in found[name]]}")
    for name, value in ratios.items():
        print(f"{name:45} {value:9.2f} x")


if __name__ == "__main__":
    main()
