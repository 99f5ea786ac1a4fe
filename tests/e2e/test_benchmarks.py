"""benchmarks/cpu.py and the files it measures: they run, and what they say follows from what was measured."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zoo.formats.gguf import GGUFFile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "vocab_size": 600,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, Q4_K and Q6_K, with 64 tokens of context."""
    path = tmp_path_factory.mktemp("benchmarks") / "tiny.gguf"
    module("synthetic_gguf").write(path, "llama-1b", "q4_k_m", layers=2, **TINY)
    return path


def made_up(path: Path, **ratios: float) -> Any:
    """A report in which llama.cpp has 100 of everything."""
    report = module("report").Report(path, GGUFFile.open(path), facts={"kv_mb": 1.0, "copied_mb": 0.0, "import_s": 0.1})
    report.engines = {"zoo": "zoo", "llama.cpp": "llama.cpp"}
    for name, ratio in {"prefill 32, tok/s": ratios["prefill"], "decode at 0, tok/s": ratios["decode"]}.items():
        for value in (ratio, ratio, 9.0):  # one run that went wild
            report.add(name, "zoo", 100 * value)
            report.add(name, "llama.cpp", 100.0)
    for name, value in {
        "load, s": ratios["load"],
        "memory, MB": ratios["memory"],
        "best read bandwidth, GB/s": 10.0,
    }.items():
        report.add(name, "zoo", value)
    return report


def test_both_engines_run_on_a_file_that_zoo_made(tiny: Path, tmp_path: Path) -> None:
    command = [BENCHMARKS / "cpu.py", tiny, "--quick", "--runs", "1", "--threads", "1", "--json", tmp_path / "out.json"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = json.loads((tmp_path / "out.json").read_text())["files"]
    assert file["file_bytes"] == tiny.stat().st_size
    for name in ("load, s", "prefill 32, tok/s", "decode at 0, tok/s", "decode at 47, tok/s", "memory, MB"):
        assert {engine: len(values) for engine, values in file["figures"][name].items()} == {"zoo": 1, "llama.cpp": 1}
        assert min(min(values) for values in file["figures"][name].values()) > 0
        assert f"| {name} |" in done.stdout
    (together,) = file["figures"]["decode of 16 sequences together, tok/s"]["zoo"]
    assert together > file["figures"]["decode at 0, tok/s"]["zoo"][0], "16 at once are no faster than one"
    assert "note: decode at 47 in place of 64: the context has 64 tokens" in done.stdout
    assert 0.1 < file["figures"]["best read bandwidth, GB/s"]["zoo"][0] < 2000
    assert file["facts"]["copied_mb"] < 0.01 * file["file_bytes"] / 1e6
    # Two layers, two key-value heads of 64, keys and values of two bytes each.
    assert file["facts"]["kv_mb"] == 2 * 2 * 64 * 2 * 2 * 64 / 1e6


@pytest.mark.parametrize("depth", [0, 300, 4096])
def test_every_prompt_leaves_room_in_the_context(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    module("synthetic_gguf").write(path, "llama-1b", "q8_0", layers=1, **{**TINY, "max_position_embeddings": 2000})
    report = module("report").Report(path, GGUFFile.open(path))
    job = module("cpu").plan(report, argparse.Namespace(quick=False, depth=depth, threads=1))
    assert job["prefill"] == [128, 512]
    assert job["decode"] == ([0, depth] if 0 < depth < 1900 else [0] if depth == 0 else [0, 1935])
    assert 2000 >= job["context"] > max(512, job["decode"][-1] + job["generate"])


def test_promises_are_judged_by_the_median(tiny: Path) -> None:
    report = module("report")
    good = made_up(tiny, prefill=2.1, decode=2.1, load=0.1, memory=300.0)
    for name in good.figures:
        assert "missed" not in "".join(report.promises(good, name))
    assert report.promises(good, "decode at 0, tok/s") == ("1.5x met", "2.0x met")
    fair = made_up(tiny, prefill=1.4, decode=1.6, load=0.4, memory=300.0)
    assert report.promises(fair, "decode at 0, tok/s") == ("1.5x met", "2.0x **missed**")
    assert report.promises(fair, "load, s") == ("0.5 s met", "0.2 s **missed**")
    poor = made_up(tiny, prefill=1.2, decode=1.4, load=0.6, memory=400.0)
    poor.facts["copied_mb"] = 0.5
    for name in ("prefill 32, tok/s", "decode at 0, tok/s", "load, s", "memory, MB"):
        assert all("missed" in said for said in report.promises(poor, name)), name
    assert "| 1.40 (1.40 1.40 9.00) | 1.5x **missed** |" in report.table(poor)
    for together, said in ((610.0, "3x one (3.05) met"), (590.0, "3x one (2.95) **missed**")):
        batch = made_up(tiny, prefill=2.1, decode=2.0, load=0.1, memory=300.0)
        batch.add(report.TOGETHER, "zoo", together)
        assert report.promises(batch, report.TOGETHER) == (said, "")


def test_transformers_counts_for_prefill_where_it_was_measured(tiny: Path) -> None:
    report = made_up(tiny, prefill=2.1, decode=2.1, load=0.1, memory=300.0)
    report.engines["transformers"] = "transformers"
    for _ in range(3):
        report.add("prefill 32, tok/s", "transformers", 220.0)
    assert module("report").promises(report, "prefill 32, tok/s") == (
        "1.3x llama.cpp met, 1.0x transformers **missed**",
        "2x the better **missed**",
    )


def test_a_token_reads_the_chosen_experts_and_no_untied_embedding(tmp_path: Path) -> None:
    path = tmp_path / "experts.gguf"
    sizes = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "vocab_size": 600}
    module("synthetic_gguf").write(path, "deepseek-v2-lite", "q8_0", layers=2, **sizes)
    report = module("report").Report(path, GGUFFile.open(path))
    tensors = report.gguf.tensors
    experts = sum(info.nbytes for name, info in tensors.items() if "_exps." in name)
    rest = sum(info.nbytes for name, info in tensors.items() if "_exps." not in name and name != "token_embd.weight")
    assert experts == 3 * 64 * 256 * 256 * 34 // 32
    assert report.token_bytes == rest + experts * 6 / 64
    assert module("report").decode_targets(report) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-file.gguf"], "no-such-file.gguf"),
        (["FOLDER"], "is no GGUF file"),
        (["TINY", "--peer-python", "/no/such/python"], "/no/such/python has no llama-cpp-python"),
        (["TINY", "--json", "/no/such/folder/x.json"], "there is no such folder"),
        (["TINY", "--threads", "0"], "'0' is not positive"),
        (["TINY", "--runs", "two"], "'two' is no whole number"),
        ([], "FILE"),
    ],
)
def test_a_bad_option_is_one_clear_error(
    arguments: list[str], said: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"TINY": str(tiny), "FOLDER": str(tiny.parent)}
    monkeypatch.setattr(sys, "argv", ["cpu.py", *(names.get(argument, argument) for argument in arguments)])
    with pytest.raises(SystemExit) as exit:
        module("cpu").main()
    assert exit.value.code not in (0, None)
    assert said in capsys.readouterr().err + str(exit.value)
