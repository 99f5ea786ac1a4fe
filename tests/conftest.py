"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zoo import hub
from zoo.errors import ZooError
from zoo.kernels.registry import implementation
from zoo.settings import Settings

# Read by torch when it is first imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# The same examples in every run, however long one takes; `--hypothesis-profile default` looks for new ones.
settings.register_profile(
    "zoo", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zoo")


def _pulled(name: str) -> Path:
    try:
        return hub.resolve(name, Settings.from_env())
    except ZooError as error:
        pytest.fail(f"the tests need {name}: {error}\n`make setup` and `zoo pull {name}` fetch it", pytrace=False)


@contextmanager
def _reference() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CPU_ISA", "off")
        implementation.cache_clear()
        yield
    implementation.cache_clear()


@pytest.fixture(scope="session")
def reference_path() -> Callable[[], AbstractContextManager[None]]:
    """What makes a context in which models are loaded and run with the reference kernels."""
    return _reference


@pytest.fixture
def reference_kernels() -> Iterator[None]:
    """Plain torch: packed weights meet float32, where faster kernels round activations to int8 (up to 1 % off)."""
    with _reference():
        yield


@pytest.fixture(scope="module")
def reference_kernels_throughout() -> Iterator[None]:
    """As `reference_kernels`, for a module whose models are loaded once."""
    with _reference():
        yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo model, a Q4_1 GGUF of a Llama."""
    return _pulled("smollm2")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, a GGUF that mixes Q4_K, Q5_0, Q6_K and Q8_0."""
    return _pulled("gemma3-270m")
