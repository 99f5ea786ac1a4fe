"""Native products with packed weights: each type on each instruction set of this processor, against the reference.

ZOO_CPU_ISA limits the tests to one set, so that they can be carried to a processor with another one.
"""

from __future__ import annotations

import ctypes
import functools
import mmap

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from oracle import ggml
from zoo.formats.ggml import GGML_BY_NAME
from zoo.kernels.native import library, structs
from zoo.quant.dequant import DEQUANT
from zoo.quant.tensor import QuantTensor
from zoo.settings import Settings

USABLE, REASON = library.usable()
pytestmark = pytest.mark.skipif(not USABLE, reason=REASON)

ISAS = [name for name, has in library.instruction_sets().items() if has] if USABLE else ["none"]
if named := Settings.from_env().cpu_isa:
    ISAS = [named]

INTEGER = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""Types that are multiplied with int8 activations; all others are in float32."""

DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COLUMNS = 768  # 3 blocks of 256; more than a panel of floats
LONG = 1280  # more than a panel of integers


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@functools.cache
def pool(isa: str, threads: int) -> int:
    handle: int | None = library.load().zoo_pool_create(isa.encode(), threads)
    assert handle, f"no pool with {isa}"
    return handle


def execute(isa: str, threads: int, op: ctypes.Structure) -> None:
    addresses = (ctypes.c_void_p * 1)(ctypes.addressof(op))
    assert library.load().zoo_execute(pool(isa, threads), addresses, 1) == 0


def struct(
    name: str, data: int, rows: int, columns: int, row_bytes: int, fp8: QuantTensor | None = None
) -> structs.Weight:
    type = structs.FP8_E4M3 if fp8 else GGML_BY_NAME[name].id
    weight = structs.Weight(type, 0, rows, columns, data, row_bytes, None, 0, 0, 0)
    if fp8 is not None and fp8.block is not None:
        scale = fp8.parts["scale"]
        weight.scale, weight.scale_stride = scale.data_ptr(), scale.stride(0)
        weight.block_rows, weight.block_cols = fp8.block
    return weight


def multiply(
    isa: str,
    weight: structs.Weight,
    x: Tensor,
    *,
    threads: int = 1,
    bias: Tensor | None = None,
    room: int = 0,
    prompt: int | None = None,
) -> Tensor:
    """The product by one `linear` op; `room` floats lie between the rows of y, and nothing may write to them.

    Rows of x from `prompt` on belong to prompts; None: no row does.
    """
    y = torch.full((len(x), weight.rows + room), torch.nan)
    address = None if bias is None else bias.data_ptr()
    parts = (structs.Part * 1)(structs.Part(weight, y.data_ptr(), y.shape[1], address))
    first = len(x) if prompt is None else prompt
    op = structs.Linear(structs.LINEAR, 1, x.data_ptr(), len(x), x.stride(0), first, ctypes.addressof(parts))
    execute(isa, threads, op)
    assert y[:, weight.rows :].isnan().all(), "the product wrote beyond its rows"
    return y[:, : weight.rows]


@functools.cache
def packed(name: str, rows: int, columns: int) -> NDArray[np.uint8]:
    """Gaussian weights, quantised by ggml."""
    values = np.random.default_rng(rows).standard_normal((rows, columns), dtype=np.float32)
    if name in DENSE:
        return torch.from_numpy(values).to(DENSE[name]).view(torch.uint8).numpy().copy()
    kind = GGML_BY_NAME[name]
    if name != "Q8_K":
        return ggml.quantize(values, kind.id, kind.row_bytes(columns))
    blocks = np.random.default_rng(rows).integers(0, 256, (rows, columns // 256, kind.block_bytes), dtype=np.uint8)
    blocks[..., :4] = np.array([0.01], np.float32).view(np.uint8)  # ggml never quantises into it
    return blocks.reshape(rows, -1)


def unpacked(name: str, data: NDArray[np.uint8], columns: int) -> Tensor:
    return QuantTensor(name, (len(data), columns), {"data": torch.from_numpy(data)}).dequantize()


def weight_of(name: str, data: NDArray[np.uint8], columns: int) -> structs.Weight:
    return struct(name, data.ctypes.data, len(data), columns, data.strides[0])


def activations(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, name: str) -> Tensor:
    """What int8 makes of x for a type, in float64.

    Types with blocks of 256 have one scale of x per 128 columns, and 32 of them are doubled as often as they can be.
    """
    wide = GGML_BY_NAME[name].block_elements == 256
    blocks = x.view(len(x), -1, 4 if wide else 1, 32)
    largest, most = blocks.abs().amax(3, keepdim=True), 112 if wide else 127
    shared = largest.amax(2, keepdim=True).clamp_min(1e-30)
    doubled = (shared / largest).log2().floor().clamp(0, 7)
    q = (blocks * (most / shared * doubled.exp2())).round()
    return (q.double() * (shared / most).double() / doubled.double().exp2()).view_as(x)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", sorted(DEQUANT))
def test_rows_have_the_bits_of_the_reference(isa: str, name: str) -> None:
    rows, columns = 300, 512
    data = np.random.default_rng(0).integers(0, 256, (rows, GGML_BY_NAME[name].row_bytes(columns)), dtype=np.uint8)
    ids, out = torch.arange(rows, dtype=torch.int32), torch.full((rows, columns), torch.nan)
    table = weight_of(name, data, columns)
    execute(isa, 2, structs.Embedding(structs.EMBEDDING, 1.0, ids.data_ptr(), rows, table, out.data_ptr()))
    expected = unpacked(name, data, columns)
    same = (out.view(torch.int32) == expected.view(torch.int32)) | (out.isnan() & expected.isnan())
    assert same.all(), f"{int((~same).sum())} differ, the first at {(~same).nonzero()[0].tolist()}"


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K", "Q6_K", "Q8_0", "F32"])
def test_a_prompt_longer_than_is_taken_at_once(isa: str, name: str) -> None:
    """Tokens and rows are worked on in parts that stay in a cache: none may be lost or taken twice where parts meet."""
    data, x = packed(name, 300, LONG), activations(450, LONG)
    weight = weight_of(name, data, LONG)
    whole = multiply(isa, weight, x)
    assert distance(whole, x @ unpacked(name, data, LONG).T) < 0.01
    for token in (0, 15, 16, 399, 400, 449):
        assert torch.equal(whole[token], multiply(isa, weight, x[token : token + 1])[0])


@pytest.mark.parametrize("name", INTEGER)
def test_columns_of_all_magnitudes(isa: str, name: str) -> None:
    """A large column must not take the digits of those that it shares a scale with, nor what is all zero."""
    data, powers = packed(name, 37, COLUMNS), torch.arange(9 * COLUMNS // 32).view(9, -1, 1) * 7 % 23 - 12
    x = (activations(9, COLUMNS).view(9, -1, 32) * powers.float().exp2() * (powers > -12)).view(9, -1)
    x[5:, 3] = 1e4
    weight, reference = weight_of(name, data, COLUMNS), unpacked(name, data, COLUMNS).double()
    for large in (0, 5):
        tokens = slice(large, large + 4)
        y = multiply(isa, weight, x[tokens]).double()
        assert distance(y, rounded(x[tokens], name) @ reference.T) < 2e-6
    # What the large column adds is known to a digit; without it and its own block the rest is as it was
    y = multiply(isa, weight, x[5:]).double() - rounded(x[5:], name)[:, :32] @ reference[:, :32].T
    assert distance(y, x[5:, 32:].double() @ reference[:, 32:].T) < 0.05


@pytest.mark.parametrize("name", sorted(DEQUANT))
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_every_number_of_tokens(isa: str, name: str, rows: int) -> None:
    data, x = packed(name, rows, COLUMNS), activations(33, COLUMNS)
    weight, reference = weight_of(name, data, COLUMNS), unpacked(name, data, COLUMNS)
    expected = (rounded(x, name) if name in INTEGER else x.double()) @ reference.double().T
    y = multiply(isa, weight, x, room=3)
    assert distance(y, expected) < 2e-6
    assert distance(y, x @ reference.T) < (0.01 if name in INTEGER else 2e-6)
    for tokens in range(1, 33):
        found = multiply(isa, weight, x[:tokens], threads=1 + tokens % 2, room=tokens % 3)
        assert torch.equal(found, y[:tokens]), f"{tokens} tokens: rows differ from those among 33"


@pytest.mark.parametrize("name", sorted(DEQUANT))
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_every_number_of_tokens_of_a_prompt(isa: str, name: str, rows: int) -> None:
    """Where a processor rounds prompts in another way, to bfloat16, it must not be less exact than int8."""
    data, x = packed(name, rows, COLUMNS), activations(33, COLUMNS)
    weight, expected = weight_of(name, data, COLUMNS), x.double() @ unpacked(name, data, COLUMNS).double().T
    answers, y = multiply(isa, weight, x), multiply(isa, weight, x, room=3, prompt=0)
    assert distance(y, expected) <= max(distance(answers, expected), 2e-6)
    for tokens in range(1, 33):
        found = multiply(isa, weight, x[:tokens], threads=1 + tokens % 2, room=tokens % 3, prompt=0)
        assert torch.equal(found, y[:tokens]), f"{tokens} tokens: rows differ from those among 33"
    for prompt in (1, 2, 7, 16, 20, 32):
        found = multiply(isa, weight, x, threads=2, room=1, prompt=prompt)
        assert torch.equal(found, torch.cat((answers[:prompt], y[prompt:]))), f"a prompt after {prompt} other tokens"


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K", "Q6_K", "Q8_0", "Q2_K"])
@pytest.mark.parametrize(("rows", "columns"), [(600, LONG), (300, 256)])
def test_a_prompt_longer_than_a_panel(isa: str, name: str, rows: int, columns: int) -> None:
    data, x, bias = packed(name, rows, columns), activations(530, columns), torch.randn(rows)
    weight = weight_of(name, data, columns)
    whole = multiply(isa, weight, x, prompt=0, threads=2)
    assert distance(whole, x @ unpacked(name, data, columns).T) < 0.01
    assert torch.equal(multiply(isa, weight, x, prompt=0, bias=bias, room=5), whole + bias)
    for token in (0, 15, 16, 255, 256, 511, 512, 529):
        assert torch.equal(whole[token], multiply(isa, weight, x[token : token + 1], prompt=0)[0])


@pytest.mark.parametrize("name", sorted(DEQUANT))
@pytest.mark.parametrize("prompt", [None, 0])
def test_a_row_depends_on_nothing_but_itself(isa: str, name: str, prompt: int | None) -> None:
    data, x = packed(name, 75, LONG), activations(7, LONG)
    weight = weight_of(name, data, LONG)
    y = multiply(isa, weight, x, prompt=prompt)
    others = activations(7, LONG, seed=1) * 1e6
    others[3], others[5] = x[3], torch.inf
    others[6, 11] = torch.nan
    for threads in (1, 2, 3, 8):
        assert torch.equal(multiply(isa, weight, x, threads=threads, prompt=prompt), y)
        assert torch.equal(multiply(isa, weight, others, threads=threads, prompt=prompt)[3], y[3])
    alone = multiply(isa, weight, others[[6]], prompt=prompt)
    assert alone.isnan().all(), "a NaN in x got lost"
    assert not multiply(isa, weight, others[[5]], prompt=prompt).isfinite().any(), "an infinity in x got lost"


@pytest.mark.parametrize("name", sorted(DEQUANT))
@pytest.mark.parametrize("prompt", [None, 0])
def test_unaligned_and_up_to_the_last_byte_of_a_map(isa: str, name: str, prompt: int | None) -> None:
    """A file's last tensor may end with the map: the byte after it cannot be read."""
    data, x = packed(name, 19, COLUMNS), activations(3, COLUMNS)
    expected = multiply(isa, weight_of(name, data, COLUMNS), x, prompt=prompt)
    pages = -(-(data.nbytes + 64) // mmap.PAGESIZE) + 1
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as region:
        view = ctypes.c_char.from_buffer(region)
        start, end = ctypes.addressof(view), ctypes.addressof(view) + (pages - 1) * mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)
        protect = [ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE)]
        assert libc.mprotect(*protect, 0) == 0
        for offset in (*range(8), 13, 16, 31):
            place = end - data.nbytes - offset
            ctypes.memmove(place, data.ctypes.data, data.nbytes)
            weight = struct(name, place, len(data), COLUMNS, data.strides[0])
            found = multiply(isa, weight, x, prompt=prompt), multiply(isa, weight, x[:1], threads=2, prompt=prompt)
            assert torch.equal(found[0], expected), f"{offset} bytes before the end"
            assert torch.equal(found[1], expected[:1]), f"{offset} bytes before the end"
        assert start < end - data.nbytes - 31
        libc.mprotect(*protect, mmap.PROT_READ | mmap.PROT_WRITE)
        del view


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "Q6_K", "BF16", "IQ2_XS"])
def test_strides_and_bias(isa: str, name: str) -> None:
    wide = packed(name, 40, 2 * COLUMNS)
    half = wide.strides[0] // 2
    weight = struct(name, wide.ctypes.data + half, 40, COLUMNS, wide.strides[0])  # the right half of each row
    x, bias = activations(5, COLUMNS + 8)[:, 4:-4], torch.randn(40)
    copy = wide[:, half:].copy()
    alone = multiply(isa, weight_of(name, copy, COLUMNS), x.contiguous())
    for tokens in (1, 5):
        assert torch.equal(multiply(isa, weight, x[:tokens], bias=bias), alone[:tokens] + bias)


@pytest.mark.parametrize("name", INTEGER)
def test_extreme_activations(isa: str, name: str) -> None:
    """Largest integers all over: the sums of 16 bits inside must not overflow. Zeros and tiny numbers give zeros."""
    columns = 512
    size, rng = GGML_BY_NAME[name].row_bytes(columns), np.random.default_rng(5)
    data = packed(name, 64, columns).copy()
    quants = data.reshape(64, -1, GGML_BY_NAME[name].block_bytes)
    first = {"Q2_K": 16, "Q3_K": 0, "Q4_K": 16, "Q5_K": 16, "Q6_K": 0, "IQ4_XS": 8, "Q5_0": 2, "Q5_1": 4, "Q4_1": 4}
    last = {"Q2_K": 80, "Q3_K": 96, "Q6_K": 192}
    span = slice(first.get(name, 1 if name == "MXFP4" else 2), last.get(name, GGML_BY_NAME[name].block_bytes))
    quants[:32, :, span] = rng.choice([0x00, 0xFF, 0x80, 0x7F], (32, quants.shape[1], 1))
    assert data.shape == (64, size)
    x = torch.stack([torch.ones(columns), -torch.ones(columns), torch.zeros(columns), torch.full((columns,), 1e-40)])
    x = torch.cat((x, (torch.randint(0, 2, (4, columns)) * 2 - 1).float()))
    for tokens in (1, 8):
        y = multiply(isa, weight_of(name, data, columns), x[:tokens])
        expected = x[:tokens].double() @ unpacked(name, data, columns).double().T
        scale = unpacked(name, data, columns).double().abs().sum(1)
        assert ((y.double() - expected).abs() <= 2e-6 * scale).all()
        assert not y[2:4].any()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("columns", [1, 3, 7, 100, 333])
def test_dense_rows_of_any_length(isa: str, name: str, columns: int) -> None:
    data, x = packed(name, 45, columns), activations(9, columns)
    expected = x.double() @ unpacked(name, data, columns).double().T
    for tokens in (1, 9):
        y = multiply(isa, weight_of(name, data, columns), x[:tokens], threads=2)
        assert distance(y, expected[:tokens]) < 1e-6


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((576, 200), (128, 128)),  # the last block is cut on both sides
        ((5, 7), (128, 128)),
        ((300, 64), (1, 64)),  # a scale per row
        ((40, 96), (40, 96)),  # one scale
        ((64, 96), (16, 32)),
        ((33, 100), (7, 9)),
        ((70, 700), (128, 128)),
    ],
)
def test_fp8_blocks(isa: str, shape: tuple[int, int], block: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn).view(torch.uint8)
    scale = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), generator=generator)
    fp8 = QuantTensor("F8_E4M3", shape, {"data": values, "scale": scale}, block=block)
    weight = struct("", values.data_ptr(), *shape, values.stride(0), fp8)
    x = activations(9, shape[1])
    expected = x.double() @ fp8.dequantize().double().T
    y = multiply(isa, weight, x, threads=2)
    assert distance(y, expected) < 1e-6
    assert torch.equal(multiply(isa, weight, x[:1]), y[:1])


def test_every_fp8_code(isa: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(9, 1)
    fp8 = QuantTensor("F8_E4M3", (9, 256), {"data": codes, "scale": torch.ones(1, 1)}, block=(128, 256))
    weight = struct("", codes.data_ptr(), 9, 256, 256, fp8)
    expected = fp8.dequantize()[0]
    for code in (*range(0, 127, 9), 126, 127, 128, 129, 254, 255):
        other = codes.clone().fill_(0)
        other[:, code] = code
        weight.data = other.data_ptr()
        pick = torch.zeros(1, 256)
        pick[0, code] = 1
        y = multiply(isa, weight, pick)
        assert torch.equal(y.nan_to_num(), expected[code].expand(1, 9).nan_to_num()), code
        assert bool(y.isnan().all()) == (code & 127 == 127)


@pytest.mark.skipif(len(ISAS) < 2, reason=f"only {ISAS} is to be tested here")
@pytest.mark.parametrize("name", sorted(DEQUANT))
def test_instruction_sets_agree(name: str) -> None:
    data, x = packed(name, 37, COLUMNS), activations(6, COLUMNS)
    first, *others = [multiply(isa, weight_of(name, data, COLUMNS), x) for isa in ISAS]
    for other in others:
        assert distance(other, first) < 2e-6
