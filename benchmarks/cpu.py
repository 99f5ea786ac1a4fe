"""Measure zoo and llama.cpp in turns on the same GGUF files and threads, and judge the ratios by what zoo promises.

    python benchmarks/cpu.py FILE... [--threads 2] [--runs 3] [--quick] [--json figures.json]

Absolute figures drift between machines and hours, so every figure is measured for one engine, then for the other, and
again; the table has medians and the ratio of each run. llama.cpp is llama-cpp-python where an interpreter has it
(--peer-python; pip compiles it for the machine), else the prebuilt wheel xllamacpp. transformers gives a third column
for prefill where it is installed. Files stay in the page cache; importing torch is part of no figure.

Prefill and decode of zoo include scheduling, sampling and text, those of llama.cpp do not. A share of the read
bandwidth counts bytes of weights per token, not the cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from report import BANDWIDTH, LOAD, MEMORY, PEER, SEQUENCES, TOGETHER, TRANSFORMERS, ZOO, Report, table

from zoo.errors import UsageError, ZooError
from zoo.formats.gguf import GGUFFile
from zoo.hub import resolve
from zoo.kernels.native.pool import physical_cores
from zoo.settings import Settings

ENGINES = Path(__file__).with_name("engines.py")
PREFILL = (128, 512)
# transformers' names for what GGUF calls an architecture, for its column.
MODEL_TYPES = {
    "llama": "llama",
    "gemma3": "gemma3_text",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek2": "deepseek_v2",
}


class Worker:
    """An engine in a process of its own."""

    def __init__(self, python: str, engine: str, job: dict[str, Any]) -> None:
        self.engine = engine
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)
        # As users have it: modules are compiled once, not at every start.
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONDONTWRITEBYTECODE": ""}
        self._process = subprocess.Popen(
            [python, ENGINES, engine, json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip
        self.facts = self._answer()

    def ask(self, *request: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.communicate()
        self._log.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        raise UsageError(f"{self.engine} failed: {self._log.read()[-2000:]}")


@contextmanager
def started(python: str, engine: str, job: dict[str, Any]) -> Iterator[Worker]:
    worker = Worker(python, engine, job)
    try:
        yield worker
    finally:
        worker.close()


def measure(path: Path, peer: tuple[str, str], args: argparse.Namespace) -> Report:
    """All figures of one file."""
    report = Report(path, GGUFFile.open(path))
    job = plan(report, args)
    for file in report.gguf.paths:
        keep_in_cache(file)
    with ExitStack() as stack:
        engines = {ZOO: (sys.executable, "zoo"), PEER: peer}
        for _ in range(args.runs - 1):
            for name, (python, engine) in engines.items():
                with started(python, engine, job) as worker:
                    report.add(LOAD, name, worker.facts["load_s"])
        two = {name: stack.enter_context(started(*engine, job)) for name, engine in engines.items()}
        for name, worker in two.items():
            report.add(LOAD, name, worker.facts["load_s"])
        shape = two[ZOO].facts.pop("shape")
        workers = {**two, **third(report, shape, job, args, stack)}
        report.engines = {name: worker.facts["engine"] for name, worker in workers.items()}
        report.facts = two[ZOO].facts
        memory = {ZOO: stack.enter_context(started(sys.executable, "bandwidth", job))}
        for n in job["prefill"]:
            turns(report, f"prefill {n}, tok/s", workers, ("prefill", n), args.runs)
        for n in job["decode"]:
            turns(report, f"decode at {n}, tok/s", two, ("decode", n), args.runs)
            turns(report, BANDWIDTH, memory, ("read",), args.runs)
        turns(report, MEMORY, two, ("memory",), 1)
        turns(report, TOGETHER, {ZOO: two[ZOO]}, ("together", SEQUENCES), args.runs)
    return report


def turns(report: Report, name: str, workers: dict[str, Worker], request: Sequence[Any], runs: int) -> None:
    """Ask every engine the same, one after the other, and again."""
    for _ in range(runs):
        for engine, worker in workers.items():
            report.add(name, engine, worker.ask(*request))


def plan(report: Report, args: argparse.Namespace) -> dict[str, Any]:
    """What to ask of the engines, within the model's context."""
    longest, generate = report.key("context_length"), 16 if args.quick else 64
    depth, prefill = (64, [32]) if args.quick else (args.depth, list(PREFILL))
    room = longest - generate - 1
    if depth > room:
        report.notes.append(f"decode at {room} in place of {depth}: the context has {longest} tokens")
    depths = list(dict.fromkeys((0, min(depth, room))))
    prefill = [n for n in prefill if n < longest]
    context = max(*prefill, depths[-1] + generate) + 1
    return {
        "path": str(report.path),
        "threads": args.threads,
        "context": context,
        "generate": generate,
        "prefill": prefill,
        "decode": depths,
    }


def third(
    report: Report, shape: dict[str, Any], job: dict[str, Any], args: argparse.Namespace, stack: ExitStack
) -> dict[str, Worker]:
    """transformers, if it is installed, knows the shape and has room for its weights in bfloat16."""
    kind = MODEL_TYPES.get(report.architecture)
    needed = 2.2 * sum(info.numel for info in report.gguf.tensors.values())
    if args.quick or args.no_transformers or importlib.util.find_spec("transformers") is None:
        why = "left out" if args.quick or args.no_transformers else "not installed"
    elif kind is None:
        why = f"its name for {report.architecture} is not known here"
    elif needed > (free := psutil.virtual_memory().available):
        why = f"it needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free"
    else:
        job = {**job, "shape": {"model_type": kind, **shape}}
        try:
            return {TRANSFORMERS: stack.enter_context(started(sys.executable, "transformers", job))}
        except UsageError as error:
            why = str(error)
    report.notes.append(f"no column for transformers: {why}")
    return {}


def keep_in_cache(path: Path) -> None:
    """Read a file once, so that a load does not wait for the disk."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def find_peer(python: str | None) -> tuple[str, str]:
    """Interpreter and engine of llama.cpp. Without `python`: this interpreter, then PATH's, then the prebuilt wheel."""
    if python is not None:
        if has_llama_cpp_python(python):
            return python, "llama-cpp-python"
        raise UsageError(f"{python} has no llama-cpp-python", remedy="install it there, or leave --peer-python out")
    for candidate in (sys.executable, shutil.which("python3")):
        if candidate and has_llama_cpp_python(candidate):
            return candidate, "llama-cpp-python"
    if importlib.util.find_spec("xllamacpp"):
        return sys.executable, "xllamacpp"
    raise UsageError("there is no llama.cpp to compare with", remedy="pip install llama-cpp-python (or xllamacpp)")


def has_llama_cpp_python(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0
    except OSError:
        return False


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="a GGUF file, or the name of a pulled model")
    parser.add_argument("--threads", type=positive, default=physical_cores(), help="default: one per physical core")
    parser.add_argument("--runs", type=positive, default=3, help="measurements of each figure; default: 3")
    parser.add_argument(
        "--depth", type=whole, default=4096, help="tokens before the deep decode, 0: none; default: 4096"
    )
    parser.add_argument("--no-transformers", action="store_true", help="without its column, which is slow to measure")
    parser.add_argument("--quick", action="store_true", help="32 tokens of prefill, decode at 64, no transformers")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    return parser.parse_args()


def positive(text: str) -> int:
    if (number := whole(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not positive")


def whole(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number")


def main() -> None:
    args = arguments()
    found: dict[str, Any] = {"cpu": cpu_name(), "threads": args.threads, "runs": args.runs, "files": []}
    try:
        if args.json and not args.json.absolute().parent.is_dir():
            raise UsageError(f"--json {args.json}: there is no such folder", remedy="make it first")
        paths = [resolve(name, Settings.from_env()) for name in args.files]
        if folders := [path for path in paths if path.is_dir()]:
            raise UsageError(f"{folders[0]} is no GGUF file", remedy="llama.cpp reads nothing else: give .gguf files")
        peer = find_peer(args.peer_python)
        print(f"{cpu_name()}, {args.threads} threads, {args.runs} runs, {time.strftime('%Y-%m-%d')}\n")
        for path in paths:
            report = measure(path, peer, args)
            print(table(report) + "\n", flush=True)
            found["files"].append(report.as_json())
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))
    except (ZooError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
