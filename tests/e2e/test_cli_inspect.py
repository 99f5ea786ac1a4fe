"""`zoo inspect`: what it says of models that run, that nobody runs, and that no memory holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from gguf import GGUFReader, GGUFWriter

from oracle.checkpoints import llama_config, save_checkpoint
from oracle.gguf_writer import llama_contents, write
from zoo.source import ModelSource


def inspect(call: Any, path: Path, *args: str) -> dict[str, Any]:
    done = call("inspect", "--model-path", path, "--json", *args)
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_a_gguf_is_what_gguf_py_reads(call: Any, smollm2: Path) -> None:
    report = inspect(call, smollm2)
    reader = GGUFReader(smollm2)
    assert report["bytes"] == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert report["parameters"] == sum(int(tensor.n_elements) for tensor in reader.tensors)
    types = [tensor.tensor_type.name for tensor in reader.tensors]
    assert {kind: part["count"] for kind, part in report["tensors"].items()} == {
        kind: types.count(kind) for kind in set(types)
    }
    template = str(reader.fields["tokenizer.chat_template"].contents())
    assert report["chat_template_sha256"] == hashlib.sha256(template.encode()).hexdigest()
    assert report["context"] == reader.fields["llama.context_length"].contents()
    assert (report["architectures"], report["format"], report["files"]) == (["llama"], "gguf", 1)
    assert (report["plugin"], report["distribution"]) == ("llama", "zoo-llama")
    assert (report["vocab_size"], report["tokens"], report["tokenizer"]) == (49152, 49152, "bpe (smollm)")
    assert (report["layers"], report["hidden_size"]) == (30, 576)
    # 30 layers, 3 heads of 64, keys and values, 16 bits
    assert report["cache_bytes_per_token"] == 30 * 3 * 64 * 2 * 2
    assert report["fits"] is True
    assert report["largest_context"] == report["default_context"] == 8192
    assert report["problems"] == []


def test_a_directory(call: Any, tiny: Any) -> None:
    report = inspect(call, tiny.path)
    assert report["parameters"] == sum(parameter.numel() for parameter in tiny.reference.parameters())
    assert (report["format"], report["architectures"]) == ("safetensors", ["LlamaForCausalLM"])
    assert (report["context"], report["vocab_size"], report["layers"]) == (256, 320, 3)
    assert report["verdict"] == "fits, with its whole context of 256 tokens"


def test_the_text_says_the_same(call: Any, tiny: Any) -> None:
    report, text = inspect(call, tiny.path), call("inspect", "--model-path", tiny.path).out
    for value in (
        *(report["path"], report["plugin"], report["distribution"], report["verdict"], report["chat_template_sha256"]),
        *("LlamaForCausalLM", "F32: ", "256 tokens", "320 rows", "bpe", "memory", "3 layers, 64 wide"),
    ):
        assert value in text


def test_without_a_chat_template(call: Any, plain: Path) -> None:
    report = inspect(call, plain)
    assert (report["chat_template"], report["chat_template_sha256"]) == (False, None)
    assert re.search(r"chat template +no\n", call("inspect", "--model-path", plain).out)


def test_a_shard_stands_for_its_set(call: Any, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "hf", llama_config())
    files = write(tmp_path / "tiny.gguf", llama_contents(model), split_max_tensors=9)
    reports = [inspect(call, file) for file in (files[0], files[-1])]
    assert reports[0]["files"] == len(files) > 1
    assert reports[0]["parameters"] == reports[1]["parameters"] == inspect(call, tmp_path / "hf")["parameters"]


def copied(tiny: Any, place: Path, **changes: Any) -> Path:
    shutil.copytree(tiny.path, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **changes}))
    return place


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("Qwen3MoeForCausalLM", "zoo-qwen is installed, but ZOO_PLUGINS leaves it out"),
        ("MysteryForCausalLM", "no plugin knows"),
    ],
)
def test_an_architecture_that_no_plugin_knows(
    call: Any, tiny: Any, tmp_path: Path, architecture: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_PLUGINS", "llama")
    path = copied(tiny, tmp_path / "model", architectures=[architecture])
    report = inspect(call, path)
    assert (report["plugin"], report["distribution"], report["fits"]) == (None, None, None)
    assert words in report["verdict"]
    assert report["verdict"].startswith("cannot be loaded: ")
    same = ("parameters", "bytes", "tensors", "context", "vocab_size", "layers", "tokens", "chat_template_sha256")
    known = inspect(call, tiny.path)
    assert {key: report[key] for key in same} == {key: known[key] for key in same}
    assert words in call("inspect", "--model-path", path).out


def test_an_unknown_gguf(call: Any, tmp_path: Path) -> None:
    contents = llama_contents(save_checkpoint(tmp_path / "hf", llama_config()))
    contents.architecture = "mystery"
    contents.keys = {key.replace("llama.", "mystery."): value for key, value in contents.keys.items()}
    del contents.keys["mystery.vocab_size"]
    (path,) = write(tmp_path / "mystery.gguf", contents)
    report = inspect(call, path)
    assert (report["plugin"], report["context"], report["layers"], report["hidden_size"]) == (None, 256, 3, 64)
    assert report["vocab_size"] == report["tokens"] == 320
    assert "mystery" in report["verdict"]


def test_a_damaged_tokenizer_is_a_problem(call: Any, tiny: Any, tmp_path: Path) -> None:
    path = copied(tiny, tmp_path / "model")
    (path / "tokenizer.json").write_text("{}")
    report = inspect(call, path)
    assert report["plugin"] == "llama"
    assert "tokenizer.json" in report["problems"][0]
    assert (report["fits"], report["tokenizer"]) == (None, None)


def test_a_broken_chat_template_is_a_problem(call: Any, tiny: Any, tmp_path: Path) -> None:
    path = copied(tiny, tmp_path / "model")
    (path / "chat_template.jinja").write_text("{% for m in %}")
    assert "cannot be loaded: " in inspect(call, path)["verdict"]


def test_impossible_configuration_is_a_problem(call: Any, tiny: Any, tmp_path: Path) -> None:
    report = inspect(call, copied(tiny, tmp_path / "model", hidden_act="tanh"))
    assert "hidden_act" in report["verdict"]
    assert report["context"] == 256


def test_options_count(call: Any, tiny: Any) -> None:
    report = inspect(call, tiny.path, "--set", "max_position_embeddings=100")
    assert report["context"] == 100
    report = inspect(call, tiny.path, "--context", "1000")
    assert "1000 tokens is asked for, the model was made for 256" in report["verdict"]
    assert inspect(call, tiny.path, "--context", "64")["default_context"] == 64
    assert "there is no plugin 'nobody'" in inspect(call, tiny.path, "--plugin", "nobody")["verdict"]
    wide, narrow = (
        inspect(call, tiny.path, "--dtype", dtype)["cache_bytes_per_token"] for dtype in ("float32", "bfloat16")
    )
    assert wide == 2 * narrow
    assert call("inspect", "--model-path", tiny.path, "--device", "tpu").code == 2


MEMORY = {
    # 134 thousand float32 weights are 0.5 MB, a token of cache is 768 bytes.
    "plenty": (1e9, 1e9, True, 256, "fits, with its whole context"),
    "some context": (1e9, 680_000, True, None, r"fits, with up to \d+ of 256 tokens of context \(--context N\)"),
    "busy": (1e9, 300_000, False, None, "does not fit now .*; close other programs"),
    "too small": (400_000, 300_000, False, None, "does not fit .*reading weights from disk.*smaller quantisation"),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory(call: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    total, available, fits, largest, words = MEMORY[case]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=int(total), available=int(available)))
    report = inspect(call, tiny.path)
    assert (report["memory"]["total"], report["memory"]["free"]) == (total, available)
    assert report["fits"] is fits
    assert re.match(words, report["verdict"])
    assert report["largest_context"] == (largest or report["largest_context"])
    if fits:
        run = call("run", "x", "--model-path", tiny.path, "--max-tokens", "1", "--json")
        assert json.loads(run.out)["model"]["context"] == report["default_context"] == report["largest_context"]


def test_a_long_context_is_not_the_default_one(call: Any, tiny: Any) -> None:
    report = inspect(call, tiny.path, "--set", "max_position_embeddings=100000")
    assert (report["largest_context"], report["default_context"]) == (100000, 32768)
    assert report["verdict"] == "fits; 32768 tokens of context by default, up to 100000 with --context"


@pytest.fixture
def giant(tmp_path: Path) -> Path:
    """A GGUF of more than 100 GB that occupies nothing but its header."""
    contents = llama_contents(save_checkpoint(tmp_path / "hf", llama_config()))
    path = tmp_path / "giant.gguf"
    writer = GGUFWriter(path, "llama")
    keys = {
        **contents.keys,
        "llama.embedding_length": 16384,
        "llama.feed_forward_length": 53248,
        "llama.block_count": 10,
    }
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, bool: gguf.GGUFValueType.BOOL}
            writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.UINT32))
    sizes = {"token_embd.weight": (320, 16384)}
    for layer in range(10):
        for name in ("ffn_gate", "ffn_up"):
            sizes[f"blk.{layer}.{name}.weight"] = (53248, 16384)
        sizes[f"blk.{layer}.ffn_down.weight"] = (16384, 53248)
    for name, shape in sizes.items():
        writer.add_tensor_info(name, shape, np.dtype("float32"), shape[0] * shape[1] * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 32 + sum(rows * columns * 4 for rows, columns in sizes.values()))
    return path


def test_weights_are_not_read(call: Any, giant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ModelSource, name: str) -> memoryview:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(ModelSource, "read", refuse)
    assert giant.stat().st_size > 100e9
    inspect(call, giant)  # imports are not the subject
    started = time.perf_counter()
    report = inspect(call, giant)
    assert time.perf_counter() - started < 20  # 0.1 s on a quiet machine; reading 100 GB takes a minute at the least
    assert report["bytes"] > 100e9
    assert (report["context"], report["tokens"]) == (256, 320)


def test_errors(call: Any, tmp_path: Path) -> None:
    done = call("inspect")
    assert (done.code, done.lines) == (2, ["zoo: inspect needs a model; give --model-path X"])
    done = call("inspect", "--model-path", tmp_path / "none")
    assert (done.code, len(done.lines)) == (1, 1)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x01")
    done = call("inspect", "--model-path", tmp_path / "cut.gguf")
    assert (done.code, len(done.lines)) == (1, 1)
    assert "cut.gguf, byte" in done.err


def test_names_in_a_file_cannot_steer_the_terminal(call: Any, tiny: Any, tmp_path: Path) -> None:
    path = copied(tiny, tmp_path / "model", architectures=["Evil\x1b]0;title\x07"])
    done = call("inspect", "--model-path", path)
    assert done.code == 0
    assert r"Evil\x1b]0;title\x07" in done.out
    assert "\x1b" not in done.out + done.err
