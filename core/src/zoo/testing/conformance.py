"""Tests that every architecture plugin must pass, as a class to subclass.

    class TestMyModel(PluginConformance):
        plugin = zoo_mymodel.plugin.plugin

        def write_checkpoint(self, directory): ...         # a tiny model in Hugging Face form
        def write_gguf(self, directory, target): ...       # the same as GGUF, if the plugin reads it
        def reference(self, directory, ids): ...           # logits of somebody else's implementation, if there is one

Weights should be random with a standard deviation near 0.2: at the usual 0.02 a wrong rotation moves logits by less
than any tolerance. Needs pytest and safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.engine.sequence import SamplingParams
from zoo.errors import ZooError
from zoo.llm import LLM
from zoo.plugin.manager import PluginManager
from zoo.quant.experts import ExpertWeights
from zoo.quant.tensor import QuantTensor
from zoo.settings import Settings
from zoo.source import ModelSource
from zoo.testing.rules import model_rules

_GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=3)


class PluginConformance:
    """Subclass it in a test module under a name that begins with `Test`."""

    plugin: Any
    """The plugin object."""

    tolerance = 1e-4
    """Largest difference of logits in float32 that counts as equal."""

    tokens = 48
    """Length of the test sequences: make it longer than a sliding window or an original context of the tiny model."""

    required_tensor = "model.norm.weight"
    """A tensor that no checkpoint of the family may lack."""

    def write_checkpoint(self, directory: Path) -> None:
        """Write a tiny model in Hugging Face form: config.json, safetensors, tokenizer.json."""
        raise NotImplementedError("a conformance test needs a checkpoint")

    def write_gguf(self, directory: Path, target: Path) -> bool:
        """Write the checkpoint of `directory` as a float32 GGUF to `target`. False: there is none."""
        return False

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Logits float32 [T, V] of another implementation, and its hidden states [T, D] (embeddings, after each layer,
        the last after the final norm) or (). None: there is none.
        """
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def directory(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The checkpoint."""
        path = tmp_path_factory.mktemp("checkpoint")
        cls().write_checkpoint(path)
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def gguf(cls, directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The checkpoint as GGUF."""
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        if not cls().write_gguf(directory, path):
            pytest.skip("write_gguf wrote no file")
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def llm(cls, directory: Path) -> Iterator[LLM]:
        """The checkpoint, loaded in float32."""
        with cls()._load(directory) as llm:
            yield llm

    def test_tables_name_what_exists(self) -> None:
        """Every reference of the plugin's tables can be imported."""
        self.plugin.check()

    def test_detects_its_checkpoints(self, directory: Path) -> None:
        """The plugin owns the checkpoint among all installed plugins."""
        manager = PluginManager.discover(Settings.from_env(), extra=[self.plugin])
        with ModelSource.open(directory) as source:
            assert manager.detect(source).name == self.plugin.name

    def test_vocab_is_the_width_of_the_logits(self, llm: LLM) -> None:
        """`vocab` says how many columns the logits have, and they are finite float32."""
        logits = llm.logits(self._ids(llm))
        assert logits.dtype == torch.float32
        assert logits.shape == (self.tokens, self.plugin.vocab(llm.model))
        assert logits.isfinite().all()

    def test_eos_are_token_ids(self, llm: LLM) -> None:
        """`eos` gives a frozenset of ids of the vocabulary."""
        eos = self.plugin.eos(llm.model)
        assert isinstance(eos, frozenset)
        assert all(0 <= token < self.plugin.vocab(llm.model) for token in eos)

    def test_formats_agree(self, llm: LLM, gguf: Path) -> None:
        """The GGUF gives the logits of the safetensors."""
        ids = self._ids(llm)
        with self._load(gguf) as other:
            self._assert_close(other.logits(ids), llm.logits(ids), "GGUF and safetensors")

    def test_reference_agrees(self, llm: LLM, directory: Path) -> None:
        """The logits are those of the reference; if not, the first layer that differs is named."""
        ids = self._ids(llm)
        expected = self.reference(directory, ids)
        if expected is None:
            pytest.skip("the plugin has no reference implementation")
        logits, states = expected
        worst = (llm.logits(ids) - logits).abs().max().item()
        if worst >= self.tolerance:
            pytest.fail(f"logits differ by {worst:.2e}; {self._first_difference(llm, ids, states)}")

    @pytest.mark.parametrize("chunk", [1, 7])
    def test_chunks_equal_one_prefill(self, llm: LLM, chunk: int) -> None:
        """A prompt in chunks, or token by token, gives the hidden states of the prompt at once."""
        ids = tuple(self._ids(llm))
        whole, parts = (llm._engine.hidden(ids, size) for size in (len(ids), chunk))
        self._assert_close(llm.model.logits(parts), llm.model.logits(whole), f"chunks of {chunk} and one prefill")

    def test_a_packed_batch_equals_each_alone(self, llm: LLM) -> None:
        """Sequences of different lengths in one batch get the probabilities that each gets alone."""
        ids = self._ids(llm)
        prompts = [ids, ids[:1], ids[3:20], ids[:33]]
        for prompt, together in zip(prompts, llm.generate(prompts, _GREEDY), strict=True):
            alone = llm.generate(prompt, _GREEDY)
            assert together.token_ids == alone.token_ids
            assert together.logprobs is not None
            assert alone.logprobs is not None
            for one, other in zip(together.logprobs, alone.logprobs, strict=True):
                assert abs(one.logprob - other.logprob) < self.tolerance * 10

    def test_reset_forgets(self, llm: LLM) -> None:
        """After `reset` a prompt is answered as the first time."""
        ids = self._ids(llm)
        first = llm.generate(ids, _GREEDY)
        llm.generate(ids[5:9], _GREEDY)
        llm.reset()
        assert llm.generate(ids, _GREEDY).token_ids == first.token_ids

    def test_model_code_keeps_the_rules(self, llm: LLM) -> None:
        """No value is read in prefill; in decode there are only ops of zoo and views."""
        with model_rules():
            llm.logits(self._ids(llm))
        with model_rules(decode=True):
            llm.generate(self._ids(llm)[:1], _GREEDY)

    def test_weights_stay_as_they_are_on_disk(self, directory: Path, llm: LLM) -> None:
        """The model holds no more bytes of weights than the file, and no matrix in another dtype."""
        with ModelSource.open(directory) as source:
            on_disk = sum(info.nbytes for info in source.tensors.values())
        assert sum(weight.nbytes for weight in _weights(llm.model)) <= on_disk

    def test_an_unknown_tensor_is_refused(self, directory: Path, tmp_path: Path) -> None:
        """A tensor that nobody maps is an error that names it."""
        self._copy(directory, tmp_path, add="model.layers.0.not_a_weight")
        with pytest.raises(ZooError, match="not_a_weight"):
            self._load(tmp_path)

    def test_a_missing_tensor_is_refused(self, directory: Path, tmp_path: Path) -> None:
        """A weight that is not in the file is an error that names it."""
        self._copy(directory, tmp_path, drop=self.required_tensor)
        with pytest.raises(ZooError, match=re.escape(self.required_tensor)):
            self._load(tmp_path)

    def _load(self, path: Path) -> LLM:
        return LLM.load(path, device="cpu", dtype="float32", plugins=[self.plugin])

    def _ids(self, llm: LLM) -> list[int]:
        size = min(self.plugin.vocab(llm.model), llm.tokenizer.vocab_size)
        return [(i * 37 + 5) % size for i in range(self.tokens)]

    def _assert_close(self, found: Tensor, wanted: Tensor, what: str) -> None:
        worst = (found - wanted).abs().max().item()
        assert worst < self.tolerance, f"{what} differ by {worst:.2e}"

    def _first_difference(self, llm: LLM, ids: Sequence[int], states: Sequence[Tensor]) -> str:
        if not states:
            return "the reference gave no hidden states to find the layer by"
        for layer, (mine, theirs) in enumerate(zip(llm.hidden_states(ids, range(len(states))), states, strict=True)):
            if (mine - theirs).abs().max() >= self.tolerance:
                return f"the first hidden state that differs is {layer} of {len(states) - 1} (0: the embeddings)"
        return "all hidden states agree, so the head differs"

    def _copy(self, directory: Path, target: Path, *, add: str | None = None, drop: str | None = None) -> None:
        from safetensors.torch import load_file, save_file

        for file in directory.iterdir():
            if file.name.endswith(".json") and not file.name.endswith(".index.json"):
                (target / file.name).write_bytes(file.read_bytes())
        tensors = {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}
        if add:
            tensors[add] = torch.zeros(2, 2)
        if drop:
            del tensors[drop]
        save_file(tensors, target / "model.safetensors")


def _weights(model: Any) -> Iterator[Tensor | QuantTensor]:
    """Every weight of a model, packed or dense, once."""
    for module in model.modules():
        yield from module._parameters.values()
        for value in vars(module).values():
            if isinstance(value, QuantTensor):
                yield value
            elif isinstance(value, ExpertWeights):
                yield from value.views
