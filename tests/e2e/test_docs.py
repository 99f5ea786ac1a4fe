"""The pages of docs/: tests that they name exist, and messages that they quote are what is said."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from oracle.checkpoints import llama_config, save_checkpoint
from oracle.gguf_writer import llama_contents, write
from zoo import LLM, SamplingParams, settings
from zoo.cli.main import VERBS, cli
from zoo.engine.result import Generation
from zoo.kernels.native import library
from zoo.kernels.registry import implementation
from zoo.plugin import manager

ROOT = Path(__file__).parents[2]
QUOTED = re.compile(r"```\n(.*?)```", re.DOTALL)


def quoted() -> list[str]:
    """Every message in the code blocks of the troubleshooting page."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    return [line for block in QUOTED.findall(page) for line in block.splitlines()]


def test_verification_names_tests_that_exist() -> None:
    page = (ROOT / "docs/verification.md").read_text()
    named = re.findall(r"`((?:tests|core)/[\w/]+\.py|\.ci/run)(?:::(test_\w+))?`", page)
    assert len(named) > 15
    for path, function in named:
        assert (ROOT / path).is_file(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{path}::{function}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("plugins/*/*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.fixture
def said(call: Any, tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What zoo says in the situations of the page."""
    model = save_checkpoint(tmp_path / "hf", llama_config())
    config = json.loads((tmp_path / "hf/config.json").read_text())
    size = config.pop("intermediate_size")
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    words = " ".join(["word"] * 91)
    outcomes = [
        call("run", "--model-path", tmp_path / "hf", "--raw", "x"),
        call("run", "--model-path", smollm2, "--context", "64", words),
        call("run", "--model-path", smollm2, "--context", "999999", words),
    ]
    whole = ("--model-path", tmp_path / "hf", "--set", f"intermediate_size={size}")
    assert call("inspect", *whole).code == 0
    contents = llama_contents(model)
    contents.tensors["blk.0.attn_k_norm.weight"] = np.ones(256, np.float32)
    (more,) = write(tmp_path / "more.gguf", contents)
    outcomes.append(call("run", "--model-path", more, "x"))
    contents.architecture = "gemma3"
    (gemma,) = write(tmp_path / "model.gguf", contents)
    with monkeypatch.context() as patch:
        llama = [plugin for plugin in manager.announced() if plugin.distribution == "zoo-llama"]
        patch.setattr(manager, "announced", lambda: llama)
        outcomes.append(call("run", "--model-path", gemma, "x"))
    assert all((done.code, done.out) == (1, "") for done in outcomes)
    with monkeypatch.context() as patch:
        patch.setattr(library, "usable", lambda: (True, "any"))
        outcomes.append(call("run", *whole, "--dtype", "bfloat16", "--max-tokens", "1", "x"))
    with monkeypatch.context() as patch:
        implementation.cache_clear()
        patch.setattr(library, "PATH", tmp_path / "none.so")
        patch.delenv("ZOO_CPU_ISA", raising=False)
        outcomes.append(call("run", *whole, "--max-tokens", "1", "x"))
    implementation.cache_clear()
    return "".join(done.err for done in outcomes).replace(f"{tmp_path}/hf/", "").replace(f"{tmp_path}/", "")


def test_messages_are_what_is_said(said: str) -> None:
    assert len(quoted()) == 7
    for line in quoted():
        assert line in said


# --- The reference ---

CODE = re.compile(r"```\n(.*?)```", re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "core/README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]


def commands() -> list[str]:
    """Every `zoo ...` in the code blocks of all pages, comments cut."""
    blocks = [block for page in PAGES for block in CODE.findall(page.read_text())]
    lines = [line.partition(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [
        part.strip() for line in lines if not line.startswith("zoo plugins |") for part in re.split(r"&&|\|", line)
    ]
    return [part.partition(" > ")[0] for part in parts if part.startswith("zoo ") and "COMMAND" not in part]


def test_there_are_commands_to_try() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_pages_are_understood(line: str) -> None:
    """Names and values of options; nothing is run."""
    verb, *args = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    command.make_context(verb, args)


def keys(value: Any) -> set[str]:
    return set(value) | {key for inner in value.values() if isinstance(inner, dict) for key in inner}


def test_the_reference_names_what_there_is(call: Any, tiny: Any) -> None:
    page = (ROOT / "docs/reference/commands.md").read_text()
    for verb in VERBS:
        assert f"`zoo {verb}" in page
    for variable in set(re.findall(r"ZOO_[A-Z_]+", Path(settings.__file__).read_text())):
        assert f"`{variable}`" in page
    shown = call("run", "x", "--model-path", tiny.path, "--json", "--max-tokens", "2").out
    measured = call("bench", "--model-path", tiny.path, "--json", "--prompt-tokens", "4", "--gen-tokens", "2").out
    for key in keys(json.loads(shown)) | keys(json.loads(measured)):
        assert f"`{key}`" in page
    load = inspect.signature(LLM.load).parameters
    python = (ROOT / "docs/reference/python.md").read_text()
    for name in [*load, *(field.name for field in [*fields(SamplingParams), *fields(Generation)])]:
        assert re.search(rf"`{name}`|\b{name}=|\bload\({name}", python), name
    public = [name for name, value in vars(LLM).items() if not name.startswith("_") and callable(value)]
    inner = {"request", "chat_ids", "render"}  # the server's
    for name in set(public) - inner:
        assert f"`{name}(" in python, name


def test_the_python_of_the_first_page_runs(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/getting-started.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "Paris" in first
    assert "torch.Size([2, 49152])" in last
