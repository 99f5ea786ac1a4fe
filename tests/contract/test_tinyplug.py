"""A plugin from outside the tree: built as a wheel, installed into a fresh environment, found, and asked.

Its models spell the alphabet: each letter is followed by the next, z by the end. So every answer is known in advance.
"""

from __future__ import annotations

import json
import os
import shutil
import string
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

PROJECT = Path(__file__).parent / "zoo-tinyplug"
END = "<|end|>"
TOKENS = [*string.ascii_lowercase, "Ġ", "Ċ", END, "zz", "<|unused0|>", "<|unused1|>"]
END_ID = TOKENS.index(END)


def successor_weights() -> tuple[np.ndarray, np.ndarray]:
    """Embedding and head, float32 [32, 32]: one-hot rows, and a head that prefers the following letter."""
    embedding = np.eye(len(TOKENS), dtype=np.float32)
    head = np.zeros((len(TOKENS), len(TOKENS)), np.float32)
    for token in range(26):
        head[token + 1 if token < 25 else END_ID, token] = 8.0
    return embedding, head


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PROJECT, place / "project")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(place), str(place / "project")], check=True, timeout=120)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that sees the packages of this one and has the plugin installed."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False)
    interpreter = place / "bin" / "python"
    (library,) = place.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # addsitedir reads the .pth files in there too, which is where an editable zoo-core says where it lies.
    (library / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
    # Without --no-deps: the plugin's pin of zoo-core must be satisfied by the one that is there.
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, timeout=120)
    return interpreter


@pytest.fixture(scope="session")
def safetensors_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bigram-hf")
    embedding, head = successor_weights()
    save_file({"embed_tokens.weight": embedding, "lm_head.weight": head}, place / "model.safetensors")
    config = {
        "architectures": ["BigramForCausalLM"],
        "vocab_size": len(TOKENS),
        "hidden_size": len(TOKENS),
        "max_position_embeddings": 64,
        "eos_token_id": END_ID,
    }
    (place / "config.json").write_text(json.dumps(config))
    vocabulary = {token: index for index, token in enumerate(TOKENS[:30])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("z", "z")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture(scope="session")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bigram-gguf") / "bigram-q8_0.gguf"
    writer = gguf.GGUFWriter(path, "bigram")
    writer.add_context_length(64)
    writer.add_embedding_length(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    kinds = [gguf.TokenType.NORMAL] * 28 + [gguf.TokenType.CONTROL, gguf.TokenType.NORMAL] + [gguf.TokenType.UNUSED] * 2
    writer.add_token_types(kinds)
    writer.add_token_merges(["z z"])
    writer.add_eos_token_id(END_ID)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weight in zip(("token_embd.weight", "output.weight"), successor_weights(), strict=True):
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=["safetensors", "gguf"])
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_model")
    return path


def ask(python: Path, program: str, *arguments: object) -> Any:
    """Run a program in the fresh environment, away from this directory; what it prints last is JSON."""
    environ = {key: value for key, value in os.environ.items() if key not in ("ZOO_PLUGINS", "PYTHONPATH")}
    command = [str(python), "-c", program, *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=python.parent, env=environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


RUN_ZOO = "import sys; from zoo.cli.main import main; sys.argv[0] = 'zoo'; main()"


def test_zoo_plugins_lists_it(python: Path) -> None:
    listed = ask(python, RUN_ZOO, "plugins", "--json")["plugins"]
    (row,) = [row for row in listed if row["name"] == "bigram"]
    assert row == {
        "name": "bigram",
        "distribution": "zoo-bigram",
        "version": "0.3.0",
        "architectures": ["BigramForCausalLM", "bigram"],
        "formats": ["safetensors", "gguf"],
        "error": None,
    }


def test_its_tables_hold(python: Path) -> None:
    assert ask(python, "from zoo_bigram.plugin import plugin; plugin.check(); print(1)") == 1


DETECT = """
import json, sys
from zoo.errors import PluginError
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.source import ModelSource
with ModelSource.open(sys.argv[1]) as source:
    try:
        print(json.dumps(PluginManager.discover(Settings.from_env()).detect(source).distribution))
    except PluginError as error:
        print(json.dumps(f"PluginError: {error}"))
assert "torch" not in sys.modules
"""


def test_it_owns_its_models_and_nobody_else_does(python: Path, model: Path) -> None:
    assert ask(python, DETECT, model) == "zoo-bigram"
    without = ask(Path(sys.executable), DETECT, model)
    assert without.startswith(f"PluginError: no plugin knows {model} (")
    assert "igram" in without


ANSWER = """
import json, sys
from zoo import LLM, SamplingParams, hookimpl

class Counter:
    calls = 0
    @hookimpl(wrapper=True)
    def forward(self, batch):
        logits = yield
        Counter.calls += 1
        assert logits.shape == (len(batch.logits_indices), 32), logits.shape
        return logits

greedy = SamplingParams(max_tokens=4, temperature=0)
with LLM.load(sys.argv[1], device="cpu", plugins=[Counter()]) as llm:
    one = llm.generate("a", greedy)
    end = llm.generate("x", SamplingParams(max_tokens=9, temperature=0))
    print(json.dumps({
        "one": one.text,
        "one_reason": one.finish_reason,
        "end": end.text,
        "end_reason": end.finish_reason,
        "batch": [result.text for result in llm.generate(["c", "k", "hi"], greedy)],
        "stream": "".join(piece.text for piece in llm.stream("m", greedy)),
        "chat": llm.chat([{"role": "user", "content": "f"}], greedy).text,
        "logits": llm.logits([0, 25]).argmax(-1).tolist(),
        "calls": Counter.calls,
    }))
"""


def test_it_answers(python: Path, model: Path) -> None:
    answer = ask(python, ANSWER, model)
    assert answer.pop("calls") > 4
    assert answer == {
        "one": "bcde",
        "one_reason": "length",
        "end": "yz",
        "end_reason": "stop",
        "batch": ["defg", "lmno", "jklm"],
        "stream": "nopq",
        "chat": "ghij",
        "logits": [1, END_ID],
    }


def test_zoo_run_answers(python: Path, model: Path) -> None:
    arguments = ["--model-path", model, "--raw", "--temperature", "0", "--max-tokens", "3", "--device", "cpu", "--json"]
    answer = ask(python, RUN_ZOO, "run", *arguments, "q")
    assert answer["text"] == "rst"
    assert answer["model"]["plugin"] == "bigram"
