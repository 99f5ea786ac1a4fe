"""Every native op against the plain torch definition, on one to three threads with the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.native_cases import batch_of, cache_of, needs_native, on_both, q8_0, random, threads
from zoo.batch import Batch
from zoo.cache.spec import CacheSpec, FullAttention, LatentAttention, SlidingAttention
from zoo.cache.storage import KVCache
from zoo.kernels.activate import cpu as activate_cpu
from zoo.kernels.activate import reference as activate_reference
from zoo.kernels.add import cpu as add_cpu
from zoo.kernels.attend import cpu as attend_cpu
from zoo.kernels.attend import reference as attend_reference
from zoo.kernels.embedding import cpu as embedding_cpu
from zoo.kernels.embedding import reference as embedding_reference
from zoo.kernels.gate import cpu as gate_cpu
from zoo.kernels.gate import reference as gate_reference
from zoo.kernels.glu import cpu as glu_cpu
from zoo.kernels.glu import reference as glu_reference
from zoo.kernels.head_linear import cpu as head_cpu
from zoo.kernels.head_linear import reference as head_reference
from zoo.kernels.layer_norm import cpu as layer_norm_cpu
from zoo.kernels.layer_norm import reference as layer_norm_reference
from zoo.kernels.linear import cpu as linear_cpu
from zoo.kernels.linear import reference as linear_reference
from zoo.kernels.moe import cpu as moe_cpu
from zoo.kernels.moe import reference as moe_reference
from zoo.kernels.position_scale import cpu as position_cpu
from zoo.kernels.position_scale import reference as position_reference
from zoo.kernels.rms_norm import cpu as rms_norm_cpu
from zoo.kernels.rms_norm import reference as rms_norm_reference
from zoo.kernels.rotary import Rotary
from zoo.kernels.rotary import cpu as rotary_cpu
from zoo.kernels.rotary import reference as rotary_reference
from zoo.kernels.route import Routing
from zoo.kernels.route import cpu as route_cpu
from zoo.kernels.route import reference as route_reference
from zoo.kernels.softcap import cpu as softcap_cpu
from zoo.kernels.softcap import reference as softcap_reference
from zoo.quant.experts import ExpertWeights

pytestmark = needs_native

ROWS = (1, 2, 3, 5, 8, 13, 17, 33)


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert (found - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))


def near(found: Tensor, wanted: Tensor, products: int = 1) -> None:
    """Within what int8 activations cost: 1 % of the size of the result for each product behind the other."""
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 0.01 * products * wanted.norm()


@pytest.mark.parametrize("rows", ROWS)
def test_linear_of_mixed_types(rows: int) -> None:
    x = random(rows, 96)
    weights = [random(37, 96, seed=1), q8_0(19, 96), random(8, 96, seed=2).bfloat16(), random(1, 96, seed=3).half()]
    biases = [random(37, seed=4), None, random(8, seed=5).bfloat16(), None]
    for index, wanted in enumerate(linear_reference.linear(x, weights, biases)):
        near(on_both(lambda i=index: linear_cpu.linear(x, weights, biases)[i]), wanted)  # type: ignore[misc]


def test_linear_of_dense_weights_is_exact_and_takes_strided_rows() -> None:
    x = random(6, 200)[::2, 3:80]
    weight = random(41, 77, seed=1)
    (wanted,) = linear_reference.linear(x, [weight], [None])
    close(on_both(lambda: linear_cpu.linear(x, [weight], [None])[0]), wanted)


def test_a_row_of_linear_depends_on_no_other_row() -> None:
    x, weights = random(33, 64), [q8_0(50, 64), random(50, 64, seed=2)]
    together = [on_both(lambda i=i: linear_cpu.linear(x, weights, [None, None])[i]) for i in range(2)]  # type: ignore[misc]
    for row in (0, 7, 32):
        for index in range(2):
            alone = linear_cpu.linear(x[row : row + 1], weights, [None, None])[index]
            assert torch.equal(alone[0], together[index][row])


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_glu(rows: int, act: str) -> None:
    x, gate, up = random(rows, 64, scale=3), random(75, 64, seed=1), random(75, 64, seed=2)
    bias = random(75, seed=3)
    kwargs = {"gate_bias": bias, "act": act}
    wanted = glu_reference.glu(x, gate, up, **kwargs)  # type: ignore[arg-type]
    close(on_both(lambda: glu_cpu.glu(x, gate, up, **kwargs)), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [1, 7, 8, 64, 577])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms(columns: int, dtype: torch.dtype) -> None:
    x, add = random(5, columns, scale=4), random(5, columns, seed=1)
    weight, bias = random(columns, seed=2).to(dtype), random(columns, seed=3).to(dtype)
    for offset in (0.0, 1.0):
        for given in (None, add):
            wanted = rms_norm_reference.rms_norm(x, weight.float(), eps=1e-5, add=given, offset=offset)
            for index in range(2):
                found = on_both(lambda: rms_norm_cpu.rms_norm(x, weight, eps=1e-5, add=given, offset=offset)[index])  # noqa: B023
                close(found, wanted[index])
    wanted = layer_norm_reference.layer_norm(x, weight, bias, eps=1e-5, add=add)
    for index in range(2):
        close(on_both(lambda: layer_norm_cpu.layer_norm(x, weight, bias, eps=1e-5, add=add)[index]), wanted[index])  # noqa: B023


def test_elementwise_ops() -> None:
    x, y, gate = random(5, 301, scale=6), random(5, 301, seed=1), random(5, 1, seed=2)
    close(on_both(lambda: add_cpu.add(x, y)), x + y)
    close(on_both(lambda: gate_cpu.gate(x, y)), gate_reference.gate(x, y))
    close(on_both(lambda: gate_cpu.gate(x, gate)), gate_reference.gate(x, gate))
    close(on_both(lambda: softcap_cpu.softcap(x * 20, 30.0)), softcap_reference.softcap(x * 20, 30.0))
    close(on_both(lambda: activate_cpu.activate(x, act="silu")), activate_reference.activate(x, "silu"))
    close(on_both(lambda: activate_cpu.activate(x, act="gelu_tanh")), activate_reference.activate(x, "gelu_tanh"))
    heads, positions = random(4, 3, 16), torch.tensor([0, 8191, 8192, 70000], dtype=torch.int32)
    wanted = position_reference.position_scale(heads, positions, beta=0.1, length=8192)
    close(on_both(lambda: position_cpu.position_scale(heads, positions, beta=0.1, length=8192)), wanted)


def test_embedding_and_rotary() -> None:
    ids = torch.tensor([5, 0, 29, 5], dtype=torch.int32)
    for table in (random(30, 64), q8_0(30, 64), random(30, 7, seed=1).bfloat16()):
        wanted = embedding_reference.embedding(ids, table, dtype=torch.float32, scale=2.5)
        found = on_both(lambda: embedding_cpu.embedding(ids, table, dtype=torch.float32, scale=2.5))  # noqa: B023
        assert torch.equal(found, wanted)
    positions, freq = torch.tensor([0, 1, 977, 131071], dtype=torch.int32), 10000.0 ** -(torch.arange(24) / 24)
    wanted_angles = rotary_reference.rotary(positions, freq, attention_scaling=1.3, interleaved=True)
    with threads(2):
        found_angles = rotary_cpu.rotary(positions, freq, attention_scaling=1.3, interleaved=True)
    close(found_angles.cos, wanted_angles.cos, 1e-6)
    close(found_angles.sin, wanted_angles.sin, 1e-6)
    assert found_angles.interleaved


BATCHES = {
    "one prompt": [(0, 37)],
    "one token": [(1300, 1)],
    "decode": [(0, 1), (16, 1), (700, 1), (31, 1)],
    "mixed": [(5, 40), (100, 1), (0, 3), (63, 2)],
}


def filled(spec: CacheSpec, lengths: list[tuple[int, int]], dtype: torch.dtype) -> Callable[[], tuple[KVCache, Batch]]:
    """Makes the same cache again and again: what came before the new tokens is in it, and NaN everywhere else."""

    def make() -> tuple[KVCache, Batch]:
        batch, cache = batch_of(lengths, padding=2), cache_of(spec, dtype, blocks=128)
        for number, tensor in enumerate(cache[0].tensors):
            for row, (old, _) in enumerate(lengths):
                position = torch.arange(old)
                slots = batch.tables[0].block_table[row, position // 16] * 16 + position % 16
                values = random(old, *tensor.shape[2:], seed=10 * row + number)
                tensor.flatten(0, 1)[slots.long()] = values.to(dtype)
        return cache, batch

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "variant"), [
    (9, 3, 64, "plain"), (4, 4, 20, "interleaved"), (8, 1, 128, "window"), (4, 2, 32, "softcap"), (6, 2, 16, "sinks"),
])  # fmt: skip
def test_attend(name: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, variant: str) -> None:
    lengths = BATCHES[name]
    spec = SlidingAttention(kv_heads, dim, 70) if variant == "window" else FullAttention(kv_heads, dim)
    make = filled(spec, lengths, dtype)
    tokens = sum(new for _, new in lengths) + 2
    q, k, v = random(tokens, heads, dim), random(tokens, kv_heads, dim, seed=1), random(tokens, kv_heads, dim, seed=2)
    angles = random(tokens, dim // 4, seed=3)
    rotary = None if variant == "softcap" else Rotary(angles.cos(), angles.sin(), variant == "interleaved")
    kwargs = {
        "scale": dim**-0.5,
        "softcap": 5.0 if variant == "softcap" else None,
        "sinks": random(heads, seed=4) if variant == "sinks" else None,
    }

    def run(attend: Callable[..., Tensor]) -> Tensor:
        cache, batch = make()
        out = attend(q, k, v, rotary, batch, cache[0], **kwargs)
        # What was written is part of the result.
        return torch.cat((out, torch.cat([t.flatten(2).flatten(0, 1).float().nan_to_num() for t in cache[0].tensors], 1)
                          .flatten().view(1, -1)[:, : out.shape[1]]))  # fmt: skip

    wanted = run(attend_reference.attend)
    close(on_both(lambda: run(attend_cpu.attend)), wanted, 2e-5 if dtype == torch.float32 else 1e-3)


def test_attention_of_a_sequence_depends_on_no_other() -> None:
    spec, lengths = FullAttention(2, 32), [(1300, 1), (40, 1), (7, 9)]
    q, k, v = random(11, 4, 32), random(11, 2, 32, seed=1), random(11, 2, 32, seed=2)

    def run(rows: list[int]) -> Tensor:
        chosen = [lengths[row] for row in rows]
        tokens = torch.cat([torch.arange([0, 1, 2, 11][row], [0, 1, 2, 11][row + 1]) for row in rows])
        batch, cache = batch_of(chosen), cache_of(spec, torch.float16, blocks=128)
        for row, (old, _) in zip(rows, chosen, strict=True):
            position = torch.arange(old)
            slots = batch.tables[0].block_table[rows.index(row), position // 16] * 16 + position % 16
            for number, tensor in enumerate(cache[0].tensors):
                tensor.flatten(0, 1)[slots.long()] = random(old, 2, 32, seed=10 * row + number).half()
        with threads(2):
            return attend_cpu.attend(q[tokens], k[tokens], v[tokens], None, batch, cache[0], scale=0.2)

    together = run([0, 1, 2])
    for row, part in enumerate(together.split([1, 1, 9])):
        assert torch.equal(run([row]), part)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_head_linear(rows: int, transposed: bool) -> None:
    x = random(rows, 3, 64)[:, :, :32]
    for weight in (random(3, 32, 32, seed=1), q8_0(3, 32, 32), random(3, 32, 32, seed=2).bfloat16()):
        wanted = head_reference.head_linear(x, weight, transposed=transposed)
        near(on_both(lambda: head_cpu.head_linear(x, weight, transposed=transposed)), wanted)  # noqa: B023


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", [*BATCHES, "long prompt"])
def test_attend_latent(name: str, transposed: bool, packed: bool) -> None:
    lengths = [(1100, 150), (3, 1)] if name == "long prompt" else BATCHES[name]
    heads, nope, rope, rank, v_dim = 4, 32, 16, 64, 32
    make = filled(LatentAttention(rank, rope), lengths, torch.float32)
    tokens = sum(new for _, new in lengths) + 2
    shape = (heads, rank, nope) if transposed else (heads, nope, rank)
    k_up = q8_0(*shape) if packed else random(*shape, seed=5, scale=0.1)
    v_up = q8_0(heads, v_dim, rank, seed=1) if packed else random(heads, v_dim, rank, seed=6, scale=0.1)
    q, kv = random(tokens, heads, nope + rope), random(tokens, rank + rope, seed=1)
    angles = random(tokens, rope // 2, seed=3)
    rotary = Rotary(angles.cos(), angles.sin(), True)

    def run(attend: Callable[..., Tensor]) -> Tensor:
        cache, batch = make()
        return attend(
            *q.split((nope, rope), -1), *kv.split((rank, rope), -1), k_up, v_up, rotary, batch, cache[0],
            scale=0.15, k_up_transposed=transposed,
        )  # fmt: skip

    found, wanted = on_both(lambda: run(attend_cpu.attend_latent)), run(attend_reference.attend_latent)
    if packed:
        near(found, wanted, 2)
    else:
        close(found, wanted, 5e-5)


ROUTINGS = {
    "softmax": Routing(top_k=3),
    "normalised": Routing(top_k=2, normalize=True, scale=2.5),
    "sigmoid": Routing(top_k=4, scoring="sigmoid", normalize=True),
    "groups by best": Routing(top_k=3, num_groups=4, top_groups=2),
    "groups by two": Routing(top_k=4, scoring="sigmoid", num_groups=4, top_groups=2, group_score="top2", scale=1.5),
    "sparsemixer": Routing(top_k=2, scoring="sparsemixer", jitter=0.05),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_route(name: str) -> None:
    logits, bias = random(33, 16), None if name == "sparsemixer" else random(16, seed=1)
    indices, weights = route_reference.route(logits, ROUTINGS[name], bias)
    order = indices.argsort(-1)
    found = on_both(lambda: route_cpu.route(logits, ROUTINGS[name], bias)[0])
    assert torch.equal(found.sort(-1).values, indices.sort(-1).values)
    with threads(2):
        ours = route_cpu.route(logits, ROUTINGS[name], bias)
    close(ours[1].gather(-1, ours[0].argsort(-1)), weights.gather(-1, order))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_moe(rows: int, packed: bool) -> None:
    x, add = random(rows, 64), random(rows, 64, seed=1)
    indices = torch.stack(
        [torch.randperm(9, generator=torch.Generator().manual_seed(i))[:3] for i in range(rows)]
    ).int()
    weights = random(rows, 3, seed=2).softmax(-1)
    make = q8_0 if packed else random
    gate, up, down = (
        ExpertWeights([make(*shape, seed=10 * e + i) for e in range(10)])
        for i, shape in enumerate(((96, 64), (96, 64), (64, 96)))
    )
    for given in (None, add):
        wanted = moe_reference.moe(x, indices, weights, gate, up, down, add=given)
        near(on_both(lambda: moe_cpu.moe(x, indices, weights, gate, up, down, add=given)), wanted, 2)  # noqa: B023


def test_other_compute_types_go_to_the_reference() -> None:
    x, weight = random(3, 64).bfloat16(), random(5, 64, seed=1).bfloat16()
    assert torch.equal(linear_cpu.linear(x, [weight], [None])[0], linear_reference.linear(x, [weight], [None])[0])
