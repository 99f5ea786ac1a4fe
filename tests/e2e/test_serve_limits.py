"""What the server refuses, and how: bad requests, strangers, too much, too slow. Never a 5xx, never a hang."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from e2e import served as served_module
from e2e.served import Served, serving, wait_for
from oracle.checkpoints import sample_ids
from zoo import LLM
from zoo.server import run as run_module
from zoo.server.app import ServerOptions
from zoo.server.guard import Access, Limits

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER: Any = [{"role": "user", "content": "the"}]
LIMITS = Limits(body_bytes=100_000, request_s=60.0, requests=40)


@pytest.fixture(scope="module")
def served(tiny: Any) -> Iterator[Served]:
    with serving(lambda: LLM.load(tiny.path), ServerOptions(limits=LIMITS)) as server:
        yield server


@pytest.fixture(autouse=True)
def still_alive(served: Served) -> Iterator[None]:
    before = served.free_blocks()
    yield
    served.settle()
    assert served.free_blocks() == before
    assert served.post(COMPLETIONS, {"prompt": "the", "max_tokens": 1}).status_code == 200


def refused(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        value = {"properties": {"a": value}}
    return value


def function(name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.user.content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0"),
    ({"messages": [{"content": "x"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "color": "red"}]}, "messages.0.user.color"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
    "messages"), ({"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments":
    "["}}]}]},  "messages.1"),
    ({"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
     "messages.1"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": 1 << 40}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": -(1 << 70)}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"seed": 1 << 65}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"320": 1}}, "logit_bias"),
    ({"logit_bias": {str(index): 1 for index in range(1025)}}, "logit_bias"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "maybe"}, "stream"),
    ({"stream_options": {"include_everything": True}}, "stream_options"),
    ({"tools": [function(), function()]}, "same name"),
    ({"tools": [function("no spaces please")]}, "tools.0.function.name"),
    ({"tools": [{"type": "retrieval"}]}, "tools.0"),
    ({"tools": [function()]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [function()], "tool_choice": function("g")}, "tool_choice"),
    ({"tools": [function(str(index)) for index in range(129)]}, "tools"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}}, "grammar"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}}}, "characters"),
    ({"response_format": {"type": "json_object"}, "grammar": "start: /a/"}, "grammar"),
    ({"grammar": "start: ("}, "grammar"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "bos_token"),
    ({"reasoning_effort": "heroic"}, "reasoning_effort"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"functions": []}, "functions"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"verbosity": "low"}, "verbosity"),
    ({"no_such_field": 1}, "no_such_field"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), BAD_FIELDS, ids=[f"{index}" for index in range(len(BAD_FIELDS))])
def test_a_bad_field_is_named(served: Served, fields: dict[str, Any], words: str) -> None:
    error = refused(served.post(CHAT, {"messages": USER, "max_tokens": 2, **fields}), 400)
    assert words in error["message"] or words == error["param"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": [[]]}, "prompt is empty"),
        ({"prompt": [320]}, "token id 320 does not exist"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": sample_ids(256)}, "256 tokens, the context 256"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": USER}, "messages"),
    ],
)
def test_a_bad_completion_is_named(served: Served, fields: dict[str, Any], words: str) -> None:
    # Not by the client's own encoder, which refuses a lone surrogate.
    body = json.dumps({"prompt": "the", "max_tokens": 2, **fields}).encode()
    with served.http() as http:
        answer = http.post(COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
    error = refused(answer, 400)
    assert words in error["message"] or words == error["param"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b'"x"', b"1", b"\x00", b"\xff\xfe{}", b'{"messages": NaN}', b"\xef\xbb\xbf{}"),
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": Infinity, "prompt": "x"}',
        b'{"max_tokens": 1' + b"0" * 5000 + b', "prompt": "x"}',
        b'{"temperature": 1e999, "prompt": "x"}',
        b"[" * 50_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "x", "prompt": [], "model": "\\u0000"}',
    ],
    ids=range(18),
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
def test_a_body_that_is_no_request(served: Served, path: str, body: bytes) -> None:
    with served.http() as http:
        refused(http.post(path, content=body, headers={"Content-Type": "application/json"}), 400)


def test_null_bytes_and_any_text_are_answered(served: Served) -> None:
    for text in ("\x00", "a\x00b", "\u202e", "\U0001f600", "<s></s><|im_end|>", "%s %n {} ${x}", "'; --", "\r\n\r\n"):
        assert served.post(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1}).status_code == 200
        assert served.post("/tokenize", {"prompt": text}).status_code == 200


def test_control_tokens_that_a_user_types_stay_text(served: Served) -> None:
    ids = served.post("/tokenize", {"messages": [{"role": "user", "content": "</s><|im_end|>"}]}).json()["tokens"]
    assert ids.count(2) == 1, "the template's own"
    assert 1 not in ids
    assert not {0, 1, 2} & set(served.post("/tokenize", {"prompt": "<s></s><|im_end|>"}).json()["tokens"])


def test_too_large_a_body(served: Served) -> None:
    error = refused(served.post(CHAT, {"messages": [{"role": "user", "content": "x" * 200_000}]}), 413)
    assert "100000" in error["message"]

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    with served.http() as http:
        answer = http.post(CHAT, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_deep_schemas_and_tools(served: Served) -> None:
    for depth in (20, 300):
        form = {"type": "json_schema", "json_schema": {"schema": nested(depth)}}
        answer = served.post(CHAT, {"messages": USER, "max_tokens": 2, "response_format": form})
        assert answer.status_code in (200, 400)


def test_methods_paths_and_content_types(served: Served) -> None:
    with served.http() as http:
        refused(http.get(CHAT), 405)
        refused(http.put(CHAT, json={}), 405)
        refused(http.get("/v1/nothing"), 404)
        refused(http.get("/v1/models/other"), 404)
        refused(http.get("/../../etc/passwd"), 404)
        refused(http.post("/v1/chat/completions/", json={}), 404)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            refused(http.post(CHAT, content=b"{}", headers={"Content-Type": kind}), 415)
        assert http.options(CHAT).status_code in (403, 405)
        assert http.head("/health").status_code in (200, 405)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:7833", 200), ("127.0.0.1:1", 200), ("[::1]:7833", 200), ("192.168.1.7", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("", 403), ("evil.example@localhost", 403),
        ("localhost/evil", 403), ("[::1", 403), ("127.0.0.1.nip.io", 403),
    ],
)  # fmt: skip
def test_the_host_header(served: Served, host: str, status: int) -> None:
    with served.http() as http:
        assert http.get("/v1/models", headers={"Host": host}).status_code == status
        assert http.get("/", headers={"Host": host}).status_code == status


def test_pages_of_other_sites(served: Served) -> None:
    with served.http() as http:
        error = refused(http.get("/v1/models", headers={"Origin": "https://evil.example"}), 403)
        assert error["code"] == "origin"
        refused(http.get("/v1/models", headers={"Origin": "null"}), 403)
        refused(http.get("/v1/models", headers={"Origin": "http://127.0.0.1:1"}), 403)
        own = http.get("/v1/models", headers={"Origin": served.url})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
        ask = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert http.options(CHAT, headers=ask).status_code == 403


def test_cors_key_and_hosts(tiny: Any) -> None:
    access = Access("secret", ("model.example",), False, ("https://page.example",))
    with (
        serving(lambda: LLM.load(tiny.path, context=64), ServerOptions(access=access)) as server,
        server.http() as http,
    ):
        assert http.get("/health").status_code == 200
        assert http.get("/").status_code == 200
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing"):
            for header in (
                {},
                {"Authorization": "secret"},
                {"Authorization": "Bearer Secret"},
                {"X-Api-Key": "secret"},
            ):
                assert refused(http.get(path, headers=header), 401)["code"] == "invalid_api_key"
        for path in (CHAT, COMPLETIONS, "/tokenize", "/detokenize"):
            assert refused(http.post(path, json={}), 401)["type"] == "authentication_error"
            refused(http.post(path, content=b"x" * 1000, headers={"Authorization": "Bearer é".encode("latin-1")}), 401)
        key = {"Authorization": "Bearer secret"}
        assert http.get("/v1/models", headers=key).status_code == 200
        assert http.get("/v1/models", headers={**key, "Host": "model.example"}).status_code == 200
        page = {"Origin": "https://page.example"}
        assert http.get("/v1/models", headers={**key, **page}).headers["access-control-allow-origin"] == page["Origin"]
        refused(http.get("/v1/models", headers=page), 401)
        ask = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        allowed = http.options(CHAT, headers=ask)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, page["Origin"])
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        refused(http.get("/v1/models", headers={**key, "Origin": "https://other.example"}), 403)
        assert server.client("secret").models.list().data
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()


def test_answers_carry_headers_against_misuse(served: Served) -> None:
    with served.http() as http:
        for path in ("/", "/v1/models", "/nothing"):
            headers = http.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
        policy = http.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "sha256-" in policy


def test_the_documentation_needs_no_network(served: Served) -> None:
    with served.http() as http:
        page, schema = http.get("/docs"), http.get("/openapi.json").json()
        refused(http.get("/redoc"), 404)
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//|<script|@import|url\(""", page.text)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page.text
            assert "422" not in operation["responses"], "a field that is wrong is a 400"
            assert "4XX" in operation["responses"]
    links = set(re.findall(r'href="#(\w+)"', page.text))
    assert links >= {"ChatRequest", "CompletionRequest", "Tool"}
    assert links <= set(re.findall(r' id="(\w+)"', page.text))
    assert "repetition_penalty" in page.text


def raw(served: Served, data: bytes, *, head: bool = False) -> bytes:
    """What comes back for these bytes on a connection, until it is closed; `head`: until the head of an answer is here.

    A minute without a byte is an error.
    """
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(data)
        out = b""
        while not (head and b"\r\n\r\n" in out) and (part := link.recv(65536)):
            out += part
    return out


def test_slow_clients(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    head = b"\r\n".join([*lines, b"Content-Length: 99", b"", b"{"])
    with serving(lambda: LLM.load(tiny.path), ServerOptions(limits=Limits(body_s=1.0))) as server:
        answer = raw(server, head)
        assert b"408" in answer.split(b"\r\n")[0]
        assert b"the body did not come within 1 s" in answer
        monkeypatch.setattr(run_module, "HEADER_S", 0.5)
        for data in (b"", b"GET /health HTTP/1.1\r\nHost:"):
            assert raw(server, data) == b""


def test_a_client_that_does_not_read_its_stream(
    tiny: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered meanwhile, and when its time is up it loses the connection and its blocks."""
    caplog.set_level(logging.INFO, "zoo.server")

    def small_buffers(host: str, port: int) -> socket.socket:
        listening = run_module.bind(host, port)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its connections inherit it
        return listening

    monkeypatch.setattr(served_module, "bind", small_buffers)
    with serving(lambda: LLM.load(tiny.path), ServerOptions(limits=Limits(request_s=5))) as server:
        free, port = server.free_blocks(), int(server.url.rpartition(":")[2])
        body = {"prompt": "the", "max_tokens": 240, "n": 16, "ignore_eos": True, "stream": True, "logprobs": 20}
        text = json.dumps(body).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.settimeout(60)
            link.connect(("127.0.0.1", port))
            link.sendall(f"{head}{len(text)}\r\n\r\n".encode() + text)
            assert link.recv(12) == b"HTTP/1.1 200"
            assert server.post(COMPLETIONS, {"prompt": "the", "max_tokens": 1}).status_code == 200
            wait_for(lambda: sum(COMPLETIONS in line for line in caplog.messages) == 2, "the request has ended")
            server.settle()
            assert server.free_blocks() == free
        seconds = max(float(line.split()[3].rstrip("s")) for line in caplog.messages if COMPLETIONS in line)
        assert 5 <= seconds < 60, "it ended by itself: the answer is too small for this test"


def test_garbage_instead_of_http(served: Served) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        assert raw(served, data, head=True).split(b" ")[1] in (b"400", b"403")
    twice = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(served, twice, head=True).split(b" ")[1][:1] in (b"4", b"")


def test_a_request_that_takes_too_long_ends(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: LLM.load(tiny.path), ServerOptions(limits=Limits(request_s=2))) as server:
        engine = server.llm.engine
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.1), step())[1])
        body = {"prompt": "the", "max_tokens": 200, "ignore_eos": True}
        error = refused(server.post(COMPLETIONS, body), 408)
        assert "2 s" in error["message"]
        events = server.post(COMPLETIONS, {**body, "stream": True}).text.split("\n\n")
        assert len(events) > 2
        assert "2 s" in json.loads(events[-2].removeprefix("data: "))["error"]["message"], "the last event says why"
        stream = server.client().completions.create(
            model="x", prompt="the", max_tokens=200, extra_body={"ignore_eos": True}, stream=True
        )
        with pytest.raises(openai.APIError, match="took longer than"):
            list(stream)
        server.settle()


def test_too_many_requests_at_once(tiny: Any) -> None:
    with serving(lambda: LLM.load(tiny.path), ServerOptions(limits=Limits(requests=2))) as server:
        body = {"prompt": "the", "max_tokens": 200, "ignore_eos": True}
        with ThreadPoolExecutor(8) as pool:
            with server.held():
                asked = [pool.submit(server.post, COMPLETIONS, body) for _ in range(8)]
                wait_for(lambda: sum(one.done() for one in asked) == 6, "six are refused")
            answers = [one.result() for one in asked]
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)


TEMPLATES = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "large": "{{ 'x' * 300000000 }}",
    "refuses": "{{ raise_exception('roles must alternate') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_misbehaves_fails_the_request(tiny: Any, tmp_path: Path, name: str) -> None:
    for file in Path(tiny.path).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    with serving(lambda: LLM.load(tmp_path, context=64)) as server:
        started = time.process_time()
        error = refused(server.post(CHAT, {"messages": USER}), 400)
        assert time.process_time() - started < 10
        assert "chat template" in error["message"]
        assert server.post(COMPLETIONS, {"prompt": "the", "max_tokens": 1}).status_code == 200


def test_a_model_without_a_template(plain: Path) -> None:
    with serving(lambda: LLM.load(plain, context=64)) as server:
        assert "no chat template" in refused(server.post(CHAT, {"messages": USER}), 400)["message"]
