"""The safetensors reader: against files of the safetensors library, and against files that mean harm."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from measure import processor_seconds
from zoo.errors import FormatError, SafetensorsError, WeightError
from zoo.formats.safetensors import DTYPE_BITS, SafetensorsFile, SafetensorsSet

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def entry(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- what is right -------------------------------------------------------------------------------------------------


def test_all_dtypes_that_torch_writes(tmp_path: Path) -> None:
    raw = torch.randint(0, 2, (4, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensors = {name: raw.view(dtype).clone() for name, dtype in TORCH_DTYPES.items()}
    path = tmp_path / "m.safetensors"
    save_torch(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(TORCH_DTYPES)
    for name, value in load_torch(path).items():
        info = file.tensors[name]
        assert (info.name, info.type, info.shape, info.path) == (name, name, tuple(value.shape), path)
        found = torch.frombuffer(bytearray(file.read(name)), dtype=torch.uint8)
        assert torch.equal(found, value.contiguous().view(torch.uint8).flatten())
        assert path.read_bytes()[info.offset : info.offset + info.nbytes] == bytes(file.read(name))


def test_the_types_are_those_of_the_library(tmp_path: Path) -> None:
    """Every dtype of the table is one to the library, with this many bits; a dtype it does not know is none to zoo."""
    for dtype, bits in DTYPE_BITS.items():
        path = write(tmp_path / "m.safetensors", of({"a": entry(dtype, (8,), (0, bits))}, bytes(bits)))
        with safe_open(path, "np") as library:
            assert list(library.keys()) == ["a"]
        assert SafetensorsFile(path).tensors["a"].nbytes == bits
    with pytest.raises(SafetensorError) as caught:
        safe_open(write(tmp_path / "m.safetensors", of({"a": entry("X")}, bytes(2))), "np")
    known = str(caught.value).partition("expected one of")[2].partition(" at line")[0]
    assert {name.strip(" `") for name in known.split(",")} == set(DTYPE_BITS)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_numpy({"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}, path)
    file = SafetensorsFile(path)
    assert (file.tensors["scalar"].shape, file.tensors["empty"].shape) == ((), (0, 3))
    assert np.frombuffer(file.read("scalar"), np.float32).item() == 2.5
    assert bytes(file.read("empty")) == b""


def test_order_in_the_header_is_free(tmp_path: Path) -> None:
    """The library takes entries in any order, and writers in other languages sort by name."""
    content = of({"a": entry(offsets=(2, 4)), "b": entry(offsets=(0, 2))}, b"1234")
    path = write(tmp_path / "m.safetensors", content)
    with safe_open(path, "np") as library:
        expected = {name: library.get_tensor(name).tobytes() for name in ("a", "b")}
    file = SafetensorsFile(path)
    assert list(file.tensors) == ["b", "a"]
    assert {name: bytes(file.read(name)) for name in ("a", "b")} == expected


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    for opened in (SafetensorsFile, SafetensorsSet.open):
        file = opened(write(tmp_path / "m.safetensors", of({"a": entry()}, b"12")))
        view = file.read("a")
        assert view.readonly
        file.close()
        assert bytes(view) == b"12"
        with pytest.raises(SafetensorsError, match="used after it was closed"):
            file.read("a")
        with pytest.raises(WeightError, match=r"m\.safetensors has no tensor 'b'"):
            file.read("b")


def test_a_giant_file_costs_its_header_only(tmp_path: Path) -> None:
    content = of({"a": entry("F32", (1 << 30, 16), (0, 64 << 30)), "b": entry(offsets=(64 << 30, (64 << 30) + 2))})
    path = write(tmp_path / "m.safetensors", content)
    with path.open("r+b") as out:
        out.seek(len(content) + (64 << 30))
        out.write(b"12")
    tracemalloc.start()
    file = SafetensorsFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert bytes(file.read("b")) == b"12"


# --- what is wrong -------------------------------------------------------------------------------------------------

TWICE = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "byte 0: has 0 bytes, too few"),
    "seven bytes": (bytes(7), "byte 7: has 7 bytes, too few"),
    "header of 0": (of(b"", bytes(8)), "byte 8: the header begins with b''"),
    "header of 2^63": (of({}, length=1 << 63), "byte 0: claims a header of 9223372036854775808 bytes"),
    "header past the end": (of({}, length=3), "byte 0: claims a header of 3 bytes"),
    "no JSON": (of(b"{hello}"), "byte 8: the header is no valid JSON: .* line 1 column 2"),
    "no object": (of([]), r"byte 8: the header begins with b'\[\]'"),
    "not UTF-8": (of(b'{"\xff":1}'), "byte 8: the header is no valid JSON: no UTF-8 at byte 2"),
    "nested deeply": (of(b'{"a":' + b"[" * 200_000), "byte 8: the header is no valid JSON: nested too deeply"),
    "long number": (of(b'{"a":' + b"1" * 5000 + b"}"), "byte 8: the header is no valid JSON"),
    "key twice": (of(TWICE, bytes(2)), "byte 8: the header is no valid JSON: the key 'a' comes twice"),
    "key in an entry twice": (of(TWICE.replace(b'"shape"', b'"dtype"'), bytes(2)), "the key 'dtype' comes twice"),
    "overlapping": (of({"a": entry(), "b": entry(offsets=(1, 3))}, bytes(3)), "tensor 'b' overlaps the one before"),
    "the same bytes": (of({"a": entry(), "b": entry()}, bytes(2)), "tensor 'b' overlaps the one before"),
    "hole": (of({"a": entry(), "b": entry(offsets=(3, 5))}, bytes(5)), "tensor 'b' leaves a hole after"),
    "hole at the start": (of({"a": entry(offsets=(1, 3))}, bytes(3)), "tensor 'a' leaves a hole after"),
    "end before begin": (
        of({"a": entry(shape=(0,), offsets=(2, 0))}, bytes(2)),
        r"tensor 'a' lies at \[2, 0\], not inside",
    ),
    "beyond the end": (of({"a": entry(offsets=(0, 2))}, b"1"), r"tensor 'a' lies at \[0, 2\], not inside"),
    "trailing bytes": (of({"a": entry()}, bytes(3)), "byte 70: the tensors end here, but the file has 71 bytes"),
    "no tensors, but bytes": (of({}, b"1"), "byte 10: the tensors end here, but the file has 11 bytes"),
    "shape overflows": (of({"a": entry(shape=(1 << 32, 1 << 31))}, bytes(2)), "tensor 'a' has the impossible shape"),
    "shape wraps to 2": (of({"a": entry(shape=(2, (1 << 63) + 1))}, bytes(2)), "tensor 'a' has the impossible shape"),
    "too many dimensions": (
        of({"a": entry(shape=(1,) * 65, offsets=(0, 1))}, b"1"),
        "tensor 'a' has the impossible shape",
    ),
    "shape of the wrong size": (of({"a": entry(shape=(3,))}, bytes(2)), r"tensor 'a' of U8 \[3\] has 2 bytes"),
    "half a byte": (of({"a": entry("F4", (3,))}, bytes(2)), r"tensor 'a' of F4 \[3\] has 2 bytes"),
    "dtype unknown": (of({"a": entry("U4")}, bytes(2)), "tensor 'a' has the unknown dtype 'U4'; known are BOOL"),
    "dtype missing": (of({"a": {"shape": [2], "data_offsets": [0, 2]}}, bytes(2)), "unknown dtype None"),
    "dtype a list": (of({"a": entry(["U8"])}, bytes(2)), r"unknown dtype \['U8'\]"),
    "shape missing": (of({"a": {"dtype": "U8", "data_offsets": [0, 2]}}, bytes(2)), "impossible shape None"),
    "offsets missing": (of({"a": {"dtype": "U8", "shape": [2]}}, bytes(2)), "tensor 'a' lies at None"),
    "entry no object": (of({"a": 5}), "the entry of tensor 'a' is no object"),
    "metadata no map": (of({"__metadata__": [1]}), "__metadata__ is no map of strings"),
    "metadata of numbers": (of({"__metadata__": {"a": 1}}), "__metadata__ is no map of strings"),
    "name of control characters": (of({"\x1b[2J": entry()}, bytes(2)), r"the tensor name '\\x1b\[2J' has characters"),
    "name of half a surrogate": (of(rb'{"\ud800":1}'), r"no valid JSON: \\ud800 at character 2 is half a character"),
    **{
        f"shape {shape}": (of({"a": entry(shape=shape)}, bytes(2)), "tensor 'a' has the impossible shape")
        for shape in ([-2], [2.0], [True, 2], "2", {"2": 2}, [[2]], [float("nan")])
    },
    **{
        f"offsets {offsets}": (of({"a": entry(offsets=offsets)}, bytes(2)), "tensor 'a' lies at")
        for offsets in ([0], [0, 2, 2], [-2, 0], [0, 2.0], [False, 2], [0, 1 << 70], "02")
    },
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    path = write(tmp_path / "m.safetensors", content)
    tracemalloc.start()
    with pytest.raises(SafetensorsError, match=rf"m\.safetensors, .*{message}") as caught:
        SafetensorsFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Processor time against the limit of 50 ms; about 1 ms measured.
    assert processor_seconds(lambda: SafetensorsFile(path), 0.05, SafetensorsError) < 0.05
    assert peak < 10 << 20
    assert caught.value.position is not None
    assert caught.value.remedy


def test_a_header_of_more_than_100_mb(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", of(b"{", length=100_000_001))
    os.truncate(path, 1 << 30)
    with pytest.raises(SafetensorsError, match=r"claims a header of 100000001 bytes .*100000000 are allowed"):
        SafetensorsFile(path)


SMALL = of({"a": entry("F32", (2, 2), (0, 16)), "b": entry(offsets=(16, 18)), "__metadata__": {"k": "v"}}, bytes(18))


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    for length in range(len(SMALL)):
        with pytest.raises(SafetensorsError):
            SafetensorsFile(write(tmp_path / "m.safetensors", SMALL[:length]))
    assert len(SafetensorsFile(write(tmp_path / "m.safetensors", SMALL)).tensors) == 2


@pytest.mark.parametrize("bit", range(8))
def test_a_flip_at_every_header_byte(bit: int, tmp_path: Path) -> None:
    opened = refused = 0
    for position in range(len(SMALL) - 18):
        content = bytearray(SMALL)
        content[position] ^= 1 << bit
        try:
            file = SafetensorsFile(write(tmp_path / "m.safetensors", bytes(content)))
            for name in file.tensors:
                bytes(file.read(name))
            opened += 1
        except SafetensorsError:
            refused += 1
    assert refused > 50
    assert opened + refused == len(SMALL) - 18


def test_a_file_that_shrinks_while_in_use(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", SMALL)
    file = SafetensorsFile(path)
    os.truncate(path, len(SMALL) - 1)
    with pytest.raises(SafetensorsError, match="shrank from"):
        file.read("b")


# --- directories and indexes ---------------------------------------------------------------------------------------

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
A, B = of({"a": entry()}, b"aa"), of({"b": entry()}, b"bb")


def index(**weight_map: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 4}, "weight_map": weight_map}).encode()


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        write(directory / name, content)
    return directory


GOOD: dict[str, tuple[dict[str, bytes], list[str]]] = {
    "one file": ({"model.safetensors": A}, ["model.safetensors"]),
    "one file of another name": ({"consolidated.safetensors": A}, ["consolidated.safetensors"]),
    "index": ({INDEX: index(a=FIRST, b=SECOND), FIRST: A, SECOND: B}, [FIRST, SECOND]),
    "index beside another file": (
        {INDEX: index(a=FIRST, b=SECOND), FIRST: A, SECOND: B, "consolidated.safetensors": A},
        [FIRST, SECOND],
    ),
    "index of free names": (
        {INDEX: index(a="x.safetensors", b="y.safetensors"), "x.safetensors": A, "y.safetensors": B},
        ["x.safetensors", "y.safetensors"],
    ),
    "index that leaves a tensor out": (
        {INDEX: index(a=FIRST), FIRST: of({"a": entry(), "b": entry(offsets=(2, 4))}, bytes(4))},
        [FIRST],
    ),
    "one file before an index": ({"model.safetensors": A, INDEX: index(b=SECOND), SECOND: B}, ["model.safetensors"]),
    "shards without index": ({FIRST: A, SECOND: B}, [FIRST, SECOND]),
    "shards numbered as DeepSeek does": (
        {"model-00001-of-000002.safetensors": A, "model-00002-of-000002.safetensors": B},
        ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"],
    ),
    "shards of another stem": (
        {"consolidated-00001-of-00001.safetensors": A},
        ["consolidated-00001-of-00001.safetensors"],
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_checkpoints_in_directories(case: str, tmp_path: Path) -> None:
    files, names = GOOD[case]
    checkpoint = SafetensorsSet.open(fill(tmp_path, files))
    assert [path.name for path in checkpoint.paths] == names
    expected = {}
    for name in names:
        with safe_open(tmp_path / name, "np") as library:
            expected |= {key: library.get_tensor(key).tobytes() for key in library.keys()}  # noqa: SIM118
    assert {name: bytes(checkpoint.read(name)) for name in checkpoint.tensors} == expected


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_any_shard_opens_the_set(name: str, with_index: bool, tmp_path: Path) -> None:
    fill(tmp_path, {FIRST: A, SECOND: B} | ({INDEX: index(a=FIRST, b=SECOND)} if with_index else {}))
    assert list(SafetensorsSet.open(tmp_path / name).tensors) == ["a", "b"]


def test_a_file_that_is_no_shard_opens_alone(tmp_path: Path) -> None:
    fill(tmp_path, {FIRST: A, SECOND: B, "x.safetensors": of({"c": entry()}, b"cc")})
    assert list(SafetensorsSet.open(tmp_path / "x.safetensors").tensors) == ["c"]


def test_a_set_written_by_huggingface_hub(tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    state = {f"layer.{number}.weight": torch.full((64,), float(number)) for number in range(5)}
    save_torch_state_dict(state, tmp_path, max_shard_size=600)
    checkpoint = SafetensorsSet.open(tmp_path)
    assert len(checkpoint.paths) == 3
    assert set(checkpoint.tensors) == set(state)
    for name, value in state.items():
        assert bytes(checkpoint.read(name)) == value.numpy().tobytes()


BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({}, "holds no .safetensors file"),
    "several": ({"x.safetensors": A, "y.safetensors": B}, r"several .*: x\.safetensors, y\.safetensors; name the file"),
    "two sets": (
        {FIRST: A, "model-00001-of-00003.safetensors": A},
        "holds several safetensors files and no index that says which belong together",
    ),
    "shards missing": (
        {"model-00002-of-00009.safetensors": A},
        r"8 of the 9 shards of 'model' are missing: model-00001-of-00009\.safetensors, .* and 3 more",
    ),
    "no shards": ({"model-00001-of-00000.safetensors": A}, "'model' is named as a set of no shards"),
    "the same tensor in two shards": ({FIRST: A, SECOND: A}, f"{SECOND}: tensor 'a' is also in .*{FIRST}"),
    "index and missing shard": (
        {INDEX: index(a=FIRST, b=SECOND), FIRST: A},
        rf"1 of the files in {INDEX} are missing: {SECOND}",
    ),
    "index without any shard": ({INDEX: index(a=FIRST)}, f"1 of the files in {INDEX} are missing: {FIRST}"),
    "tensor in the wrong shard": (
        {INDEX: index(a=SECOND, b=SECOND), FIRST: A, SECOND: B},
        f"says that tensor 'a' is in {SECOND}, but none of its files has it",
    ),
    "tensors swapped": (
        {INDEX: index(a=SECOND, b=FIRST), FIRST: A, SECOND: B},
        f"says that tensor 'a' is in {SECOND}, but it lies in {FIRST}",
    ),
    "tensor nowhere": (
        {INDEX: index(a=FIRST, c=FIRST), FIRST: A},
        "says that tensor 'c' is in .*none of its files has it",
    ),
    "same tensor in two files of an index": (
        {INDEX: index(a=FIRST, b=SECOND), FIRST: A, SECOND: of({"a": entry(), "b": entry(offsets=(2, 4))}, bytes(4))},
        "tensor 'a' is also in",
    ),
    **{
        f"path {name!r}": ({INDEX: index(a=name)}, "places tensor 'a' in .*, which is no plain .safetensors file name")
        for name in (
            "/etc/passwd",
            "/x.safetensors",
            "../x.safetensors",
            "a/b.safetensors",
            "..",
            "..\\x.safetensors",
            "a\0.safetensors",
            "x.bin",
            "",
            5,
            None,
            ["x.safetensors"],
        )
    },
    "index no JSON": ({INDEX: b"{", FIRST: A}, f"{INDEX}: is no valid JSON"),
    "index empty": ({INDEX: b"", FIRST: A}, f"{INDEX}: is no valid JSON"),
    "index of a key twice": (
        {INDEX: b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}'},
        "the key 'a' comes twice",
    ),
    "index a list": ({INDEX: b"[]"}, "has no object 'weight_map'"),
    "index without weight_map": ({INDEX: b"{}"}, "has no object 'weight_map'"),
    "index of an empty weight_map": ({INDEX: index()}, "has no object 'weight_map'"),
    "index of a list": ({INDEX: b'{"weight_map":["a"]}'}, "has no object 'weight_map'"),
}


@pytest.mark.parametrize("case", BAD)
def test_checkpoints_that_do_not_fit(case: str, tmp_path: Path) -> None:
    files, message = BAD[case]
    with pytest.raises(SafetensorsError, match=message) as caught:
        SafetensorsSet.open(fill(tmp_path, files))
    assert caught.value.remedy


def test_an_index_that_is_too_large(tmp_path: Path) -> None:
    os.truncate(write(tmp_path / INDEX, b"{"), 100_000_001)
    with pytest.raises(SafetensorsError, match="has 100000001 bytes, more than the 100000000 allowed"):
        SafetensorsSet.open(tmp_path)


@pytest.mark.parametrize("name", ["model-00000-of-00002.safetensors", "model-00003-of-00002.safetensors"])
def test_a_shard_that_the_set_leaves_out(name: str, tmp_path: Path) -> None:
    fill(tmp_path, {FIRST: A, SECOND: B, name: of({"c": entry()}, b"cc")})
    with pytest.raises(SafetensorsError, match=f"{name}: is named as a shard, but its count of shards leaves it out"):
        SafetensorsSet.open(tmp_path / name)
    write(tmp_path / INDEX, index(a=FIRST, b=SECOND))
    with pytest.raises(SafetensorsError, match=f"{name}: is named as a shard, but {INDEX} leaves it out"):
        SafetensorsSet.open(tmp_path / name)


def test_links(tmp_path: Path) -> None:
    """A snapshot of the hub cache is links into ../../blobs. What they lead to must be a file."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, content in {FIRST: A, SECOND: B, INDEX: index(a=FIRST, b=SECOND)}.items():
        write(blobs / f"blob-of-{name}", content)
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    checkpoint = SafetensorsSet.open(snapshot)
    assert checkpoint.paths == (snapshot / FIRST, snapshot / SECOND)
    assert bytes(checkpoint.read("b")) == b"bb"
    for target, message in {
        "../../blobs": "not a regular file",
        "/dev/zero": "not a regular file",
        "../../gone": r"is a link to \.\./\.\./gone, which does not exist",
    }.items():
        (snapshot / SECOND).unlink()
        (snapshot / SECOND).symlink_to(target)
        with pytest.raises(FormatError, match=f"{SECOND}: {message}"):
            SafetensorsSet.open(snapshot)
