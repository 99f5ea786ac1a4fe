"""The command line around the verbs: help, doctor, bench, exit codes, pipes, and what is imported when."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo import __version__
from zoo.cli.bench import peak_rss_mb
from zoo.cli.main import VERBS
from zoo.errors import ZooError
from zoo.kernels.registry import OPS


def fresh(code: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environ})


def test_help_and_lists_import_no_torch() -> None:
    """Importing torch takes seconds: what answers without a model must not wait for it."""
    code = """
import contextlib, io, sys
from zoo.cli.main import main
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(line.split())
    assert out.getvalue(), line
    assert "torch" not in sys.modules, line
"""
    lines = ["--help", "--version", "plugins", "plugins --json", "models --json", *(f"{verb} --help" for verb in VERBS)]
    done = fresh(code, *lines)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_verb(call: Any) -> None:
    done = call("--help")
    assert done.code == 0
    for verb, what in VERBS.items():
        assert verb in done.out
        assert what in done.out
        assert call(verb, "--help").code == 0
    assert call("--version").out == f"zoo, version {__version__}\n"


@pytest.mark.parametrize("verb", ["run", "inspect", "bench"])
def test_load_options_are_the_same_everywhere(call: Any, verb: str) -> None:
    text = call(verb, "--help").out
    for option in ("--model-path", "--device", "--dtype", "--plugin", "--context", "--threads", "--set"):
        assert option in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("fly",), "No such command 'fly'"),
        (("--fly",), "--fly"),
        (("run", "one", "two"), "unexpected extra argument"),
        (("bench",), "bench needs a model; give --model-path X"),
        (("bench", "--model-path", "x", "--gen-tokens", "1"), "--gen-tokens"),
        (("bench", "--model-path", "x", "--prompt-tokens", "0"), "--prompt-tokens"),
        *[((verb, "--model-path", ""), "'--model-path': the name is empty") for verb in ("run", "inspect", "bench")],
        (("serve", "--model-path", " "), "'--model-path': the name is empty"),
    ],
)
def test_usage_exits_2(call: Any, args: tuple[str, ...], words: str) -> None:
    done = call(*args)
    assert (done.code, done.out) == (2, "")
    assert words in done.lines[-1]


def test_a_wrong_setting_is_usage(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DEBUG", "perhaps")
    done = call("plugins")
    assert (done.code, done.lines) == (2, ["zoo: ZOO_DEBUG is 'perhaps'; set it to 1 or 0"])


def test_a_file_that_cannot_be_read_is_one_line(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise OSError(28, "No space left on device", "/models/x")

    monkeypatch.setattr("zoo.cli.doctor.examine", full)
    done = call("doctor")
    assert (done.code, done.lines) == (1, ["zoo: [Errno 28] No space left on device: '/models/x'"])


def test_doctor(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    report = json.loads(call("doctor", "--json").out)
    assert report["zoo"] == __version__
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["cache_dir"] == str(tmp_path)
    assert set(report["kernels"]["cpu"]) == set(OPS)
    assert report["broken_plugins"] == {}
    text = call("doctor").out
    for value in (__version__, torch.__version__, str(tmp_path), "kernels on cpu:", *OPS):
        assert value in text


def test_doctor_says_once_why_kernels_are_slow(call: Any, reference_kernels: None) -> None:
    text = call("doctor").out
    assert text.count("not cpu: ZOO_CPU_ISA is off") == 1
    assert re.search(r"^  reference +linear, .*sample; not cpu: ZOO_CPU_ISA is off$", text, re.M)


def test_doctor_names_broken_plugins(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.plugin import manager
    from zoo.plugin.installed import Announced

    def broken(candidate: Announced) -> object:
        raise manager.PluginError(f"{candidate.name} does not import")

    monkeypatch.setattr(manager, "load", broken)
    done = call("doctor")
    assert done.code == 0
    assert "broken plugin llama: llama does not import" in done.out


def test_bench(call: Any, tiny: Any) -> None:
    args = ("--model-path", tiny.path, "--prompt-tokens", "16", "--gen-tokens", "4", "--repeat", "1")
    report = json.loads(call("bench", "--json", *args).out)
    for key in ("prefill_tok_s", "decode_tok_s", "load_s", "peak_rss_mb"):
        assert report[key] > 0, key
    assert (report["prompt_tokens"], report["gen_tokens"]) == (16, 4)
    model = report["model"]
    assert (model["plugin"], model["architecture"], model["format"]) == ("llama", "LlamaForCausalLM", "safetensors")
    assert model["path"] == str(tiny.path)
    text = call("bench", *args).out
    for word in ("load", "prefill", "decode", "memory", "tokens/s"):
        assert word in text


def test_bench_needs_room(call: Any, tiny: Any) -> None:
    done = call("bench", "--model-path", tiny.path, "--prompt-tokens", "250", "--gen-tokens", "20")
    assert (done.code, done.out) == (1, "")
    assert "250 prompt and 20 generated tokens exceed the context of 256" in done.lines[-1]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel does not tell")
def test_peak_memory_is_this_process_alone() -> None:
    """ru_maxrss of a child begins at what its parent held; VmHWM does not."""
    code = "from zoo.cli.bench import peak_rss_mb; print(peak_rss_mb())"
    ballast = bytearray(b"x") * (400 << 20)
    child = float(fresh(code).stdout)
    assert len(ballast) / 1e6 < peak_rss_mb()
    assert 5 < child < 300


def test_a_reader_that_leaves_is_no_error(tiny: Any) -> None:
    """`zoo run ... | head -c 1`: the pipe is closed while the answer is written."""
    code = f"""
import os, sys
from zoo.cli.main import main
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(reader)
main(["run", "hi", "--model-path", {str(tiny.path)!r}, "--max-tokens", "50", "--temperature", "0"])
"""
    done = fresh(code)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_signal_while_loading_exits_130(tiny: Any) -> None:
    code = f"""
import os, signal, sys
from zoo.cli.main import main
import zoo.weights.loader as loader
loader.load_model = lambda *args: os.kill(os.getpid(), signal.SIGINT)
main(["run", "hi", "--model-path", {str(tiny.path)!r}])
"""
    done = fresh(code)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


def test_every_error_is_one_line(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise ZooError("the file\nsays \x1b[31mred", remedy="do\tthis")

    monkeypatch.setattr("zoo.cli.doctor.examine", fail)
    done = call("doctor")
    assert (done.code, done.err) == (1, "zoo: the file\\nsays \\x1b[31mred; do\\tthis\n")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.cli.main import main

    def bug(*args: Any) -> Any:
        raise IndexError("a bug")

    monkeypatch.setattr("zoo.cli.doctor.examine", bug)
    with pytest.raises(IndexError):
        main(["doctor"])
