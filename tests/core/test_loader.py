"""The loader: every weight finds its place or is named in an error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor, nn

from zoo.errors import ConfigError, DeviceError, UsageError, WeightError
from zoo.formats.tensor import TensorInfo
from zoo.hooks import LoadOptions
from zoo.kernels import Routing
from zoo.nn import Embedding, Experts, HeadLinear, Linear, LMHead, RMSNorm, RopeParameters, RotaryEmbedding, Router
from zoo.quant.tensor import QuantTensor
from zoo.weights.loader import load_model, resolve_cache_dtype, resolve_device, resolve_dtype
from zoo.weights.names import Apply, Expert, NameMap, Rows

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int8: "I8"}
TYPES |= {torch.float8_e4m3fn: "F8_E4M3", torch.int32: "I32", torch.float8_e5m2: "F8_E5M2"}
D, F, E = 32, 64, 3


@dataclass
class Source:
    """What the loader reads of a ModelSource, over tensors in memory."""

    config: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("model.file")
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    data: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, name: str, value: Tensor) -> None:
        raw = value.contiguous().view(torch.uint8) if value.ndim else value.reshape(1).view(torch.uint8)
        self.add(name, TYPES[value.dtype], tuple(value.shape), raw.numpy().reshape(-1))

    def pack(self, name: str, value: Tensor, kind: str = "Q8_0") -> None:
        data = quants.quantize(value.numpy(), GGMLQuantizationType[kind])
        self.add(name, kind, tuple(value.shape), data.reshape(-1))

    def add(self, name: str, kind: str, shape: tuple[int, ...], data: np.ndarray) -> None:
        self.data[name] = data
        self.tensors[name] = TensorInfo(name, kind, shape, self.path, 0, data.nbytes)

    def read(self, name: str) -> memoryview:
        return memoryview(self.data[name]).toreadonly()

    def address(self, name: str) -> int:
        return self.data[name].ctypes.data


@dataclass
class Config:
    tie_word_embeddings: bool = False


class Tiny(nn.Module):
    """One of each leaf."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.config = Config(tied)
        self.embed = Embedding(10, D)
        self.rope = RotaryEmbedding(RopeParameters(dim=8))
        self.norm = RMSNorm(D, 1e-5)
        self.q = Linear(D, 2 * D, bias=True)
        self.k = Linear(D, D)
        self.router = Router(D, E, Routing(2), correction=True)
        self.experts = Experts(E, D, F)
        self.heads = HeadLinear(2, D, 8)
        self.lm_head = LMHead(D, 10, tied_to=self.embed if tied else None)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def full(*, tied: bool = False, leave: tuple[str, ...] = ()) -> Source:
    source = Source()
    for name, shape in shapes(Tiny(tied=tied)).items():
        if name not in leave:
            source.put(name, torch.randn(shape, generator=torch.Generator().manual_seed(len(name))))
    return source


IDENTITY = NameMap({}, identity=True)


def load(source: Source, names: NameMap = IDENTITY, *, tied: bool = False, **options: Any) -> Tiny:
    values = {"device": "cpu", "dtype": "float32", **options}
    return load_model(source, LoadOptions(**values), Tiny(tied=tied), names)  # type: ignore[arg-type]


def names(patterns: dict[str, Any]) -> NameMap:
    return NameMap(patterns, identity=True)


# --- What fits ---


def test_every_weight_is_where_it_belongs_and_is_not_copied() -> None:
    source = full()
    model = load(source)
    for name in source.tensors:
        path, _, leaf = name.rpartition(".")
        value = getattr(model.get_submodule(path), leaf)
        value = value.stacked if path == "experts" else value
        wanted = torch.from_numpy(source.data[name]).view(torch.float32).view(value.shape)
        assert torch.equal(value, wanted)
        assert value.data_ptr() == source.address(name)
    assert not model.training
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())


def test_types_stay_as_they_are_in_the_file() -> None:
    source = full(leave=("q.weight", "k.weight", "embed.weight", "norm.weight"))
    source.pack("q.weight", torch.randn(2 * D, D), "Q4_0")
    source.put("k.weight", torch.randn(D, D).bfloat16())
    source.pack("embed.weight", torch.randn(10, D))
    source.put("norm.weight", torch.randn(D).half())
    model = load(source, dtype="bfloat16")
    assert isinstance(model.q.weight, QuantTensor)
    assert model.q.weight.type == "Q4_0"
    assert model.q.weight.parts["data"].data_ptr() == source.address("q.weight")
    assert isinstance(model.embed.weight, QuantTensor)
    assert model.k.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert model.norm.weight.dtype == torch.float16
    assert "weight" not in model.q._parameters


def test_finalize_hands_out_the_compute_type() -> None:
    model = load(full(), dtype="bfloat16")
    assert model.embed(torch.tensor([1], dtype=torch.int32)).dtype == torch.bfloat16
    assert model.rope.inv_freq.dtype == torch.float32
    assert "rope.inv_freq" not in model.state_dict()


def test_packed_vectors_are_unpacked() -> None:
    source = full(leave=("norm.weight",))
    values = torch.randn(D)
    source.pack("norm.weight", values)
    model = load(source)
    assert (model.norm.weight - values).abs().max() < 0.05
    assert model.norm.weight.dtype == torch.float32


def test_progress_counts_bytes() -> None:
    seen: list[tuple[str, int, int]] = []
    source = full()
    load(source, progress=lambda *args: seen.append(args))
    total = sum(info.nbytes for info in source.tensors.values())
    assert [what for what, _, _ in seen] == ["load"] * len(source.tensors)
    assert seen[-1] == ("load", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_known_and_unwanted_tensors_are_left() -> None:
    source = full()
    source.put("inv_freq", torch.zeros(4))
    load(source, names({"inv_freq": None}))


def test_a_model_may_leave_tensors_aside() -> None:
    class Selective(Tiny):
        def ignores(self, name: str) -> bool:
            return name.startswith("mtp.")

    source = full()
    source.put("mtp.weight", torch.zeros(4))
    load_model(source, LoadOptions(device="cpu"), Selective(), IDENTITY)  # type: ignore[arg-type]


def test_apply_changes_a_tensor() -> None:
    source = full(leave=("norm.weight",))
    source.put("norm.plus1", torch.ones(D))
    model = load(source, names({"norm.plus1": Apply(lambda value: value - 1, "norm.weight")}))  # type: ignore[operator,return-value]
    assert model.norm.weight.abs().max() == 0


# --- Fused tensors ---


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_views_of_a_fused_tensor(packed: bool) -> None:
    source = full(leave=("q.weight", "k.weight"))
    fused = torch.randn(3 * D, D)
    source.pack("qk", fused) if packed else source.put("qk", fused)
    model = load(source, names({"qk": Rows("q.weight", "k.weight")}))
    row = fused.nbytes // (3 * D) if not packed else D // 32 * 34
    for layer, start in ((model.q, 0), (model.k, 2 * D)):
        weight = layer.weight
        data = weight.parts["data"] if isinstance(weight, QuantTensor) else weight
        assert data.data_ptr() == source.address("qk") + start * row
        dense = weight.dequantize() if isinstance(weight, QuantTensor) else weight
        assert (dense - fused[start : start + len(dense)]).abs().max() < 0.05


def test_rows_of_each_matrix_of_a_stack() -> None:
    source = full(leave=("experts.gate_proj", "experts.up_proj"))
    fused = torch.randn(E, 2 * F, D)
    source.put("gate_up", fused)
    model = load(source, names({"gate_up": Rows("experts.gate_proj", "experts.up_proj", dim=1)}))
    for expert in range(E):
        assert torch.equal(model.experts.gate_proj[expert], fused[expert, :F])  # type: ignore[arg-type]
        assert torch.equal(model.experts.up_proj[expert], fused[expert, F:])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3 * D + 1, D), (3 * D - 1, D), (3 * D, D, 1), (3 * D,), ()])
def test_rows_that_do_not_add_up(shape: tuple[int, ...]) -> None:
    source = full(leave=("q.weight", "k.weight"))
    source.put("qk", torch.zeros(shape))
    with pytest.raises(WeightError, match=r"model.file: qk has shape .* q.weight, k.weight need 96 rows in 2 dim"):
        load(source, names({"qk": Rows("q.weight", "k.weight")}))


@pytest.mark.parametrize("shape", [(7,), (), (7, D)])
def test_rows_of_a_stack_that_do_not_add_up(shape: tuple[int, ...]) -> None:
    source = full(leave=("experts.gate_proj", "experts.up_proj"))
    source.put("gate_up", torch.zeros(shape))
    with pytest.raises(WeightError, match=r"gate_up has shape .* 128 rows in 3 dimensions"):
        load(source, names({"gate_up": Rows("experts.gate_proj", "experts.up_proj", dim=1)}))


def test_rows_for_a_weight_that_nobody_declares() -> None:
    source = full(leave=("q.weight",))
    source.put("qk", torch.zeros(3 * D, D))
    with pytest.raises(WeightError, match="nobody knows the tensor qk"):
        load(source, names({"qk": Rows("q.weight", "nowhere")}))


def test_rows_twice() -> None:
    source = full(leave=("q.weight",))
    source.put("qk", torch.zeros(3 * D, D))
    with pytest.raises(WeightError, match=r"qk and k.weight are both k.weight"):
        load(source, names({"qk": Rows("q.weight", "k.weight")}))


# --- Experts ---


def apart(leave: tuple[int, ...] = (), more: int = 0, kind: str | None = None) -> tuple[Source, list[Tensor]]:
    source, made = full(leave=("experts.gate_proj",)), []
    for expert in [e for e in range(E + more) if e not in leave]:
        made.append(torch.randn(F, D))
        name = f"mlp.{0}.expert.{expert}.w1"
        source.pack(name, made[-1], kind) if kind else source.put(name, made[-1])
    return source, made


APART = {"mlp.*.expert.*.w1": Expert("experts.gate_proj")}


@pytest.mark.parametrize("kind", [None, "Q8_0"])
def test_experts_that_lie_apart_are_a_table_of_views(kind: str | None) -> None:
    source, made = apart(kind=kind)
    model = load(source, names(APART))
    assert model.experts.gate_proj.stacked is None
    for expert in range(E):
        view = model.experts.gate_proj[expert]
        data = view.parts["data"] if isinstance(view, QuantTensor) else view
        assert data.data_ptr() == source.address(f"mlp.0.expert.{expert}.w1")
        assert ((view.dequantize() if isinstance(view, QuantTensor) else view) - made[expert]).abs().max() < 0.05


@pytest.mark.parametrize("packed", [False, True])
def test_stacked_experts_share_the_memory_of_the_stack(packed: bool) -> None:
    source = full(leave=("experts.gate_proj",))
    stack = torch.randn(E, F, D)
    source.pack("experts.gate_proj", stack) if packed else source.put("experts.gate_proj", stack)
    table = load(source).experts.gate_proj
    assert (len(table), table.shape) == (E, (E, F, D))
    step = source.tensors["experts.gate_proj"].nbytes // E
    for expert in range(E):
        view = table[expert]
        data = view.parts["data"] if isinstance(view, QuantTensor) else view
        assert data.data_ptr() == source.address("experts.gate_proj") + expert * step


def test_missing_experts_are_counted() -> None:
    source, _ = apart(leave=(1, 2))
    with pytest.raises(WeightError, match=r"experts.gate_proj lacks 2 of 3 experts, the first is 1; .*incomplete"):
        load(source, names(APART))


def test_too_many_experts() -> None:
    source, _ = apart(more=1)
    with pytest.raises(WeightError, match=r"mlp.0.expert.3.w1 is expert 3, the configuration has 3"):
        load(source, names(APART))


def test_one_expert_twice() -> None:
    source, _ = apart()
    source.put("other.0.expert.1", torch.zeros(F, D))
    patterns = {**APART, "other.*.expert.*": Expert("experts.gate_proj")}
    with pytest.raises(WeightError, match=r"other.0.expert.1 and mlp.0.expert.1.w1 are both experts.gate_proj\[1\]"):
        load(source, names(patterns))


@pytest.mark.parametrize("stack_first", [False, True])
def test_experts_both_stacked_and_apart(stack_first: bool) -> None:
    source, _ = apart()
    stacked = Source()
    stacked.put("experts.gate_proj", torch.zeros(E, F, D))
    first, second = (stacked, source) if stack_first else (source, stacked)
    both = Source(tensors={**first.tensors, **second.tensors}, data={**first.data, **second.data})
    with pytest.raises(WeightError, match=r"are both experts.gate_proj; the file holds one weight twice"):
        load(both, names(APART))


def test_a_misshapen_expert() -> None:
    source, _ = apart(leave=(2,))
    source.put("mlp.0.expert.2.w1", torch.zeros(D, F))
    with pytest.raises(WeightError, match=r"expert.2.w1 has shape \[32, 64\], experts.gate_proj needs \[64, 32\]"):
        load(source, names(APART))


def test_an_expert_that_nobody_declares() -> None:
    source = full()
    source.put("mlp.0.expert.0.w9", torch.zeros(1, 1))
    with pytest.raises(WeightError, match=r"nobody knows the tensor mlp.0.expert.0.w9"):
        load(source, names({"mlp.*.expert.*.w9": Expert("nowhere")}))


# --- What does not fit ---


def test_an_unmapped_tensor_is_named() -> None:
    source = full()
    source.put("surprise", torch.zeros(2, 3))
    with pytest.raises(WeightError, match=r"model.file: nobody knows the tensor surprise \(F32 \[2, 3\]\)"):
        load(source)
    with pytest.raises(WeightError, match=r"nobody knows the tensor embed\.weight"):
        load(source, NameMap({}))


@pytest.mark.parametrize("name", ["embed.weight", "q.bias", "experts.down_proj", "router.e_score_correction_bias"])
def test_a_missing_tensor_is_named(name: str) -> None:
    shape = list(shapes(Tiny())[name])
    with pytest.raises(WeightError) as caught:
        load(full(leave=(name,)))
    assert f"no tensor for {name} {shape}; " in str(caught.value)


def test_several_missing_tensors_are_counted() -> None:
    with pytest.raises(WeightError, match=r"no tensor for norm\.weight .* and 2 more"):
        load(full(leave=("norm.weight", "q.bias", "k.weight")))


@pytest.mark.parametrize("name", list(shapes(Tiny())))
def test_a_misshapen_tensor_is_named(name: str) -> None:
    wanted = shapes(Tiny())[name]
    for shape in ((*wanted[:-1], wanted[-1] + 1), (wanted[0] + 1, *wanted[1:]), (*wanted, 1), ()):
        source = full(leave=(name,))
        source.put(name, torch.zeros(shape))
        with pytest.raises(WeightError) as caught:
            load(source)
        assert f"{name} has shape {list(shape)}, {name} needs {list(wanted)}" in str(caught.value)


def test_a_transposed_matrix_is_not_taken() -> None:
    source = full(leave=("q.weight",))
    source.put("q.weight", torch.zeros(D, 2 * D))
    with pytest.raises(WeightError, match=r"q.weight has shape \[32, 64\], q.weight needs \[64, 32\]"):
        load(source)


def test_one_weight_twice() -> None:
    source = full()
    source.put("old.q", torch.zeros(2 * D, D))
    with pytest.raises(WeightError, match=r"old.q and q.weight are both q.weight; the file holds one weight twice"):
        load(source, names({"old.q": "q.weight"}))


def test_a_stack_may_be_written_as_one_matrix() -> None:
    source = full(leave=("heads.weight",))
    source.put("heads.weight", torch.arange(2.0 * 8 * D).view(16, D))
    assert torch.equal(load(source).heads.weight[1, 0], torch.arange(8.0 * D, 9 * D))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e5m2])
def test_a_type_that_nobody_multiplies_by(dtype: torch.dtype) -> None:
    source = full(leave=("k.weight",))
    source.put("k.weight", torch.zeros(D, D).to(dtype))
    with pytest.raises(WeightError, match=rf"k.weight is {TYPES[dtype]} \[32, 32\], which is no weight"):
        load(source)


# --- Tied heads ---


def test_a_tied_head_uses_the_table_of_the_embedding() -> None:
    model = load(full(tied=True), tied=True)
    x = torch.randn(2, D)
    torch.testing.assert_close(model.lm_head(x), x @ model.embed.weight.T)  # type: ignore[union-attr]


def test_a_tied_head_may_lie_in_the_file_a_second_time() -> None:
    source = full(tied=True)
    source.put("lm_head.weight", torch.zeros(10, D))
    assert load(source, tied=True).lm_head(torch.ones(1, D)).abs().max() > 0


def test_a_head_of_its_own_must_be_there() -> None:
    with pytest.raises(WeightError, match=r"no tensor for lm_head\.weight"):
        load(full(leave=("lm_head.weight",)))


# --- FP8 ---


def fp8(rows: int = 2 * D, columns: int = D, block: tuple[int, int] = (16, 16)) -> tuple[Source, Tensor, Tensor]:
    source = full(leave=("q.weight",))
    source.config["quantization_config"] = {"weight_block_size": list(block)}
    data = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // block[0]), -(-columns // block[1])) + 0.5
    source.put("q.weight", data)
    source.put("q.weight_scale_inv", scale)
    return source, data, scale


def test_fp8_comes_with_its_scales() -> None:
    source, data, scale = fp8()
    weight = load(source).q.weight
    assert isinstance(weight, QuantTensor)
    wanted = data.float() * scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert torch.equal(weight.dequantize(), wanted)
    assert weight.parts["data"].data_ptr() == source.address("q.weight")


def test_fp8_scales_in_half_precision_count_as_they_are() -> None:
    source, data, scale = fp8()
    source.put("q.weight_scale_inv", scale.bfloat16())
    weight = load(source).q.weight
    assert isinstance(weight, QuantTensor)
    wanted = data.float() * scale.bfloat16().float().repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert torch.equal(weight.dequantize(), wanted)


def test_fp8_blocks_are_128_wide_if_nobody_says() -> None:
    source, *_ = fp8()
    source.config = {}
    source.put("q.weight_scale_inv", torch.full((1, 1), 2.0))
    weight = load(source).q.weight
    assert isinstance(weight, QuantTensor)
    assert weight.block == (128, 128)


def test_a_stack_in_fp8() -> None:
    source = full(leave=("experts.gate_proj",))
    source.config["quantization_config"] = {"weight_block_size": [32, 16]}
    data, scale = torch.randn(E, F, D).to(torch.float8_e4m3fn), torch.rand(E, 2, 2)
    source.put("experts.gate_proj", data)
    source.put("experts.gate_proj_scale_inv", scale)
    table = load(source).experts.gate_proj
    view = table[1]
    assert isinstance(view, QuantTensor)
    wanted = data[1].float() * scale[1].repeat_interleave(32, 0).repeat_interleave(16, 1)
    assert torch.equal(view.dequantize(), wanted)


def test_fp8_without_scales() -> None:
    source, *_ = fp8()
    del source.tensors["q.weight_scale_inv"]
    with pytest.raises(WeightError, match=r"q.weight is F8_E4M3 but there is no q.weight_scale_inv; .*incomplete"):
        load(source)


@pytest.mark.parametrize("scale", [torch.ones(4, 3), torch.ones(4), torch.ones(()), torch.ones(4, 2).half()])
def test_fp8_scales_of_a_wrong_shape_or_type(scale: Tensor) -> None:
    source, *_ = fp8()
    source.put("q.weight_scale_inv", scale)
    with pytest.raises(WeightError, match=r"q.weight_scale_inv is .*; expected F32 \[4, 2\] for blocks of \[16, 16\]"):
        load(source)


@pytest.mark.parametrize("block", [[16], [16, 0], [16, -1], [16, "16"], [1.5, 16], "ab", [16, 16, 16], [True, 16]])
def test_fp8_blocks_that_make_no_sense(block: Any) -> None:
    source, *_ = fp8()
    source.config["quantization_config"] = {"weight_block_size": block}
    with pytest.raises(ConfigError, match=r"quantization_config.weight_block_size is .*two positive integers"):
        load(source)


def test_scales_without_an_fp8_weight_are_unmapped() -> None:
    source = full()
    source.put("q.weight_scale_inv", torch.ones(4, 2))
    with pytest.raises(WeightError, match=r"nobody knows the tensor q.weight_scale_inv"):
        load(source)


# --- Options ---


def test_placement_is_refused() -> None:
    with pytest.raises(UsageError, match="placement by layer is not available"):
        load(full(), placement={"layers.0": "cpu"})


@pytest.mark.parametrize(
    "name", ["gpu", "", "mps", "cuda:x", "cuda:-1", "cuda:256", "cuda:", "meta", "CPU", "cuda:1:2"]
)
def test_unknown_devices(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}' is unknown; use auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="no CUDA device is visible to torch; use --device cpu"):
        resolve_device("cuda")


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="cuda:2 does not exist; there are 2"):
        resolve_device("cuda:2")


def typed(kind: str) -> Any:
    source = Source()
    for name, one, nbytes in (("a", kind, 100), ("b", "F32", 10)):
        source.tensors[name] = TensorInfo(name, one, (1,), source.path, 0, nbytes)
    return source


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return request.param


@pytest.fixture(params=[False, True], ids=["reference", "native"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there are native kernels, which compute in float32."""
    monkeypatch.setattr("zoo.weights.loader.native.usable", lambda: (request.param, ""))
    return bool(request.param)


@pytest.mark.parametrize(
    ("kind", "on_cpu", "on_gpu", "cache_on_cpu"),
    [
        ("F32", torch.float32, torch.float32, torch.float32),
        ("BF16", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("F16", torch.float32, torch.float16, torch.float32),
        ("Q4_K", torch.float32, torch.bfloat16, torch.float16),
        ("F8_E4M3", torch.float32, torch.bfloat16, torch.float16),
    ],
)
def test_auto_dtype(
    gpu: bool, fast: bool, kind: str, on_cpu: torch.dtype, on_gpu: torch.dtype, cache_on_cpu: torch.dtype
) -> None:
    wanted = on_gpu if gpu else torch.float32 if fast else on_cpu
    assert resolve_dtype(LoadOptions(), typed(kind)) == wanted
    assert resolve_cache_dtype(LoadOptions(), typed(kind)) == (wanted if gpu else cache_on_cpu)


def test_asked_dtypes() -> None:
    assert resolve_dtype(LoadOptions(dtype="float16"), typed("F32")) == torch.float16
    assert resolve_cache_dtype(LoadOptions(cache_dtype="bfloat16"), typed("Q4_K")) == torch.bfloat16
    for options in (LoadOptions(dtype="int8"), LoadOptions(dtype="")):
        with pytest.raises(UsageError, match=r"dtype .* is unknown; use auto, float32, bfloat16, float16"):
            resolve_dtype(options, typed("F32"))
    with pytest.raises(UsageError, match="dtype 'fp8' is unknown"):
        resolve_cache_dtype(LoadOptions(cache_dtype="fp8"), typed("F32"))
