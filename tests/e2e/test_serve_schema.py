"""Requests made from the server's own OpenAPI schema: whatever they are, no 5xx, no hang, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from e2e.served import Served, serving
from zoo import LLM
from zoo.server.app import ServerOptions
from zoo.server.guard import Limits

SECONDS = 60.0
EXAMPLES = 15
OPERATIONS = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("GET", "/v1/models"), ("GET", "/v1/models/{name}"), ("GET", "/health"), ("GET", "/metrics"),
]  # fmt: skip
BODIES = [operation for operation in OPERATIONS if operation[0] == "POST"]
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def served(tiny: Any) -> Iterator[Served]:
    with serving(lambda: LLM.load(tiny.path), ServerOptions(limits=Limits(request_s=SECONDS))) as server:
        yield server
        server.settle()
        managers = server.llm.engine.scheduler.managers
        assert all(manager.num_free == manager.num_blocks - 1 for manager in managers), "blocks were lost"


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_operation_is_tried(schema: Any) -> None:
    found = [result.ok() for result in schema.get_all_operations()]
    assert {(operation.method.upper(), operation.path) for operation in found} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"), [(*one, RIGHT) for one in OPERATIONS] + [(*one, WRONG) for one in BODIES]
)
def test_requests_of_the_schema(served: Served, schema: Any, method: str, path: str, mode: GenerationMode) -> None:
    statuses = set()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        answer = case.call(timeout=SECONDS + 10)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        assert answer.status_code != 408, "nothing here takes long"
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    check()
    assert statuses
    assert mode is RIGHT or statuses & {400, 415}, "wrong requests were not refused"
    if mode is RIGHT and path in ("/tokenize", "/v1/models", "/health", "/metrics"):
        assert 200 in statuses
