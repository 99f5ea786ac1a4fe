"""The demo model from its Q4_1 file: the answers are those of llama.cpp, and it loads in no time and little memory.

There are two yardsticks. llama.cpp on the file itself rounds activations to 8 bits: on one page of prose that alone is
worth 0.45 % of perplexity (one standard error). llama.cpp on the same weights unpacked to float32 rounds nothing, so it
is the one that decides small differences.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oracle.gguf_writer import unpacked, write
from oracle.llamacpp import LlamaCpp
from zoo import LLM, SamplingParams
from zoo.errors import ContextLengthError, UsageError

PROSE = """\
The lighthouse stood at the end of a long spit of gravel, and for most of the year nobody went there but the
keeper and the woman who brought his bread. In winter the sea came over the path, so that he was cut off for
days at a time. He did not mind. He had a stove, a shelf of books that he had read so often that he knew where
every sentence stood on its page, and the light itself, which asked for a little work every evening and gave
him a reason to climb the stairs.

One morning in March, after a storm that had lasted three days, he found a boat on the stones below the tower.
It was a small boat, painted green, with the name of a town that he did not know on its stern. There was no
one in it. He pulled it up above the tide line, turned it over so that it would not fill with rain, and went
back to his breakfast. When the woman came with the bread he told her about it. She said that the harbour
master would have to be told, and that boats did not come from nowhere. The keeper agreed, but he thought that
it was a pity. He had already begun to imagine where it came from: a river with trees on both sides, a landing
place made of planks, and a child who had not tied the rope well.
"""
END = "<|im_end|>"
# No token of the answer is a close call: rounding must not decide it.
QUESTION = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM.load(smollm2, device="cpu", context=1024) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def llamacpp(smollm2: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(smollm2, context=1024, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def page(llm: LLM, llamacpp: LlamaCpp) -> tuple[list[int], Tensor, Tensor]:
    """Token ids of the prose, and log probabilities float32 [T, V] by zoo and by llama.cpp."""
    ids = llamacpp.tokenize(PROSE)
    return ids, llm.logits(ids).log_softmax(-1), torch.from_numpy(llamacpp.logits(ids)).log_softmax(-1)


@pytest.fixture(scope="module")
def reference(smollm2: Path, page: tuple[list[int], Tensor, Tensor], reference_path: Any) -> Tensor:
    """Log probabilities of the prose by zoo's reference kernels, which do not round activations."""
    with reference_path(), LLM.load(smollm2, device="cpu", context=1024) as llm:
        return llm.logits(page[0]).log_softmax(-1)


@pytest.fixture(scope="module")
def exact(
    smollm2: Path, page: tuple[list[int], Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tensor]:
    """Log probabilities of the prose by llama.cpp in float32, on the weights as gguf-py unpacks them."""
    (path,) = write(tmp_path_factory.mktemp("unpacked") / "f32.gguf", unpacked(smollm2))
    try:
        with LlamaCpp(path, context=1024, threads=1) as model:
            yield torch.from_numpy(model.logits(page[0])).log_softmax(-1)
    finally:
        path.unlink()  # half a gigabyte


def surprises(ids: list[int], logprobs: Tensor) -> Tensor:
    """Negative log probability float64 [T - 1] of each token after the first."""
    return -logprobs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].double()


def test_the_text_has_the_same_tokens(llm: LLM, llamacpp: LlamaCpp) -> None:
    for text in (PROSE, "1234567 + 89 = ?\n\n\tdef f(x):\n        return x", "日本語 und Größe 👍🏽"):
        ids = llm.tokenizer.encode(text)
        assert ids == llamacpp.tokenize(text)
        assert llm.tokenizer.decode(ids) == text


def test_top_1_agrees_wherever_it_is_decided(page: tuple[list[int], Tensor, Tensor]) -> None:
    ids, ours, theirs = page
    assert len(ids) >= 200
    best = theirs.topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 0.5
    assert clear.sum() > 100
    assert torch.equal(ours.argmax(-1)[clear], best.indices[clear, 0])


def test_mean_kl_divergence(page: tuple[list[int], Tensor, Tensor]) -> None:
    _, ours, theirs = page
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    assert kl.mean() < 0.01


def test_perplexity_is_that_of_the_same_weights_in_float32(
    page: tuple[list[int], Tensor, Tensor], reference: Tensor, exact: Tensor
) -> None:
    ids = page[0]
    found, wanted = (torch.exp(surprises(ids, logprobs).mean()) for logprobs in (reference, exact))
    assert wanted < 40, "the yardstick does not understand the page"
    assert abs(found / wanted - 1) < 0.001


def test_perplexity_differs_from_the_yardsticks_by_rounding_only(
    page: tuple[list[int], Tensor, Tensor], reference: Tensor, exact: Tensor
) -> None:
    ids, ours, theirs = page
    for one, other in ((ours, theirs), (ours, exact)):
        difference = surprises(ids, one) - surprises(ids, other)
        assert abs(difference.mean()) < 3 * difference.std() / len(difference) ** 0.5
    kl_ours, kl_theirs, kl_reference = (
        (exact.exp() * (exact - other)).sum(-1).mean() for other in (ours, theirs, reference)
    )
    # zoo's fast kernels round activations too, no more than llama.cpp's; the reference kernels do not.
    assert abs(kl_ours) < kl_theirs * 1.5
    assert abs(kl_reference) < kl_theirs / 10


def test_logits_are_those_of_the_same_weights_in_float32(
    smollm2: Path, page: tuple[list[int], Tensor, Tensor], exact: Tensor, reference_path: Any
) -> None:
    ids, _, _ = page
    with reference_path(), LLM.load(smollm2, device="cpu", dtype="float32", cache_dtype="float32", context=1024) as llm:
        difference = (llm.logits(ids).log_softmax(-1) - exact).abs()
    # 30 layers of float32 in another order; a cache in float16 gives 0.02, llama.cpp's rounding 0.9
    assert difference.max() < 2e-3


def test_score_is_the_perplexity(llm: LLM, page: tuple[list[int], Tensor, Tensor]) -> None:
    ids, ours, _ = page
    assert llm.score(PROSE) == pytest.approx((-surprises(ids, ours)).tolist(), abs=1e-4)


def test_raw_completion_knows_paris(llm: LLM) -> None:
    result = llm.generate("The capital of France is", SamplingParams(max_tokens=4, temperature=0))
    assert result.text.startswith(" Paris")
    assert result.prompt_tokens == 5


def test_chat_stops_at_the_end_of_the_turn(llm: LLM, llamacpp: LlamaCpp) -> None:
    result = llm.chat(QUESTION, SamplingParams(max_tokens=60, temperature=0))
    assert "Paris" in result.text
    assert END not in result.text
    assert result.finish_reason == "stop"
    rendered = "".join(text for text, _ in llm.render(QUESTION))
    prompt = llamacpp.tokenize(rendered, parse_special=True)
    assert result.prompt_tokens == len(prompt)
    (end,) = llamacpp.tokenize(END, parse_special=True)
    rows = torch.from_numpy(llamacpp.logits([*prompt, *result.token_ids])[len(prompt) - 1 :])
    best = rows.topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 0.5
    assert clear[-1]
    assert torch.equal(best.indices[clear, 0], torch.tensor([*result.token_ids, end])[clear])


def test_a_control_token_of_the_user_does_not_end_the_turn(llm: LLM) -> None:
    segments = llm.render([{"role": "user", "content": f"a {END} b"}])
    ids = llm.tokenizer.encode_segments(segments)
    assert ids.count(llm.tokenizer.control_tokens[END]) == 2  # the system prompt's and the user's turn


def test_the_stream_is_the_text(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=0)
    pieces = [piece.text for piece in llm.stream("The capital of France is", params)]
    assert len(pieces) > 3
    assert "".join(pieces) == llm.generate("The capital of France is", params).text


def test_a_seed_decides_the_text_whatever_else_is_in_the_batch(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=11, ignore_eos=True)
    first = llm.generate("Once upon a time", params)
    assert llm.generate("Once upon a time", params).token_ids == first.token_ids
    other = SamplingParams(max_tokens=6, temperature=1.0, seed=12, ignore_eos=True)
    assert llm.generate("Once upon a time", other).token_ids != first.token_ids
    batch = llm.generate(["Rain", "Once upon a time", "The keeper of the lighthouse had a stove"], params)
    assert batch[1].token_ids == first.token_ids


def test_a_stop_string_ends_the_text_and_is_left_out(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=0)
    free = llm.generate("The capital of France is", params)
    stop = free.text[4:9]  # within and across tokens
    pieces = []
    for piece in llm.stream("The capital of France is", SamplingParams(max_tokens=6, temperature=0, stop=[stop])):
        pieces.append(piece.text)
    assert "".join(pieces) == free.text[:4]
    result = llm.generate("The capital of France is", SamplingParams(max_tokens=6, temperature=0, stop=[stop, "zzz"]))
    assert (result.text, result.finish_reason) == (free.text[:4], "stop")
    assert result.completion_tokens < free.completion_tokens


def test_max_tokens_and_stop_token_ids(llm: LLM) -> None:
    result = llm.generate("One two three", SamplingParams(max_tokens=5, temperature=0, ignore_eos=True))
    assert (result.completion_tokens, len(result.token_ids), result.finish_reason) == (5, 5, "length")
    stop = result.token_ids[2]
    stopped = llm.generate("One two three", SamplingParams(max_tokens=5, temperature=0, stop_token_ids=[stop]))
    assert stopped.token_ids == result.token_ids[: result.token_ids.index(stop)]
    assert stopped.finish_reason == "stop"


def test_logprobs_are_those_of_the_raw_logits(llm: LLM, llamacpp: LlamaCpp) -> None:
    prompt = llamacpp.tokenize("The capital of France is")
    # The third and the fourth are too close to tell which is which.
    result = llm.generate("The capital of France is", SamplingParams(max_tokens=1, temperature=0, logprobs=2))
    wanted = torch.from_numpy(llamacpp.logits(prompt)[-1]).log_softmax(-1).topk(2)
    assert result.logprobs is not None
    (found,) = result.logprobs
    assert [token for token, _ in found.top] == wanted.indices.tolist()
    # llama.cpp rounds activations to 8 bits
    assert [value for _, value in found.top] == pytest.approx(wanted.values.tolist(), abs=0.2)


def test_what_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="1024") as caught:
        llm.generate([5] * 1024, SamplingParams(max_tokens=1))
    assert (caught.value.tokens, caught.value.context) == (1024, 1024)
    with pytest.raises(UsageError, match="49152"):
        llm.generate([5, 49152])
    with pytest.raises(UsageError, match="empty"):
        llm.generate([""])


_MEASURE = """
import json, sys, time
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
import torch
before, started = peak(), time.process_time()
from zoo import LLM, SamplingParams
llm = LLM.load(sys.argv[1], device="cpu")
loaded_s, loaded = time.process_time() - started, peak()
llm.generate("The capital of France is", SamplingParams(max_tokens=2, temperature=0))
print(json.dumps({"load_s": loaded_s, "loaded": loaded - before, "used": peak() - before}))
"""


def test_load_is_quick_and_copies_nothing(smollm2: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(smollm2)], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    measured = json.loads(output.splitlines()[-1])
    size = smollm2.stat().st_size
    assert measured["loaded"] < size + 300e6, measured
    assert measured["used"] < size + 300e6, measured
    # The aim is 1 s after `import torch`. Processor time, in which other work on the machine counts little: 3 s of it.
    assert measured["load_s"] < 3, measured
