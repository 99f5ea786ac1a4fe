"""Chooses the next token of each sequence from its row of logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from zoo import kernels
from zoo.engine.sequence import Sequence, TokenLogprob
from zoo.errors import UsageError


@dataclass(frozen=True)
class Choices:
    """How tokens are drawn from L rows of logits.

    `numbers`: float32 [4, L], the temperature, top_p, min_p and uniform of `zoo.kernels.sample`; `top_k`: int32 [L];
    `banned`: bool [V] on `device`, or None.
    """

    numbers: np.ndarray
    top_k: np.ndarray
    banned: Tensor | None
    device: torch.device

    @cached_property
    def settings(self) -> dict[str, Tensor]:
        """What `zoo.kernels.sample` takes beside the logits and what is banned."""
        temperature, top_p, min_p, uniform = torch.from_numpy(self.numbers).to(self.device).unbind()
        top_k = torch.from_numpy(self.top_k).to(self.device)
        return {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "uniform": uniform}


class Sampler:
    """Masks ids that are no tokens, applies penalties, biases and grammars, and samples each row by its own
    parameters.
    """

    def __init__(self, vocab_size: int, tokenizer_size: int, suppressed: Collection[int], device: torch.device) -> None:
        """`vocab_size`: columns of the logits; `suppressed` ids, and ids from `tokenizer_size` on, are banned."""
        self.device = device
        banned = torch.from_numpy(np.zeros(vocab_size, np.bool_))  # without a parallel loop, the first of which is slow
        banned[tokenizer_size:] = True
        for token in suppressed:
            banned[token] = True
        self.banned = banned.to(device) if bool(banned.any()) else None
        self._greedy: dict[int, Choices] = {}

    def choices(self, sequences: Items[Sequence]) -> Choices:
        """How the next token of each sequence is drawn from its row, where nothing edits that before."""
        if any(sequence.params.temperature for sequence in sequences):
            return self._choices(sequences)
        count = len(sequences)
        if count not in self._greedy:  # for all greedy sequences of that number alike
            self._greedy[count] = self._choices(sequences)
        return self._greedy[count]

    def is_plain(self, sequences: Items[Sequence]) -> bool:
        """Whether `sample` would give the tokens that were drawn, and do nothing else."""
        return not any(sequence.params.logprobs is not None or _edits(sequence) for sequence in sequences)

    def sample(self, logits: Tensor, sequences: Items[Sequence], drawn: list[int] | None = None) -> list[int]:
        """Token ids for logits float32 [L, V], one row per sequence; fills their logprobs if they want them.

        `drawn`: tokens that were drawn from these logits by `choices`; taken where no logits are edited.
        """
        edited = any(_edits(sequence) for sequence in sequences)
        if drawn is None or edited:
            allowed = logits
            if edited:
                allowed = logits if self.banned is None else logits.masked_fill(self.banned, float("-inf"))
                allowed = self._edited(allowed, sequences)
            tokens = kernels.sample(allowed, **self.choices(sequences).settings, banned=self.banned)
            drawn = [int(token) for token in tokens.tolist()]
        for row, (sequence, token) in enumerate(zip(sequences, drawn, strict=True)):
            if sequence.params.logprobs is not None:
                sequence.logprobs.append(logprob(logits[row], token, sequence.params.logprobs))
        return drawn

    def _choices(self, sequences: Items[Sequence]) -> Choices:
        numbers = np.empty((4, len(sequences)), np.float32)
        for column, sequence in enumerate(sequences):
            params = sequence.params
            numbers[:, column] = (
                params.temperature or 0.0,
                1.0 if params.top_p is None else params.top_p,
                params.min_p or 0.0,
                # A greedy row needs no chance, which costs more than its argmax.
                _uniform(sequence) if params.temperature else 0.0,
            )
        # Not through float32, which has no 2^31 - 1.
        top_k = np.array([sequence.params.top_k or 0 for sequence in sequences], np.int32)
        return Choices(numbers, top_k, self.banned, self.device)

    @torch.inference_mode()
    def score(self, logits: Tensor, sequence: Sequence, start: int) -> None:
        """Note the log probabilities of prompt tokens after those at positions from `start` on, logits [T, V]."""
        prompt = sequence.prompt_token_ids
        assert sequence.params.logprobs is not None
        for position, row in enumerate(logits, start):
            if len(sequence.prompt_logprobs) <= position < len(prompt) - 1:
                sequence.prompt_logprobs.append(logprob(row, prompt[position + 1], sequence.params.logprobs))

    def _edited(self, logits: Tensor, sequences: Items[Sequence]) -> Tensor:
        """A copy of the logits with penalties, biases and grammars in it.

        A grammar that fails is the `error` of its sequence; the others go on.
        """
        logits = logits.clone()
        for row, sequence in enumerate(sequences):
            if _edits(sequence):
                try:
                    self._edit(logits[row], sequence)
                except Exception as error:
                    sequence.error = error
        return logits

    def _edit(self, row: Tensor, sequence: Sequence) -> None:
        """Change one row of logits [V] in place, in the order that SamplingParams names."""
        params = sequence.params
        if params.repeat_penalty not in (None, 1.0):
            # Keskar et al. 2019, arXiv 1909.05858: divide positive and multiply negative logits of tokens seen before.
            seen = self._ids({*sequence.prompt_token_ids, *sequence.output_token_ids})
            values = row[seen]
            row[seen] = torch.where(values > 0, values / params.repeat_penalty, values * params.repeat_penalty)
        if sequence.output_token_ids and (params.presence_penalty or params.frequency_penalty):
            counts = Counter(sequence.output_token_ids)
            often = params.frequency_penalty * self._floats([float(count) for count in counts.values()])
            row[self._ids(counts)] -= params.presence_penalty + often
        if params.logit_bias:
            row[self._ids(params.logit_bias)] += self._floats([float(bias) for bias in params.logit_bias.values()])
        if sequence.constraint is not None:
            bits = np.unpackbits(np.frombuffer(sequence.constraint.mask(), np.uint8), bitorder="little")
            allowed = torch.zeros(len(row), dtype=torch.bool)
            known = min(len(bits), len(row))
            allowed[:known] = torch.from_numpy(bits[:known].astype(bool))
            row.masked_fill_(~allowed.to(self.device), float("-inf"))
            if not bool((row > float("-inf")).any()):
                raise UsageError("the grammar allows no token of this model here", remedy="give another grammar")

    def _ids(self, ids: Iterable[int]) -> Tensor:
        return torch.tensor(list(ids), dtype=torch.int64, device=self.device)

    def _floats(self, values: list[float] | list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def logprob(row: Tensor, token: int, top: int) -> TokenLogprob:
    """Log probability of `token` and of the `top` likeliest under one row of raw logits float32 [V]."""
    logprobs = row.log_softmax(-1)
    values, ids = logprobs.topk(min(top, row.shape[-1]))
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _edits(sequence: Sequence) -> bool:
    """Whether anything but the mask of banned ids changes a sequence's logits."""
    params = sequence.params
    penalised = bool(params.presence_penalty or params.frequency_penalty) or params.repeat_penalty not in (None, 1.0)
    return penalised or bool(params.logit_bias) or sequence.constraint is not None


def _uniform(sequence: Sequence) -> float:
    """One number in [0, 1) per (seed, step): the same whatever else is in the batch."""
    generator = np.random.Philox(key=sequence.params.seed or 0, counter=len(sequence.output_token_ids))
    return float(np.float32(np.random.Generator(generator).random(dtype=np.float32)))
