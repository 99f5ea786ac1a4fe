"""zoo-deepseek at the size of what is published: sparse files of the real shapes, what loading them costs, and what a
token of context does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from oracle import checkpoints
from oracle.deepseek_sparse import R1, V2_LITE, Sizes, hf_tensors, write_gguf, write_safetensors
from oracle.gguf_writer import tokenizer_keys
from plugins.deepseek_tools import loaded
from zoo import LLM
from zoo.cli.main import cli
from zoo.errors import CapacityError, ContextLengthError

# Loads a model in a process of its own and prints what that cost: seconds, and the peak of resident memory beyond that
# of torch. `decode` runs a prefill of 3 tokens and 2 steps of decode.
_LOAD = """
import json, sys, time
import torch

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

before = status("VmHWM")
from zoo import LLM, SamplingParams
started = time.perf_counter()
llm = LLM.load(sys.argv[1], device="cpu", context=256)
seconds = time.perf_counter() - started
loaded = status("VmHWM") - before
if sys.argv[2:] == ["decode"]:
    llm.generate([5, 6, 7], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
print(json.dumps({
    "seconds": seconds, "loaded": loaded, "peak": status("VmHWM") - before, "anonymous": status("RssAnon"),
    "layers": len(llm.model.model.layers), "tensors": len(llm._source.tensors), "notes": llm.notes,
    "meta": sum(parameter.is_meta for parameter in llm.model.parameters()),
    "experts": len(llm.model.model.layers[-1].mlp.experts.gate_proj),
}))
"""


def cost(path: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _LOAD, str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    print({key: round(value / 1e6) if value > 1e6 else value for key, value in found.items() if key != "notes"})
    return found


def inspected(path: Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["inspect", "--model-path", str(path), "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.output)
    return report


def write_hf(directory: Path, sizes: Sizes) -> int:
    checkpoints.tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return write_safetensors(directory, sizes)


@pytest.fixture(scope="module")
def r1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("DeepSeek-R1")
    assert write_hf(path, R1) == pytest.approx(688.6e9, rel=1e-4)  # 685 billion parameters with the layer of MTP
    return path


@pytest.fixture(scope="module")
def r1_gguf(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_gguf(tmp_path_factory.mktemp("DeepSeek-R1-GGUF"), R1, tokenizer_keys())


def test_r1_in_fp8_loads_in_less_than_1_gb(r1: Path) -> None:
    found = cost(r1)
    assert found["tensors"] == len(list(hf_tensors(R1))) == 91_991
    assert found["layers"] == 61
    assert found["experts"] == 256
    assert found["meta"] == 0
    assert found["loaded"] < 1e9
    assert any("larger than memory" in note for note in found["notes"])


def test_r1_as_iq1_s_loads_in_less_than_1_gb(r1_gguf: list[Path]) -> None:
    found = cost(r1_gguf[1])  # any shard names the model
    assert found["layers"] == 61
    assert found["experts"] == 256
    assert found["meta"] == 0
    assert found["loaded"] < 1e9
    assert not any("missing" in note for note in found["notes"])


def test_inspect_tells_the_size_of_r1(r1: Path, r1_gguf: list[Path]) -> None:
    started = time.perf_counter()
    for path, form, parameters in ((r1, "safetensors", 684.5e9), (r1_gguf[0].parent, "gguf", 671.03e9)):
        report = inspected(path)
        assert report["problems"] == []
        assert report["plugin"] == "deepseek"
        assert report["format"] == form
        assert report["parameters"] == pytest.approx(parameters, rel=1e-4)
        assert report["context"] == 163840
        assert report["cache_bytes_per_token"] == 61 * (512 + 64) * 2 == 70_272
        assert report["largest_context"] > 0
    print(f"two inspections: {time.perf_counter() - started:.1f} s")


def test_a_shard_of_r1_names_the_model(r1: Path) -> None:
    """DeepSeek numbers shards with five digits of six."""
    assert inspected(r1 / "model-00007-of-000163.safetensors")["parameters"] == pytest.approx(684.5e9, rel=1e-4)


def test_the_cache_of_v2_lite_takes_31104_bytes_for_a_token(tmp_path: Path) -> None:
    """27 layers of 512 + 64 elements of 2 bytes; expanded keys and values would take 276,480."""
    assert write_hf(tmp_path, V2_LITE) == pytest.approx(2 * 15.706e9, rel=1e-3)
    assert inspected(tmp_path)["cache_bytes_per_token"] == 27 * (512 + 64) * 2 == 31_104
    with loaded(tmp_path, dtype="bfloat16", cache_dtype="auto", context=4096) as llm:
        cache = llm._engine.runner.cache
        (group,) = cache.groups
        tokens = cache[0].tensors[0].shape[0] * cache.block_size
        assert cache.dtype == torch.bfloat16
        assert cache.nbytes / tokens == 31_104
        assert len(group.layers) == 27


GIGABYTE = replace(
    R1, layers=4, dense=1, experts=64, hidden=2048, intermediate=4096, moe_intermediate=768, vocab=32768, heads=16,
    q_lora=768, mtp=False, shards=2,
)  # fmt: skip


@pytest.mark.parametrize("form", ["fp8", "gguf"])
def test_packed_weights_are_used_as_they_lie(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and answering stay within the mapped file and 500 MB: a bfloat16 copy would be twice the file of FP8, and
    six times that of IQ1_S.
    """
    monkeypatch.setenv("ZOO_CPU_REPACK", "off")
    sizes = GIGABYTE if form == "fp8" else replace(GIGABYTE, moe_intermediate=2048)
    path = tmp_path
    if form == "fp8":
        size = write_hf(tmp_path, sizes)
    else:
        path = write_gguf(tmp_path, sizes, tokenizer_keys(), shards=1)[0]
        size = path.stat().st_size
    assert 0.9e9 < size < 1.3e9
    found = cost(path, "decode")
    assert found["loaded"] < 200e6, "loading reads headers and vectors"
    assert found["peak"] < size + 500e6
    assert found["peak"] < 900e6, "experts that no token chose were not read"
    assert found["anonymous"] < 900e6


def test_a_context_that_memory_cannot_hold_is_refused_before_it_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf(tmp_path, replace(GIGABYTE, experts=16))
    made: list[object] = []
    monkeypatch.setattr("zoo.llm.host_bytes_for_cache", lambda weights: 100 << 20)
    monkeypatch.setattr("zoo.llm.KVCache", lambda *args, **kwargs: made.append(args))
    with pytest.raises(CapacityError, match=r"a context of 100000 tokens needs \d+ MiB of cache") as caught:
        LLM.load(tmp_path, device="cpu", context=100_000)
    assert "--context" in caught.value.remedy
    with pytest.raises(ContextLengthError, match="the model was made for 163840"):
        LLM.load(tmp_path, device="cpu", context=200_000)
    assert not made
