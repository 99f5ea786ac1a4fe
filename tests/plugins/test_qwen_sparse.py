"""A directory in the shape of Qwen3-30B-A3B, 61 GB of holes, loads into next to nothing.

Its 18432 tensors of single experts are what takes time and memory: each is a view in a table, none is stacked or
converted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import Qwen3MoeConfig

from oracle.checkpoints import tiny_tokenizer

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, WIDTH, VOCAB = 2048, 48, 32, 4, 128, 128, 768, 151936
LIMIT_MB = 500
LAYERS_PER_SHARD = 12


def layer_shapes(layer: int) -> Iterator[tuple[str, list[int]]]:
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.input_layernorm.weight", [HIDDEN]
    yield f"{prefix}.post_attention_layernorm.weight", [HIDDEN]
    yield f"{prefix}.self_attn.q_proj.weight", [HEADS * HEAD_DIM, HIDDEN]
    for name in ("k_proj", "v_proj"):
        yield f"{prefix}.self_attn.{name}.weight", [KV_HEADS * HEAD_DIM, HIDDEN]
    yield f"{prefix}.self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM]
    for name in ("q_norm", "k_norm"):
        yield f"{prefix}.self_attn.{name}.weight", [HEAD_DIM]
    yield f"{prefix}.mlp.gate.weight", [EXPERTS, HIDDEN]
    for expert in range(EXPERTS):
        for name, shape in {"gate": [WIDTH, HIDDEN], "up": [WIDTH, HIDDEN], "down": [HIDDEN, WIDTH]}.items():
            yield f"{prefix}.mlp.experts.{expert}.{name}_proj.weight", shape


def write_shard(path: Path, shapes: Iterator[tuple[str, list[int]]]) -> list[str]:
    """A safetensors file of BF16 tensors whose data was never written; returns their names."""
    header, end = {}, 0
    for name, shape in shapes:
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return list(header)


def write_directory(directory: Path) -> None:
    config = Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"], vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=6144,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
        num_experts=EXPERTS, num_experts_per_tok=8, moe_intermediate_size=WIDTH, norm_topk_prob=True,
        max_position_embeddings=40960,
    )  # fmt: skip
    config.save_pretrained(directory)
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    shards = [
        (entry for layer in range(start, start + LAYERS_PER_SHARD) for entry in layer_shapes(layer))
        for start in range(0, LAYERS, LAYERS_PER_SHARD)
    ]
    ends = {"model.embed_tokens": [VOCAB, HIDDEN], "model.norm": [HIDDEN], "lm_head": [VOCAB, HIDDEN]}
    places = {}
    for index, shapes in enumerate([*shards, ((f"{name}.weight", shape) for name, shape in ends.items())]):
        name = f"model-{index + 1:05d}-of-{len(shards) + 1:05d}.safetensors"
        places |= dict.fromkeys(write_shard(directory / name, shapes), name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


PROGRAM = """
import json, sys, time
import torch

def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

before = peak_mb()
started = time.perf_counter()
from zoo import LLM
imported = time.perf_counter()
with LLM.load(sys.argv[1], device="cpu") as llm:
    loaded = time.perf_counter()
    experts = llm.model.model.layers[-1].mlp.experts.down_proj
    print(json.dumps({
        "mb": peak_mb() - before, "import_s": imported - started, "load_s": loaded - imported,
        "dtype": llm.info.dtype, "views": len(experts.views), "stacked": experts.stacked is not None,
        "types": sorted({str(view.dtype) for view in experts.views}), "shape": experts.shape,
    }))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_61_gb_of_experts_load_as_views(tmp_path: Path) -> None:
    write_directory(tmp_path)
    shards = list(tmp_path.glob("*.safetensors"))
    assert 60e9 < sum(shard.stat().st_size for shard in shards) < 62e9
    assert sum(shard.stat().st_blocks * 512 for shard in shards) < 50e6, "the file system fills holes"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    print(f"61 GB in {found['load_s']:.1f} s ({found['import_s']:.1f} s for imports), {found['mb']:.0f} MB")
    assert found["mb"] < LIMIT_MB
    assert found["types"] == ["torch.bfloat16"]
    assert (found["views"], found["stacked"], found["shape"]) == (EXPERTS, False, [EXPERTS, HIDDEN, WIDTH])
