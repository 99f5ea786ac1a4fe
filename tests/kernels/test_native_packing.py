"""Weights packed in tiles: the same numbers as raw ones, to the bit, in little more memory than the file has."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from kernels.native_cases import needs_native, q8_0, threads
from kernels.test_native_matmul import INTEGER, ISAS, activations, execute, multiply, packed, pool, weight_of
from oracle.checkpoints import sample_ids
from zoo import LLM
from zoo.errors import UsageError
from zoo.formats.ggml import GGML_BY_NAME
from zoo.formats.mapped import MappedFile
from zoo.kernels.embedding import cpu as embedding_cpu
from zoo.kernels.embedding import reference as embedding_reference
from zoo.kernels.glu import cpu as glu_cpu
from zoo.kernels.linear import cpu as linear_cpu
from zoo.kernels.linear import reference as linear_reference
from zoo.kernels.native import library, structs
from zoo.kernels.native.pool import Pool
from zoo.nn import Embedding, HeadLinear, Linear, LMHead
from zoo.quant.tensor import QuantTensor
from zoo.weights.packing import pack_weights

pytestmark = needs_native

COLUMNS = 1280  # more than a panel
SIZES = (1, 7, 16, 37)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def tiled(isa: str, name: str, rows: int, columns: int = COLUMNS) -> tuple[structs.Weight, structs.Weight, Tensor]:
    """A weight raw and packed, and the memory of the packed one: up to the last byte that may be read."""
    raw, count = (
        weight_of(name, packed(name, rows, columns), columns),
        library.load().zoo_tile_rows(pool(isa, 1), GGML_BY_NAME[name].id),
    )
    assert count in (4, 8, 16)
    memory = torch.full((-(-rows // count), count * raw.row_bytes), 0xAA, dtype=torch.uint8)
    library.load().zoo_pack(pool(isa, 1 + rows % 2), ctypes.addressof(raw), memory.data_ptr())
    other = structs.Weight.from_buffer_copy(raw)
    other.packed, other.data = 1, memory.data_ptr()
    return raw, other, memory


@pytest.mark.parametrize("name", INTEGER)
def test_tiles_are_what_they_are_said_to_be(isa: str, name: str) -> None:
    for rows in SIZES:
        _, _, memory = tiled(isa, name, rows)
        weight = QuantTensor(name, (rows, COLUMNS), {"data": memory}, "tiles")
        disk = QuantTensor(name, (rows, COLUMNS), {"data": torch.from_numpy(packed(name, rows, COLUMNS))})
        assert torch.equal(weight.dequantize(), disk.dequantize())
        index = torch.tensor([[0, rows - 1], [rows // 2, 0]])
        assert torch.equal(weight.rows(index), disk.rows(index))
        count = memory.shape[1] // disk.parts["data"].shape[1]
        assert torch.equal(weight[count:].dequantize(), disk[count:].dequantize())
        assert not memory.view(-1)[-1:].eq(0xAA).all() or rows % count == 0, "the last tile is not filled up"


@pytest.mark.parametrize("name", INTEGER)
def test_products_have_the_bits_of_raw_ones(isa: str, name: str) -> None:
    x = activations(33, COLUMNS)
    for rows in SIZES:
        raw, other, _memory = tiled(isa, name, rows)
        expected = multiply(isa, raw, x)
        for tokens in range(1, 34):
            found = multiply(isa, other, x[:tokens], threads=1 + tokens % 2, room=tokens % 3)
            assert torch.equal(found, expected[:tokens]), f"{rows} rows, {tokens} tokens"


@pytest.mark.parametrize("name", INTEGER)
def test_rows_have_the_bits_of_raw_ones(isa: str, name: str) -> None:
    raw, other, _memory = tiled(isa, name, 37)
    ids = torch.tensor([36, 0, 8, 15, 16, 36, 31], dtype=torch.int32)
    results = []
    for weight in (raw, other):
        out = torch.full((len(ids), COLUMNS), torch.nan)
        execute(isa, 2, structs.Embedding(structs.EMBEDDING, 0.5, ids.data_ptr(), len(ids), weight, out.data_ptr()))
        results.append(out)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", INTEGER)
def test_nothing_behind_the_last_tile_is_read(isa: str, name: str) -> None:
    raw, other, memory = tiled(isa, name, 19)
    x, size = activations(6, COLUMNS), memory.nbytes
    pages = -(-size // mmap.PAGESIZE) + 1
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as region:
        view = ctypes.c_char.from_buffer(region)
        end = ctypes.addressof(view) + (pages - 1) * mmap.PAGESIZE
        protect, libc = [ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE)], ctypes.CDLL(None)
        assert libc.mprotect(*protect, 0) == 0
        ctypes.memmove(end - size, memory.data_ptr(), size)
        other.data = end - size
        for tokens in (1, 2, 6):
            assert torch.equal(multiply(isa, other, x[:tokens]), multiply(isa, raw, x[:tokens]))
        libc.mprotect(*protect, mmap.PROT_READ | mmap.PROT_WRITE)
        del view


def on_disk(name: str, rows: int, columns: int = 64) -> QuantTensor:
    return QuantTensor(name, (rows, columns), {"data": torch.from_numpy(packed(name, rows, columns))})


class Model(torch.nn.Module):
    """A tied table, layers, and what is not to be packed: a stack and a dense weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Embedding(101, 64)
        self.head = LMHead(64, 101, tied_to=self.embed)
        self.gate, self.up, self.dense = Linear(64, 43), Linear(64, 43), Linear(64, 9)
        self.stack = HeadLinear(2, 64, 8)
        for module, weight in (
            (self.embed, on_disk("Q5_1", 101)),
            (self.gate, on_disk("Q4_0", 43)),
            (self.up, q8_0(43, 64, seed=2)),
            (self.dense, torch.ones(9, 64)),
            (self.stack, q8_0(2, 8, 64, seed=3)),
        ):
            module.set_weight("weight", weight)

    def results(self) -> list[Tensor]:
        ids, x = torch.tensor([100, 3, 3], dtype=torch.int32), activations(3, 64)
        gate, up, table = self.gate.weight, self.up.weight, self.embed.weight
        with threads(2):
            return [
                embedding_cpu.embedding(ids, table, dtype=torch.float32, scale=2.0),
                embedding_reference.embedding(ids, table, dtype=torch.float32),
                glu_cpu.glu(x, gate, up),
                linear_reference.linear(x, [table], [None])[0],
                linear_cpu.linear(x[:0], [gate], [None])[0],
                self.head(x),
                self.stack(x[:, None].expand(-1, 2, -1)),
            ]


def test_a_model_is_packed_and_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps, freed = Model(), [], []
    before = model.results()
    raw = [model.embed.weight, model.gate.weight, model.up.weight]
    sizes = [weight.parts["data"].nbytes for weight in raw]
    monkeypatch.setattr("zoo.weights.packing._CHUNK_BYTES", 1000)
    note = pack_weights(
        model, Pool(2), release=lambda *run: freed.append(run), progress=lambda what, *at: steps.append((what, *at))
    )
    assert note == ""
    assert model.embed.weight.layout == model.gate.weight.layout == model.up.weight.layout == "tiles"
    assert model.stack.weight.layout == "ggml"
    assert all(torch.equal(a, b) for a, b in zip(before, model.results(), strict=True))
    for part in (weight.parts["data"] for weight in raw):
        low, high = part.data_ptr(), part.data_ptr() + part.nbytes
        inside = [min(high, first + size) - max(low, first) for first, size in freed]
        assert sum(max(0, size) for size in inside) == 2 * part.nbytes, "given back in steps, then as a whole"
        assert sum(size > 0 for size in inside) > part.nbytes // 1000
    assert steps[-1][1] == steps[-1][2] >= sum(sizes)
    assert len(steps) == 3
    assert {name for name, *_ in steps} == {"pack"}
    packed_weight = model.gate.weight
    assert pack_weights(model, Pool(2)) == ""
    assert model.gate.weight is packed_weight, "packed twice"


def test_a_model_that_does_not_fit_twice_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    total = model.embed.weight.nbytes + model.gate.weight.nbytes
    for available, model_bytes in ((total, total), (4 * total, 5 * total)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda a=available: type("Memory", (), {"available": a}))
        assert "would be packed, and 0.0 GB of memory are available" in pack_weights(
            model, Pool(1), model_bytes=model_bytes
        )
        assert model.gate.weight.layout == "ggml"
    assert pack_weights(model, Pool(1), model_bytes=4 * total) == ""
    assert model.gate.weight.layout == "tiles"


def test_tiles_refuse_what_they_cannot_do() -> None:
    model = Model()
    pack_weights(model, Pool(1))
    weight = model.gate.weight
    with pytest.raises(UsageError, match=r"row 3 of .* lies inside a tile"):
        weight[3:]
    for index in (43, -1):
        with pytest.raises(UsageError, match=r"a row index is outside 0..42"):
            weight.rows(torch.tensor([0, index]))
    with pytest.raises(UsageError, match="layout of a kernel"):
        weight.view((43, 1, 64))
    assert weight.rows(torch.zeros(0, dtype=torch.int64)).shape == (0, 64)


def resident(address: int) -> int:
    """Bytes of the map at an address that lie in memory for this process."""
    found = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif line.startswith("Rss:") and inside:
            found += int(line.split()[1]) << 10
    return found


def test_pages_of_a_file_are_given_back(tmp_path: Path) -> None:
    path, content = tmp_path / "file", np.random.default_rng(0).bytes(1 << 20)
    path.write_bytes(content)
    file = MappedFile(path)
    view = np.frombuffer(file.view(100, (1 << 20) - 100), np.uint8)
    address = view.ctypes.data
    assert view.tobytes() == content[100:]
    assert resident(address) == 1 << 20
    file.release(address, view.nbytes)
    assert resident(address) == mmap.PAGESIZE, "only the page that begins before those bytes stays"
    other = np.frombuffer(content, np.uint8).copy()
    file.release(other.ctypes.data, other.nbytes)
    assert other.tobytes() == content, "memory of others was touched"
    assert view.tobytes() == content[100:], "the bytes are read anew"
    file.close()
    file.release(address, view.nbytes)


def test_the_demo_model_says_the_same_and_has_one_copy_of_its_weights(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sample_ids(24, 40000)
    monkeypatch.setenv("ZOO_CPU_REPACK", "off")
    with LLM.load(smollm2, context=64) as llm:
        expected = llm.logits(ids)
        assert any("ZOO_CPU_REPACK is off" in note for note in llm.notes)
        assert llm.model.model.layers[0].mlp.gate_proj.weight.layout == "ggml"
    del llm
    gc.collect()
    monkeypatch.setenv("ZOO_CPU_REPACK", "on")
    before = psutil.Process().memory_info().rss
    with LLM.load(smollm2, context=64) as llm:
        grown = psutil.Process().memory_info().rss - before
        assert torch.equal(llm.logits(ids), expected)
        assert not any("as they lie on disk" in note for note in llm.notes)
        assert llm.model.model.layers[0].mlp.gate_proj.weight.layout == "tiles"
    assert grown < smollm2.stat().st_size + (100 << 20)
