"""Which backend answers an op, and why others do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zoo.kernels import glu, linear, registry
from zoo.kernels.registry import OPS, REFERENCE, Backend, Choice, choose, implementation


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of a backend `fake`: `linear`, `attend` without attend_latent, and a `glu` that cannot be imported."""
    sources = {
        "linear": "def linear(x, weights, biases):\n    return ('fake',)\n",
        "attend": "def attend(*args, **kwargs):\n    return 'fake'\n",
        "glu": "import a_library_that_is_not_here\n",
    }
    for op, source in sources.items():
        folder = tmp_path / op
        folder.mkdir()
        (folder / "fake.py").write_text(source)
        package = importlib.import_module(f"zoo.kernels.{op}" if op != "attend" else "zoo.kernels.attend.reference")
        package = sys.modules[f"zoo.kernels.{op}"]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    implementation.cache_clear()
    yield
    implementation.cache_clear()
    for op in sources:
        sys.modules.pop(f"zoo.kernels.{op}.fake", None)


def use(monkeypatch: pytest.MonkeyPatch, usable: bool, reason: str = "", devices: tuple[str, ...] = ("cpu",)) -> None:
    fake = Backend("fake", frozenset(devices), lambda: (usable, reason))
    monkeypatch.setattr(registry, "BACKENDS", (fake, REFERENCE))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_the_reference_implements_every_op(op: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", (REFERENCE,))
    assert choose(op, device) == Choice(op, device, "reference", ())


@pytest.mark.usefixtures("backend")
def test_a_usable_backend_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, usable=True)
    assert choose("linear", "cpu") == Choice("linear", "cpu", "fake", ())
    assert linear(torch.zeros(1, 2), (torch.zeros(3, 2),), (None,)) == ("fake",)


@pytest.mark.usefixtures("backend")
def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, usable=False, reason="no AVX2")
    assert choose("linear", "cpu") == Choice("linear", "cpu", "reference", (("fake", "no AVX2"),))
    assert linear(torch.zeros(1, 2), (torch.zeros(3, 2),), (None,))[0].shape == (1, 3)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", ["moe", "attend_latent"])
def test_a_backend_without_the_op_is_passed_over(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, usable=True)
    assert choose(op, "cpu") == Choice(op, "cpu", "reference", (("fake", "does not implement this op"),))
    assert choose("attend", "cpu").backend == "fake"


@pytest.mark.usefixtures("backend")
def test_a_backend_of_another_device_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, usable=True, devices=("cuda",))
    assert choose("linear", "cpu") == Choice("linear", "cpu", "reference", ())


@pytest.mark.usefixtures("backend")
def test_what_cannot_run_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, usable=False, reason="the library is missing")
    assert choose("glu", "cpu").refused == (("fake", "the library is missing"),)
    weight = torch.ones(2, 2)
    assert glu(torch.ones(1, 2), weight, weight).shape == (1, 2)


@pytest.mark.usefixtures("backend")
def test_a_verifier_is_not_asked_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fake = Backend("fake", frozenset({"cpu"}), lambda: (bool(asked.append(1)), "no"))  # type: ignore[func-returns-value]
    monkeypatch.setattr(registry, "BACKENDS", (fake, REFERENCE))
    for _ in range(5):
        linear(torch.zeros(1, 2), (torch.zeros(3, 2),), (None,))
    assert len(asked) == 1
