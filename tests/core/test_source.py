"""ModelSource: what users point at, what is refused and how, and the files beside the weights."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_bytes import STRING, U32, gguf, pair, string, tensor, u32
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import AutoConfig, Gemma3Config, LlamaConfig, Mistral3Config

from measure import processor_seconds
from zoo.errors import FormatError, GGUFError, SafetensorsError, SourceError, UsageError, WeightError, ZooError
from zoo.source import ModelSource

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"
FIRST, SECOND = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"


def gguf_model(architecture: str | bytes = "tiny", *more: bytes) -> bytes:
    pairs = (pair("general.architecture", STRING, string(architecture)), pair("tiny.block_count", U32, u32(7)), *more)
    return gguf(pairs, (tensor("a.weight", (4, 2)),), struct.pack("<8f", *range(8)))


def shard(number: int) -> bytes:
    split = [("split.no", number), ("split.count", 2), ("split.tensors.count", 2)]
    pairs = (pair("general.architecture", STRING, string("tiny")), *(pair(key, U32, u32(n)) for key, n in split))
    return gguf(pairs, (tensor(f"t{number}"),), bytes(16))


def write(path: Path, content: bytes | str | dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def weights(path: Path, name: str = "a.weight") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.arange(8.0).reshape(2, 4)}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Hugging Face directory."""
    weights(tmp_path / "model" / "model.safetensors")
    write(tmp_path / "model" / "config.json", LLAMA)
    return tmp_path / "model"


# --- GGUF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "M.GGUF", "model", "sha256-2bada8a7", "weights.bin", "m.safetensors"])
def test_a_gguf_is_known_by_its_magic(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, gguf_model())
    with ModelSource.open(path) as source:
        assert (source.path, source.format, source.files) == (path, "gguf", (path,))
        assert source.architectures == ("tiny",)
        assert (source.config, source.directory, source.overridden) == ({}, None, {})
        assert source.metadata["tiny.block_count"] == 7
        assert (source.tensors["a.weight"].shape, source.tensors["a.weight"].type) == ((2, 4), "F32")
        assert struct.unpack("<8f", source.read("a.weight")) == tuple(range(8))
        assert repr(source) == f"ModelSource({str(path)!r}, gguf, tiny)"


def test_keys_with_and_without_the_architecture(tmp_path: Path) -> None:
    with ModelSource.open(write(tmp_path / "m.gguf", gguf_model())) as source:
        assert source.key(".block_count") == source.key("tiny.block_count") == 7
        assert source.key(".none") is None
        assert source.key(".none", 3) == 3
        assert source.key("general.architecture") == "tiny"
        assert source.key("block_count", 1) == 1


def test_files_beside_a_gguf_do_not_belong_to_it(tmp_path: Path) -> None:
    write(tmp_path / "generation_config.json", {"temperature": 2})
    with ModelSource.open(write(tmp_path / "m.gguf", gguf_model())) as source:
        assert source.json("generation_config.json") is None
        assert source.text("chat_template.jinja") is None


def test_a_directory_with_one_gguf(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf_model())
    write(tmp_path / "README.md", "hello")
    with ModelSource.open(tmp_path) as source:
        assert (source.path, source.files, source.format) == (tmp_path, (path,), "gguf")


@pytest.mark.parametrize("name", ["", FIRST, SECOND])
def test_a_set_of_shards(name: str, tmp_path: Path) -> None:
    for number, file in enumerate((FIRST, SECOND)):
        write(tmp_path / file, shard(number))
    with ModelSource.open(tmp_path / name) as source:
        assert source.files == (tmp_path / FIRST, tmp_path / SECOND)
        assert list(source.tensors) == ["t0", "t1"]


def test_a_damaged_gguf(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"m\.gguf, byte 0: begins with b'GGXX'"):
        ModelSource.open(write(tmp_path / "m.gguf", b"GGXX" + gguf_model()[4:]))
    with pytest.raises(GGUFError, match=r"tensor 'a\.weight' lies at"):
        ModelSource.open(write(tmp_path / "m.gguf", gguf_model()[:-1]))


@pytest.mark.parametrize(
    "architecture", ["../x", "/etc/passwd", "", "x" * 65, "x" * 1_000_000, "a b", ".", "..", b"\xff", "tiny\n", "a\0"]
)
def test_architectures_that_are_no_names(architecture: str | bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf_model(architecture))
    with pytest.raises(SourceError, match=r"m\.gguf: general\.architecture is .*, no name") as caught:
        ModelSource.open(path)
    # The limit for hostile files; about 1 ms measured.
    assert processor_seconds(lambda: ModelSource.open(path), 0.05, SourceError) < 0.05
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf(), r"has no general\.architecture"),
        (gguf((pair("general.architecture", U32, u32(5)),)), r"general\.architecture is '5', no name"),
        (gguf_model("tiny", pair("general.type", STRING, string("adapter"))), "is a LoRA adapter.*merge it"),
        (gguf_model("clip", pair("general.type", STRING, string("mmproj"))), "vision or audio part.*name the GGUF"),
        (gguf((pair("general.type", STRING, string("imatrix")),)), "is an importance matrix"),
    ],
    ids=["none", "number", "adapter", "mmproj", "imatrix"],
)
def test_gguf_files_that_are_no_models(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        ModelSource.open(write(tmp_path / "m.gguf", content))
    assert caught.value.remedy


def test_overrides_of_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf_model())
    overrides: dict[str, object] = {".block_count": 5, "general.name": "x", "tiny.new": 1.5}
    with ModelSource.open(path, overrides) as source:
        assert source.overridden == overrides
        assert (source.key(".block_count"), source.key("general.name"), source.key(".new")) == (5, "x", 1.5)
    with ModelSource.open(path, {".block_count": 5, "general.architecture": "other"}) as source:
        assert source.architectures == ("other",)
        assert (source.key(".block_count"), source.key("tiny.block_count")) == (5, 7)
    with pytest.raises(
        UsageError, match=r"'block_count' is no key of a GGUF; write \.block_count for tiny\.block_count"
    ):
        ModelSource.open(path, {"block_count": 5})


# --- Hugging Face directories --------------------------------------------------------------------------------------


def test_a_directory_written_by_transformers(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    file = weights(tmp_path / "model.safetensors")
    for path in (tmp_path, file):
        with ModelSource.open(path) as source:
            assert (source.path, source.format, source.files) == (path, "safetensors", (file,))
            assert (source.directory, source.architectures) == (tmp_path, ("LlamaForCausalLM",))
            assert (source.config["hidden_size"], source.metadata) == (64, {})
            assert struct.unpack("<8f", source.read("a.weight")) == tuple(range(8))
            assert source.key(".block_count") is None
            assert repr(source) == f"ModelSource({str(path)!r}, safetensors, LlamaForCausalLM)"


def test_paths_are_made_absolute(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint)
    with ModelSource.open("../model") as source:
        assert source.path == checkpoint
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    with ModelSource.open("~/model") as source:
        assert source.path == checkpoint


def test_closing(checkpoint: Path) -> None:
    with ModelSource.open(checkpoint) as source:
        view = source.read("a.weight")
        with pytest.raises(WeightError, match="has no tensor 'b'"):
            source.read("b")
    assert len(view) == 32
    with pytest.raises(SafetensorsError, match="used after it was closed"):
        source.read("a.weight")


def test_a_snapshot_of_the_hub_cache(checkpoint: Path, tmp_path: Path) -> None:
    """Named itself, or by its repository folder; huggingface-hub agrees which snapshot that is."""
    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    folder = cache / "models--org--repo"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in checkpoint.iterdir():
        write(folder / "blobs" / f"blob-{path.name}", path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    with ModelSource.open(folder) as source:  # the only snapshot, without refs/main
        assert source.directory == snapshot
    (folder / "snapshots" / ("f" * 40)).mkdir()
    with pytest.raises(SourceError, match=f"has no refs/main and 2 snapshots: {commit}, f+; name the snapshot"):
        ModelSource.open(folder)
    write(folder / "refs" / "main", commit)
    assert Path(snapshot_download("org/repo", cache_dir=cache, local_files_only=True)) == snapshot
    for path in (folder, snapshot, snapshot / "model.safetensors"):
        with ModelSource.open(path) as source:
            assert (source.path, source.directory) == (path, snapshot)
            assert source.architectures == ("LlamaForCausalLM",)
            assert len(source.read("a.weight")) == 32
    for name in ("../../../x", "gone", ""):
        write(folder / "refs" / "main", name)
        with pytest.raises(SourceError, match=r"refs/main names the snapshot .*, which is not there"):
            ModelSource.open(folder)


def test_links_that_lead_nowhere_good(checkpoint: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        kept = (checkpoint / name).read_bytes()
        for target, message in {
            "/dev/zero": "not a regular file",
            ".": "not a regular file",
            "x": "is a link to x",
        }.items():
            (checkpoint / name).unlink()
            (checkpoint / name).symlink_to(target)
            with pytest.raises(ZooError, match=f"{name}: {message}"):
                ModelSource.open(checkpoint)
        (checkpoint / name).unlink()
        write(checkpoint / name, kept)


@pytest.mark.parametrize("kind", [Gemma3Config, Mistral3Config])
def test_text_config_goes_to_the_root(kind: type[Gemma3Config | Mistral3Config], tmp_path: Path) -> None:
    config = kind(architectures=["WrapperForConditionalGeneration"])
    config.text_config.hidden_size = 320
    config.save_pretrained(tmp_path)
    weights(tmp_path / "model.safetensors")
    expected = AutoConfig.from_pretrained(tmp_path).get_text_config().to_dict()
    with ModelSource.open(tmp_path) as source:
        assert source.architectures == ("WrapperForConditionalGeneration",)
        assert "text_config" not in source.config
        assert source.config["hidden_size"] == 320
        skipped = {"architectures", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "dtype"}
        written = json.loads((tmp_path / "config.json").read_text())["text_config"].keys() - skipped
        assert len(written) > 10
        for key in written:
            assert source.config[key] == expected[key], key


def test_what_wins_when_text_config_goes_to_the_root(checkpoint: Path) -> None:
    outer = {
        "architectures": ["W"],
        "model_type": "w",
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
        "only": 1,
    }
    inner = {
        "architectures": ["T"],
        "model_type": "t",
        "eos_token_id": 1,
        "tie_word_embeddings": None,
        "pad_token_id": 0,
    }
    write(checkpoint / "config.json", outer | {"text_config": inner})
    with ModelSource.open(checkpoint, {"only": 2}) as source:
        assert source.config == {
            "architectures": ["W"],
            "model_type": "t",
            "eos_token_id": [1, 106],
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "only": 2,
        }
    write(checkpoint / "config.json", LLAMA | {"text_config": [1]})
    with pytest.raises(SourceError, match=r"config\.json: text_config is a list, no object"):
        ModelSource.open(checkpoint)


def test_overrides_of_a_config(checkpoint: Path) -> None:
    write(checkpoint / "config.json", LLAMA | {"rope_scaling": None, "rope_parameters": {"rope_theta": 1.0, "x": 2}})
    overrides: dict[str, object] = {"hidden_size": 32, "rope_scaling.factor": 2.0, "rope_parameters.rope_theta": 5.0}
    with ModelSource.open(checkpoint, overrides) as source:
        assert source.overridden == overrides
        assert source.config["hidden_size"] == 32
        assert source.config["rope_parameters"] == {"rope_theta": 5.0, "x": 2, "factor": 2.0}
        assert source.added == ["rope_parameters.factor"]
    with ModelSource.open(checkpoint, {"architectures": ["Other"]}) as source:
        assert source.architectures == ("Other",)
    for key, message in {
        "hidden_size.x": "'hidden_size.x' cannot be set: hidden_size is 64 in config.json",
        "": "'' is no key of config.json",
        "a..b": "'a..b' is no key of config.json",
        ".a": "'.a' is no key of config.json",
    }.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            ModelSource.open(checkpoint, {key: 1})


NEW = {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
OLD = {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "overrides", "wanted"),
    [
        (NEW, {"rope_theta": 6.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 6.0}}),
        (NEW, {"rope_scaling.factor": 4.0}, {"rope_parameters": {**NEW["rope_parameters"], "factor": 4.0}}),
        (NEW, {"rope_scaling": YARN}, {"rope_parameters": {**YARN, "rope_theta": 5.0}}),
        (
            NEW,
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            {"rope_parameters": {**YARN, "type": "yarn", "rope_theta": 5.0}},
        ),
        (NEW, {"rope_scaling.type": "yarn"}, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5.0}}),
        (NEW, {"rope_parameters": YARN}, {"rope_parameters": YARN}),
        (OLD, {"rope_theta": 6.0}, {**OLD, "rope_theta": 6.0}),
        (OLD, {"rope_scaling.type": "yarn"}, {**OLD, "rope_scaling": {"type": "yarn", "factor": 2.0}}),
        (OLD, {"rope_parameters.factor": 4.0}, {**OLD, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        (OLD, {"rope_scaling": None}, {**OLD, "rope_scaling": None}),
        (
            {"rope_parameters": {**YARN, "rope_theta": 5.0}},
            {"rope_scaling": None},
            {"rope_parameters": {"rope_type": "default", "factor": 4.0, "rope_theta": 5.0}},
        ),
        ({}, {"rope_scaling": YARN, "rope_theta": 6.0}, {"rope_scaling": YARN, "rope_theta": 6.0}),
        # a file with both, as after adding by hand what the model's page recommends
        ({**NEW, "rope_scaling": YARN}, {}, {"rope_parameters": {**YARN, "rope_theta": 5.0}}),
        ({**NEW, "rope_scaling": None}, {}, {**NEW, "rope_scaling": None}),
    ],
)
def test_either_spelling_of_rotary_parameters_counts(
    config: dict[str, Any], overrides: dict[str, object], wanted: dict[str, Any], checkpoint: Path
) -> None:
    write(checkpoint / "config.json", LLAMA | config)
    with ModelSource.open(checkpoint, overrides) as source:
        assert source.config == LLAMA | wanted


def test_rotary_parameters_by_kind_of_layer_are_set_by_kind(checkpoint: Path) -> None:
    rope = {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}
    write(checkpoint / "config.json", LLAMA | {"rope_parameters": rope})
    with ModelSource.open(checkpoint, {"rope_parameters.full_attention.rope_theta": 5.0}) as source:
        assert source.config["rope_parameters"]["full_attention"] == {"rope_theta": 5.0}
        assert source.added == []
    for key, named in {"rope_theta": "rope_theta", "rope_scaling.factor": "factor", "rope_scaling": "KEY"}.items():
        message = f"{key!r} cannot be set: config.json has rope_parameters for each kind of layer; name one: "
        with pytest.raises(UsageError, match=re.escape(f"{message}rope_parameters.full_attention.{named}=VALUE")):
            ModelSource.open(checkpoint, {key: 4.0})
    write(checkpoint / "config.json", LLAMA | {"rope_parameters": rope, "rope_scaling": YARN})
    with pytest.raises(SourceError, match=r"config\.json has rope_parameters for each kind of layer, and rope_scaling"):
        ModelSource.open(checkpoint)


@pytest.mark.parametrize("architectures", ["LlamaForCausalLM", [1], {"a": 1}, 5])
def test_architectures_that_are_no_list_of_names(architectures: object, checkpoint: Path) -> None:
    write(checkpoint / "config.json", {"architectures": architectures})
    with pytest.raises(SourceError, match=r"architectures in config\.json is .*, no list of names"):
        ModelSource.open(checkpoint)


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": []}])
def test_no_architectures(config: dict[str, object], checkpoint: Path) -> None:
    write(checkpoint / "config.json", config)
    with ModelSource.open(checkpoint) as source:
        assert source.architectures == ()
        assert repr(source).endswith("safetensors, no architecture)")


def test_mistral_consolidated(tmp_path: Path) -> None:
    file = weights(tmp_path / "consolidated.safetensors")
    write(tmp_path / "params.json", {"dim": 64, "n_layers": 2})
    for path in (tmp_path, file):
        with ModelSource.open(path) as source:
            assert (source.format, source.architectures) == ("safetensors", ("params.json",))
            assert (source.config, source.config_name) == ({"dim": 64, "n_layers": 2}, "params.json")
    with ModelSource.open(tmp_path, {"n_layers": 3, "moe.num_experts": 8}) as source:
        assert source.config == {"dim": 64, "n_layers": 3, "moe": {"num_experts": 8}}
    with pytest.raises(UsageError, match=r"cannot be set: dim is 64 in params\.json"):
        ModelSource.open(tmp_path, {"dim.x": 1})
    write(tmp_path / "params.json", {"dim": 64, "quantization": {"qformat_weight": "fp8_e4m3"}})
    with pytest.raises(SourceError, match=r"is quantised as fp8_e4m3 .*GGUF"):
        ModelSource.open(tmp_path)
    (tmp_path / "params.json").write_text("[1]")
    with pytest.raises(SourceError, match=r"params\.json holds a JSON list"):
        ModelSource.open(tmp_path)


def test_config_json_comes_before_params_json(checkpoint: Path) -> None:
    write(checkpoint / "params.json", {"dim": 64})
    with ModelSource.open(checkpoint) as source:
        assert source.config_name == "config.json"
        assert "dim" not in source.config


def test_no_config(tmp_path: Path) -> None:
    file = weights(tmp_path / "model.safetensors")
    for path in (tmp_path, file):
        with pytest.raises(SourceError, match=r"has weights but no config\.json; fetch the config\.json"):
            ModelSource.open(path)


def test_missing_shards_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    with pytest.raises(SafetensorsError, match=r"are missing: model-00002-of-00002\.safetensors; download them"):
        ModelSource.open(checkpoint)


# --- files beside the weights --------------------------------------------------------------------------------------


def test_json_and_text(checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", {"temperature": 0.5})
    write(checkpoint / "chat_template.jinja", "{{ 'Grüße' }}\r\n")
    with ModelSource.open(checkpoint) as source:
        assert source.json("generation_config.json") == {"temperature": 0.5}
        assert source.text("chat_template.jinja") == "{{ 'Grüße' }}\r\n"
        assert source.json("tokenizer_config.json") is None
        assert source.text("absent.txt") is None


def test_numbers_that_json_does_not_have(checkpoint: Path) -> None:
    """transformers writes them, as Python's json does."""
    write(checkpoint / "x.json", json.dumps({"a": float("inf"), "b": float("nan"), "c": float("-inf")}))
    with ModelSource.open(checkpoint) as source:
        found = source.json("x.json")
    assert found is not None
    assert (found["a"], found["c"]) == (float("inf"), float("-inf"))
    assert found["b"] != found["b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "is no valid JSON: the key 'a' comes twice"),
        (b'{"a": {"b": 1, "b": 2}}', "is no valid JSON: the key 'b' comes twice"),
        (b'{"a": 1', "is no valid JSON: .* line 1 column 8"),
        (b"", "is no valid JSON"),
        (b'{"a": "\xff"}', "is no valid JSON: no UTF-8 at byte 7"),
        (b'{"a": ' + b"[" * 100_000, "is no valid JSON: nested too deeply"),
        (b'{"a":' * 100_000, "is no valid JSON: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "is no valid JSON: Unexpected UTF-8 BOM"),
        (rb'{"a": "\ude00"}', r"is no valid JSON: \\ude00 at character 7 is half a character"),
        (rb'{"a": "\uD83D\ud83d\ude00"}', r"is no valid JSON: \\uD83D at character 7 is half a character"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (POINTER, "is a Git LFS pointer.*git lfs pull"),
    ],
)
def test_broken_json(content: bytes, message: str, checkpoint: Path) -> None:
    with ModelSource.open(checkpoint) as source:
        write(checkpoint / "x.json", content)
        with pytest.raises(SourceError, match=rf"x\.json {message}") as caught:
            source.json("x.json")
        assert caught.value.remedy
    write(checkpoint / "config.json", content)
    with pytest.raises(SourceError, match=rf"config\.json {message}"):
        ModelSource.open(checkpoint)


def test_escaped_characters_are_whole(checkpoint: Path) -> None:
    with ModelSource.open(checkpoint) as source:
        write(checkpoint / "x.json", rb'{"\uD83D\uDE00": "\\ud800 \\\ud83d\ude00"}')
        assert source.json("x.json") == {"\U0001f600": "\\ud800 \\\U0001f600"}


def test_sizes_of_files_beside(checkpoint: Path) -> None:
    with ModelSource.open(checkpoint) as source:
        large = {"vocab": "x" * (17 << 20)}
        for name in ("tokenizer.json", "tekken.json"):
            write(checkpoint / name, large)
            assert source.json(name) == large
        os.truncate(checkpoint / "tokenizer.json", (256 << 20) + 1)
        with pytest.raises(SourceError, match=r"tokenizer\.json has 268435457 bytes, more than the 268435456 allowed"):
            source.json("tokenizer.json")
        write(checkpoint / "x.json", large)
        with pytest.raises(SourceError, match=r"x\.json has \d+ bytes, more than the 16777216 allowed"):
            source.json("x.json")
        with pytest.raises(SourceError, match="more than the 16777216 allowed"):
            source.text("x.json")


def test_text_that_is_none(checkpoint: Path) -> None:
    with ModelSource.open(checkpoint) as source:
        write(checkpoint / "x.jinja", b"ab\xff")
        with pytest.raises(SourceError, match=r"x\.jinja is no UTF-8 at byte 2"):
            source.text("x.jinja")
        (checkpoint / "directory").mkdir()
        os.mkfifo(checkpoint / "pipe")
        for name in ("directory", "pipe"):
            with pytest.raises(SourceError, match="not a regular file"):
                source.text(name)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", ".."])
def test_names_beside_are_plain(name: str, checkpoint: Path) -> None:
    with ModelSource.open(checkpoint) as source, pytest.raises(SourceError, match="is no plain file name"):
        source.json(name)


# --- what is refused -----------------------------------------------------------------------------------------------

SAFE = "get the safetensors or GGUF form"
FILES: dict[str, tuple[str, bytes, str]] = {
    "torch zip": ("model.bin", b"PK\x03\x04" + bytes(20), f"is a zip archive, as PyTorch pickles are; {SAFE}"),
    "pickle": ("model.pt", pickle.dumps({"a": 1}), f"is a pickle, which can run any code when it is opened; {SAFE}"),
    "pickle of another name": ("model.safetensors", pickle.dumps([1], protocol=2), f"is a pickle.*{SAFE}"),
    "unknown .pth": ("consolidated.00.pth", b"abcdefghijkl", f"is a pickle.*{SAFE}"),
    "unknown .bin": ("pytorch_model.bin", b"abcdefghijkl", f"is a pickle.*{SAFE}"),
    "index of pickles": ("pytorch_model.bin.index.json", b'{"weight_map": {}}', f"is a pickle.*{SAFE}"),
    "onnx": ("model.onnx", b"\x08\x07\x12\x07pytorch", f"is an ONNX graph.*{SAFE}"),
    "keras": ("tf_model.h5", b"\x89HDF\r\n\x1a\n", f"is a Keras or TensorFlow checkpoint.*{SAFE}"),
    "flax": ("flax_model.msgpack", b"\x81\xa5model....", f"is a Flax checkpoint.*{SAFE}"),
    **{
        f"legacy {magic}": (
            "ggml-model-q4_0.bin",
            magic[::-1].encode() + bytes(20),
            f"format {magic}, from before GGUF",
        )
        for magic in ("ggml", "ggmf", "ggjt", "ggla")
    },
    "LFS pointer": ("model.safetensors", POINTER, "is a Git LFS pointer.*run `git lfs pull`"),
    "LFS pointer for a GGUF": ("m.gguf", POINTER, "is a Git LFS pointer.*run `git lfs pull`"),
    "empty": ("m.gguf", b"", "is empty; the download did not complete"),
    "JSON": ("config.json", b"{}", "is no model file; name the directory"),
    "a page": ("model", b"<!DOCTYPE html>", "begins with b'<!DOCTYP': neither GGUF nor safetensors"),
    "short": ("model", b"abc", "begins with b'abc': neither GGUF nor safetensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_refused(case: str, tmp_path: Path) -> None:
    name, content, message = FILES[case]
    with pytest.raises(SourceError, match=rf"{re.escape(name)} ?.*{message}") as caught:
        ModelSource.open(write(tmp_path / name, content))
    assert caught.value.remedy


def test_damaged_safetensors(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="byte 0: claims a header of"):
        ModelSource.open(write(tmp_path / "m.safetensors", bytes(7) + b"\xff" + bytes(20)))


DIRECTORIES: dict[str, tuple[dict[str, bytes | dict[str, object]], str]] = {
    "empty": ({}, "holds no model: it is empty; name a directory"),
    "no weights": ({"config.json": LLAMA, "x.txt": b""}, r"holds no model: it holds config\.json, x\.txt; name"),
    "many files": ({f"{letter}.txt": b"" for letter in "abcdefg"}, r"it holds a\.txt, .*, e\.txt and 2 more"),
    "pickles": ({"config.json": LLAMA, "pytorch_model.bin": b""}, f"only pytorch_model.bin: a pickle.*{SAFE}"),
    "pickled shards": (
        {"pytorch_model-00001-of-00002.bin": b"", "pytorch_model.bin.index.json": {}},
        f"only pytorch_model-00001-of-00002.bin: a pickle.*{SAFE}",
    ),
    "llama originals": ({"consolidated.00.pth": b"", "params.json": {}}, f"only consolidated.00.pth: a pickle.*{SAFE}"),
    "onnx": ({"config.json": LLAMA, "model.onnx": b""}, "only model.onnx: an ONNX graph"),
    "adapter": (
        {"adapter_config.json": {}, "adapter_model.safetensors": b""},
        "holds an adapter .*, not a whole model; merge it into its base model",
    ),
    "several GGUF": (
        {"a-Q4_K_M.gguf": gguf_model(), "b-Q8_0.gguf": gguf_model()},
        r"holds 2 GGUF models: a-Q4_K_M\.gguf, b-Q8_0\.gguf; name the file to open",
    ),
    "a GGUF beside a set": (
        {FIRST: shard(0), SECOND: shard(1), "z.gguf": gguf_model()},
        rf"holds 2 GGUF models: {FIRST}, z\.gguf",
    ),
    "GGUF and safetensors": (
        {"config.json": LLAMA, "model.safetensors": b"", "m.gguf": gguf_model()},
        r"holds both safetensors and GGUF: model\.safetensors and m\.gguf; name the file to open",
    ),
    "LFS pointers": ({"config.json": LLAMA, "model.safetensors": POINTER}, r"model\.safetensors is a Git LFS pointer"),
    "LFS pointers of shards": (
        {"config.json": LLAMA, "model-00001-of-00001.safetensors": POINTER},
        r"model-00001-of-00001\.safetensors is a Git LFS pointer",
    ),
    "LFS pointer for a GGUF": ({"m.gguf": POINTER}, r"m\.gguf is a Git LFS pointer"),
    "LFS pointer for the index": (
        {"config.json": LLAMA, "model.safetensors.index.json": POINTER},
        r"model\.safetensors\.index\.json is a Git LFS pointer",
    ),
    "cache without snapshots": ({"snapshots/x": b""}, "has no refs/main and 0 snapshots: none"),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_directories_that_are_refused(case: str, tmp_path: Path) -> None:
    files, message = DIRECTORIES[case]
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(SourceError, match=message) as caught:
        ModelSource.open(tmp_path)
    assert caught.value.remedy


QUANTISED: dict[str, tuple[dict[str, object], str]] = {
    **{
        method: ({"quantization_config": {"quant_method": method, "bits": 4}}, f"is quantised with {method} ")
        for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "hqq", "torchao", "exl2", "quark")
    },
    "old bitsandbytes": ({"quantization_config": {"load_in_8bit": True}}, "is quantised with bitsandbytes "),
    "old compressed-tensors": (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        "is quantised with compressed-tensors ",
    ),
    "unnamed": ({"quantization_config": {"bits": 4}}, "is quantised with an unnamed method "),
    "a list": ({"quantization_config": ["fp8"]}, "is quantised with an unnamed method "),
    "of the text model": (
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
        "is quantised with gptq ",
    ),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "is quantised by MLX "),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_checkpoints_are_refused_by_name(case: str, checkpoint: Path) -> None:
    config, message = QUANTISED[case]
    write(checkpoint / "config.json", LLAMA | config)
    with pytest.raises(SourceError, match=f"{message}.*; get the model in its original form"):
        ModelSource.open(checkpoint)


@pytest.mark.parametrize(
    ("name", "tool"),
    [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")],
)
def test_files_that_a_quantiser_left(name: str, tool: str, checkpoint: Path) -> None:
    write(checkpoint / name, {})
    with pytest.raises(SourceError, match=rf"is quantised with {tool} \({name}\); get the model"):
        ModelSource.open(checkpoint)


@pytest.mark.parametrize(
    "quantisation", [{"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, None, {}]
)
def test_fp8_passes(quantisation: object, checkpoint: Path) -> None:
    write(checkpoint / "config.json", LLAMA | {"quantization_config": quantisation})
    with ModelSource.open(checkpoint) as source:
        assert source.config["quantization_config"] == quantisation


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="absent does not exist; correct the path, or fetch a model with `zoo pull`"):
        ModelSource.open(tmp_path / "absent")
    with pytest.raises(SourceError, match="does not exist"):
        ModelSource.open(tmp_path / "a\0b")
    with pytest.raises(SourceError, match="x: cannot be read: File name too long"):
        ModelSource.open("x" * 300)
    with pytest.raises(SourceError, match="the path of the model is empty"):
        ModelSource.open("")
    (tmp_path / "dangling.gguf").symlink_to("gone")
    with pytest.raises(SourceError, match=r"dangling\.gguf is a link to gone, which does not exist"):
        ModelSource.open(tmp_path / "dangling.gguf")
    (tmp_path / "dangling.gguf").unlink()
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero")):
        with pytest.raises(SourceError, match="is neither a file nor a directory"):
            ModelSource.open(path)
    with pytest.raises(FormatError, match=r"pipe\.gguf: not a regular file"):
        ModelSource.open(tmp_path)


def test_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no permission stops."""

    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SourceError, match="cannot be read: Permission denied; check the permissions and the path"):
        ModelSource.open(tmp_path)


def test_a_file_that_cannot_be_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(
        SafetensorsError, match=r"model\.safetensors: cannot be opened: .*Permission denied.*; check the"
    ):
        ModelSource.open(checkpoint)
    with pytest.raises(SourceError, match=r"model\.safetensors: cannot be read: Permission denied; check the"):
        ModelSource.open(checkpoint / "model.safetensors")
