"""The pages for authors of plugins: their code is taken out of them and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from oracle.checkpoints import llama_config, save_checkpoint
from zoo import LLM, SamplingParams
from zoo.hooks import HOOKS
from zoo.testing import PluginConformance

PAGES = Path(__file__).parents[2] / "docs" / "plugins"
NAMED = re.compile(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of the tutorial, as a reader would have typed it."""
    place = tmp_path_factory.mktemp("olmo2")
    files = NAMED.findall(page("tutorial.md"))
    assert len(files) == 6
    for name, text in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    return place


def run(project: Path, *arguments: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_tutorial_s_plugin_passes_its_tests(project: Path) -> None:
    output = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    found = re.search(r"(\d+) passed", output)
    assert found is not None
    tests = [name for name in vars(PluginConformance) if name.startswith("test_")]
    assert int(found[1]) >= len(tests) - 1  # without formats_agree: the example reads no GGUF
    assert "failed" not in output


def test_the_tutorial_s_tests_notice_a_mistake(project: Path) -> None:
    """With the norm after the MLP left out, parity fails and names the layer."""
    model = project / "src" / "zoo_olmo2" / "model.py"
    right = model.read_text()
    wrong = right.replace("self.post_feedforward_layernorm(self.mlp(residual))", "self.mlp(residual)")
    assert wrong != right
    model.write_text(wrong)
    try:
        with pytest.raises(AssertionError, match="the first hidden state that differs is 1 of 3"):
            run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "-k", "reference")
    finally:
        model.write_text(right)


def test_the_tutorial_s_entry_point_is_a_plugin(project: Path) -> None:
    metadata = tomllib.loads((project / "pyproject.toml").read_text())
    (reference,) = metadata["project"]["entry-points"]["zoo"].values()
    module, _, attribute = reference.partition(":")
    lines = f"from {module} import {attribute} as p; import sys; assert 'torch' not in sys.modules; p.check(); print(p)"
    assert run(project, "-c", lines).strip() == "ArchitecturePlugin('olmo2')"
    (package,) = metadata["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (project / package / "plugin.py").is_file()


def test_the_hooks_page_names_every_hook_and_its_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page("hooks.md")
    assert re.findall(r"^\| `(\w+)\(", text, re.MULTILINE) == sorted(HOOKS, key=text.index)
    save_checkpoint(tmp_path, llama_config())
    names: dict[str, Any] = {"path": tmp_path}
    for block in BLOCK.findall(text):
        exec(block, names)
    assert capsys.readouterr().out.startswith(f"{5 + names['watch'].tokens - 5} tokens in 5 steps")
    from zoo_llama.plugin import plugin

    values = {field: getattr(plugin, field) for field in ("config", "model", "hf_names", "gguf_names", "claims")}
    chatty = names["Chatty"](name="chatty", **values)

    class Model:
        class config:
            eos_token_ids = (1, 10)

    assert chatty.eos(model=Model) == {1}


def test_the_testing_page_names_what_there_is(tmp_path: Path) -> None:
    text = page("testing.md")
    for member in re.findall(r"^\| `(\w+)", text, re.MULTILINE):
        assert hasattr(PluginConformance, member) or member == "plugin", member
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (PAGES.parents[1] / path).is_file(), path
    save_checkpoint(tmp_path, llama_config())
    with LLM.load(tmp_path, dtype="float32") as llm:
        for block in BLOCK.findall(text):
            exec(block, {"llm": llm, "SamplingParams": SamplingParams})


@pytest.mark.parametrize("name", ["tutorial.md", "hooks.md", "testing.md"])
def test_links_and_paths_lead_somewhere(name: str) -> None:
    text = page(name)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (PAGES / link).exists(), link
    for path in re.findall(r"`(plugins/[\w/.]+)`", text):
        assert (PAGES.parents[1] / path).exists(), path
