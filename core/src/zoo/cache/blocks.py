"""Block accounting: which blocks of a cache pool belong to which sequences, and what they hold. No torch.

Block 0 is never handed out: block tables are padded with it, and positions a sliding window has left point to it.
Its memory is zero and stays so.

A block may be known by a digest of all tokens up to its end. Then its content is fixed, any number of sequences may own
it, and it stays known when nobody owns it, until its memory is needed: the one that was not used for longest goes
first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def block_digest(before: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a block by content: its tokens, and `before`, the digest of the block before it (b"": none)."""
    return blake2b(before + array("q", token_ids).tobytes(), digest_size=16).digest()


class BlockManager:
    """Hands out blocks of `block_size` tokens from a pool of `num_blocks` (block 0 excluded) to sequences by id.

    `window`: tokens that a query of this pool sees, itself included; None: all. `max_idle`: how many blocks that nobody
    owns may stay known by their digests; None: all.
    """

    def __init__(
        self, num_blocks: int, block_size: int, window: int | None = None, *, max_idle: int | None = None
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.window = window
        self._max_idle = num_blocks if max_idle is None else max_idle
        # A stack: the block freed last is handed out first, so that a pool touches only as much memory as it needs.
        self._free = list(range(num_blocks - 1, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and owned by nobody, the longest unused first
        self._owners = [0] * num_blocks
        self._tables: dict[str, list[int]] = {}
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free) + len(self._idle)

    def blocks_needed(self, request_id: str, num_tokens: int) -> int:
        """How many more blocks a sequence needs to hold `num_tokens` tokens in all."""
        have = len(self._tables.get(request_id, ()))
        return max(0, -(-num_tokens // self.block_size) - have)

    def can_grow(self, request_id: str, num_tokens: int) -> bool:
        """Whether `grow` would succeed now."""
        return self.blocks_needed(request_id, num_tokens) <= self.num_free

    def grow(self, request_id: str, num_tokens: int) -> None:
        """Give a sequence blocks for `num_tokens` tokens in all. The caller has asked `can_grow`."""
        table = self._tables.setdefault(request_id, [])
        for _ in range(self.blocks_needed(request_id, num_tokens)):
            table.append(self._take())

    def holds(self, digests: Sequence[bytes]) -> bool:
        """Whether the pool has what a sequence that begins with the blocks of these digests needs to go on."""
        return all(digest in self._block_of for digest in digests[self._dead(len(digests) * self.block_size) :])

    def adopt(self, request_id: str, digests: Sequence[bytes]) -> None:
        """Begin a sequence with the known blocks of these digests. The caller has asked `holds`."""
        dead = self._dead(len(digests) * self.block_size)
        blocks = [self._block_of[digest] for digest in digests[dead:]]
        for block in blocks:
            self._owners[block] += 1
            self._idle.pop(block, None)
        self._tables[request_id] = [0] * dead + blocks

    def name(self, request_id: str, index: int, digest: bytes) -> None:
        """Make the block at `index` of a sequence's table known by its digest: all its tokens are in the cache."""
        block = self._tables[request_id][index]
        if block and digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def trim(self, request_id: str, num_computed: int) -> None:
        """Give back the blocks that no later query can see, for a pool with a sliding window.

        The next query has position `num_computed` and sees keys above `num_computed - window`.
        """
        if self.window is None:
            return
        table = self._tables.get(request_id, [])
        for index in range(min(self._dead(num_computed), len(table)) - 1, -1, -1):
            if table[index] == 0:
                break  # what lies before was given back earlier
            self._release(table[index])
            table[index] = 0

    def table(self, request_id: str) -> list[int]:
        """The blocks of a sequence by position (0 where a window has moved on). Not a copy: do not change it."""
        return self._tables[request_id]

    def slot(self, request_id: str, position: int) -> int:
        """Index of a token's place in the pool, counted in tokens."""
        return self._tables[request_id][position // self.block_size] * self.block_size + position % self.block_size

    def free(self, request_id: str) -> None:
        """Take all blocks of a sequence back. Unknown ids are fine: a sequence may end before it got a block."""
        # From the end: of a known text, its end is forgotten first.
        for block in reversed(self._tables.pop(request_id, [])):
            if block:
                self._release(block)

    def reset(self) -> None:
        """Take every block back and forget what is in them."""
        for request_id in list(self._tables):
            self.free(request_id)
        while self._idle:
            self._free.append(self._forget())

    def _dead(self, num_computed: int) -> int:
        """Blocks at the beginning of a table that the query at position `num_computed` and later ones do not see."""
        return 0 if self.window is None else max(0, num_computed - self.window + 1) // self.block_size

    def _take(self) -> int:
        block = self._free.pop() if self._free else self._forget()
        self._owners[block] = 1
        return block

    def _release(self, block: int) -> None:
        self._owners[block] -= 1
        if self._owners[block]:
            return
        if block in self._digest_of:
            self._idle[block] = None
            if len(self._idle) > self._max_idle:
                self._free.append(self._forget())
        else:
            self._free.append(block)

    def _forget(self) -> int:
        """The known block that was not used for longest, known no more."""
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        return block
