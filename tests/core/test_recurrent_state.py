"""A toy model with recurrent states beside attention: each sequence has a state of its own, from its first token on.

Its first layer keeps a decaying sum of the embeddings and the last embedding, the second
is attention, so that both kinds of cache are in one batch. What it must say follows from a loop over the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oracle.checkpoints import VOCAB_SIZE, tiny_tokenizer
from zoo import LLM, SamplingParams
from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache, RecurrentState
from zoo.engine import sequence as engine
from zoo.engine.capacity import MAX_NUM_SEQS
from zoo.engine.scheduler import Chunk
from zoo.nn import Embedding, LMHead, attend
from zoo.plugin import ArchitecturePlugin, Claim, ConfigReader, ModelSource
from zoo.weights import NameMap

V, D, DECAY, TOLERANCE = VOCAB_SIZE, 8, 0.75, 1e-4
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int
    max_position_embeddings: int = 256
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, source: ModelSource) -> ToyConfig:
        return cls(ConfigReader.hf(source).size("vocab_size"))


def remember(x: Tensor, batch: Batch, entry: CacheEntry) -> Tensor:
    """What an op over states does: x [T, D] -> the sum after each token plus the token before it, [T, D]."""
    sums, lasts = entry.tensors
    rows, out, start = batch.tables[entry.group].state_indices, torch.empty_like(x), 0
    assert torch.equal(batch.tables[entry.group].slot_mapping, rows.repeat_interleave(torch.tensor(batch.query_lens)))
    for row, length in zip(rows, batch.query_lens, strict=True):
        for token in range(start, start + length):
            sums[row] = DECAY * sums[row] + x[token]
            out[token] = sums[row] + lasts[row]
            lasts[row] = x[token]
        start += length
    return out


class ToyForCausalLM(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, D)
        self.lm_head = LMHead(D, config.vocab_size)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        hidden = remember(self.embed_tokens(batch.input_ids), batch, cache[0])
        heads = hidden[:, None]
        return hidden + attend(heads, heads, heads, None, batch, cache[1], scale=0.3)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        return [RecurrentState(((D,), (D,))), FullAttention(1, D)]


HF = NameMap({}, identity=True)
plugin = ArchitecturePlugin(
    name="toy",
    config=f"{__name__}:ToyConfig",
    model=f"{__name__}:ToyForCausalLM",
    hf_names=f"{__name__}:HF",
    claims=(Claim(hf="ToyForCausalLM"),),
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(V, D, generator=generator) for name in ("embed_tokens.weight", "lm_head.weight")}


@pytest.fixture(scope="module")
def llm(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("toy")
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architectures": ["ToyForCausalLM"], "vocab_size": V}))
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    with LLM.load(path, device="cpu", dtype="float32", plugins=[plugin]) as loaded:
        yield loaded


def expected(weights: dict[str, Tensor], ids: Sequence[int]) -> Tensor:
    """Logits [T, V] in float64."""
    x = weights["embed_tokens.weight"].double()[list(ids)]
    powers = DECAY ** (torch.arange(len(x))[:, None] - torch.arange(len(x)).double()[None, :])
    hidden = powers.tril() @ x + torch.cat((torch.zeros(1, D), x[:-1]))
    scores = (hidden @ hidden.T * 0.3).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
    return (hidden + scores.softmax(-1) @ hidden) @ weights["lm_head.weight"].double().T


def assert_greedy(weights: dict[str, Tensor], ids: Sequence[int], answer: Sequence[int]) -> None:
    """Every token of the answer is the likeliest after those before it."""
    assert len(answer) == 12
    choices = expected(weights, [*ids, *answer[:-1]])[len(ids) - 1 :].argmax(-1)
    assert choices.tolist() == list(answer)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_prompt_at_once_and_in_chunks(llm: LLM, weights: dict[str, Tensor]) -> None:
    ids = prompt(70, 1)
    wanted = expected(weights, ids)
    assert (llm.logits(ids) - wanted).abs().max() < TOLERANCE
    for size in (1, 7, 33):
        hidden = llm._engine.hidden(tuple(ids), size)
        assert (llm.model.logits(hidden) - wanted).abs().max() < TOLERANCE


def test_each_sequence_of_a_batch_has_its_own_state(llm: LLM, weights: dict[str, Tensor]) -> None:
    """More sequences than rows, of different lengths: rows are handed on, and nothing is left in them."""
    prompts = [prompt(1 + i % 9, i) for i in range(MAX_NUM_SEQS + 20)]
    for ids, found in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
        assert_greedy(weights, ids, found.token_ids)


def test_a_row_begins_with_zeros(llm: LLM, weights: dict[str, Tensor]) -> None:
    for tensor in llm._engine.runner.cache[0].tensors:
        tensor.fill_(1e6)
    ids = prompt(20, 5)
    assert (llm.logits(ids) - expected(weights, ids)).abs().max() < TOLERANCE


def test_a_preempted_sequence_is_computed_anew(llm: LLM, weights: dict[str, Tensor]) -> None:
    made = [engine.Sequence(str(i), tuple(prompt(5, i)), GREEDY, frozenset(), 12) for i in range(3)]
    for one in made:
        llm._engine.add(one)
    for step in range(40):
        if step == 4:
            llm._engine.scheduler._preempt(made[2])
            assert made[2].num_computed_tokens == 0
        llm._engine.step()
    for one in made:
        assert_greedy(weights, one.prompt_token_ids, one.output_token_ids)


def test_rows_and_what_they_cost(llm: LLM) -> None:
    """A row per sequence and one that nobody owns, whatever the context; no row is lost."""
    cache, (states, attention) = llm._engine.runner.cache, llm._engine.scheduler.managers
    assert [tuple(tensor.shape) for tensor in cache[0].tensors] == [(MAX_NUM_SEQS + 1, D)] * 2
    assert states.num_free == MAX_NUM_SEQS
    one = engine.Sequence("one", (1, 2, 3), GREEDY, frozenset(), 12)
    for manager in (states, attention):
        assert manager.blocks_needed("one", 3) == 1
        manager.grow("one", 3)
    batch = llm._engine.runner.batch([Chunk(one, 0, 3)], (states, attention))
    assert batch.tables[0].state_indices.tolist() == states.table("one")
    assert batch.tables[0].state_indices.dtype == torch.int32
    assert states.table("one") != [0]
    assert states.blocks_needed("one", 100_000) == 0
    for manager in (states, attention):
        manager.free("one")
    assert states.num_free == MAX_NUM_SEQS


def test_reset_zeroes_the_states(llm: LLM) -> None:
    llm.generate(prompt(9, 9), GREEDY)
    assert any(bool(tensor.any()) for tensor in llm._engine.runner.cache[0].tensors)
    llm.reset()
    assert not any(bool(tensor.any()) for tensor in llm._engine.runner.cache[0].tensors)


def test_the_type_of_a_state() -> None:
    values: dict[str, Any] = {"num_blocks": {0: 3, 1: 3}, "block_size": 4, "device": torch.device("cpu")}
    specs = [RecurrentState(((2, 3),)), RecurrentState(((2, 3),), fp32=False)]
    cache = KVCache(specs, dtype=torch.float16, **values)
    assert [cache[i].tensors[0].dtype for i in (0, 1)] == [torch.float32, torch.float16]
    assert [spec.bytes_per_sequence(2) for spec in specs] == [24, 12]
