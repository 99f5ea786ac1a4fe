"""The packed batch: what one forward pass reads, with no padding between sequences.

Dims: T packed tokens, S sequences, L rows of logits, B blocks of the longest block table.
One shape serves a prompt, a chunk of a prompt, one decoding user and 64 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheTables:
    """Where the tokens of a batch lie in one cache group.

    `block_table` int32 [S, B]: the blocks of each sequence in order of position; entries past its length are 0 and are
    never read as valid positions. `slot_mapping` int32 [T]: place of each new token in the pool, -1 for padding.
    In a group of recurrent states a sequence has one row of each state tensor, however long it is: B is 1, and
    `slot_mapping` repeats the row for each of its tokens.
    """

    block_table: Tensor
    slot_mapping: Tensor

    @property
    def state_indices(self) -> Tensor:
        """Int32 [S]: the row of each sequence in a group of recurrent states; 0, which nobody owns, for padding."""
        return self.block_table[:, 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs of one step. Index tensors are int32 on the model's device; the rest are host facts of the scheduler.

    `input_ids` [T], `positions` [T]; `cu_seqlens` [S+1]: sequence s owns tokens cu_seqlens[s]:cu_seqlens[s+1];
    `seq_lens` [S]: tokens in the cache after this step; `logits_indices` [L]: tokens whose logits are wanted;
    `tables`: one CacheTables per cache group. Padding tokens stand at the end (slot -1), padding sequences are empty.
    `query_lens`: new tokens per sequence; `max_query_len`, `max_seq_len`: their maxima, with the cached tokens for the
    latter. `prompt_start`: tokens from this one on belong to prompts, those before continue answers; kernels may round
    the two kinds differently, and each token of a kind alike in every batch; None: as answers. `input_embeds` [T, D]
    replaces the embedding lookup where a caller supplies vectors; `lora_index` int32 [S].
    """

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    seq_lens: Tensor
    logits_indices: Tensor
    tables: Mapping[int, CacheTables]
    query_lens: tuple[int, ...]
    max_query_len: int
    max_seq_len: int
    request_ids: tuple[str, ...]
    prompt_start: int | None = None
    input_embeds: Tensor | None = None
    lora_index: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Real tokens, without padding at the end."""
        return sum(self.query_lens)
