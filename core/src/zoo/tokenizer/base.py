"""Tokenizer: text to token ids and back, whatever file the vocabulary came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from zoo.errors import TokenizerError
from zoo.tokenizer.special import Matcher, Special
from zoo.tokenizer.stream import TokenStream


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model.

    `tokens`: spelling per id, as in the file ("" where an id has none). `ids`: token -> id. `controls`: the control
    tokens, which only trusted text may spell. `hidden`: ids that a reader of the answer does not see. `suppressed`: ids
    that must never be sampled. `piece(id)`: the bytes that a token stands for.
    """

    tokens: Sequence[str]
    ids: Mapping[str, int]
    controls: Mapping[str, Special]
    hidden: frozenset[int]
    suppressed: frozenset[int]
    piece: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids with a role.

    `eog`: every id that ends a generation. `add_bos`, `add_eos`: what `encode(add_special=True)` puts around text.
    """

    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    eog: frozenset[int] = field(default_factory=frozenset)
    add_bos: bool = False
    add_eos: bool = False


class Tokenizer:
    """Text to token ids and back.

    `vocab_size`: ids that the tokenizer knows; a model may have more rows, which are never sampled. `bos_id`, `eos_id`,
    `unk_id`, `pad_id`: None where the model has none. `eog_ids`: ids that end a generation. `add_bos`, `add_eos`: what
    `encode(add_special=True)` adds. `control_tokens`: spelling -> id of the tokens that only `parse_special` matches.
    `suppressed_ids`: fillers that must never be sampled. `kind`: "bpe", "spm", ...; `pre`: the pre-tokeniser of a GGUF
    file, else "".

    `encode_run(text, at_start)` gives the ids of text without control tokens; `at_start`: nothing stands before it.
    `strip_space`: the encoder puts a space before text, so decoding takes one away.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: SpecialIds,
        encode_run: Callable[[str, bool], list[int]],
        *,
        kind: str,
        pre: str = "",
        strip_space: bool = False,
    ) -> None:
        self.kind = kind
        self.pre = pre
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = special.bos, special.eos, special.unk, special.pad
        self.eog_ids = special.eog
        self.add_bos, self.add_eos = special.add_bos, special.add_eos
        self.control_tokens: Mapping[str, int] = {text: entry.id for text, entry in vocabulary.controls.items()}
        self.suppressed_ids = vocabulary.suppressed
        self._vocabulary = vocabulary
        self._encode_run = encode_run
        self._controls = Matcher(vocabulary.controls)
        self._strip_space = strip_space

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of `text`. `parse_special`: control tokens spelled in it become their ids (never for text of a user).

        Raises TokenizerError for text that is no Unicode (a lone surrogate) or that the vocabulary cannot express.
        """
        return self.encode_segments([(text, parse_special)], add_special=add_special)

    def encode_segments(self, segments: Sequence[tuple[str, bool]], *, add_special: bool = False) -> list[int]:
        """Ids of segments `(text, parse_special)`, encoded as the one text that they are together.

        Control tokens are matched only where all of the spelling lies in text with parse_special; merges cross borders.
        """
        text = "".join(segment for segment, _ in segments)
        _check_unicode(text)
        ids: list[int] = []
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        done = 0
        for begin, end, control in self._controls.matches(text, _trusted(segments)):
            ids += self._run(text, done, begin)
            ids.append(control)
            done = end
        ids += self._run(text, done, len(text))
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing.

        `skip_special` leaves out control tokens. Raises TokenizerError for a negative id.
        """
        stream = self.stream(skip_special=skip_special)
        return stream.push_all(ids) + stream.flush()

    def stream(
        self, *, skip_special: bool = True, prompt_ids: Sequence[int] = (), keep: Iterable[str] = ()
    ) -> TokenStream:
        """A decoder of one token after the other. `prompt_ids` come before them, and are not part of the text.

        `keep`: control tokens that stay in the text all the same, for whoever parses it.

        A text that begins (no prompt, or a control token at its end) loses the space that encoding would put before it.
        """
        begins = not prompt_ids or prompt_ids[-1] in self._vocabulary.hidden
        hidden = self._vocabulary.hidden if skip_special else frozenset[int]()
        hidden -= {self.control_tokens[token] for token in keep if token in self.control_tokens}
        stream = TokenStream(self._piece, hidden, strip_space=self._strip_space and begins)
        if not begins:
            stream.push_all(prompt_ids[-4:])  # a character of up to 4 byte tokens may begin in the prompt
        return stream

    def token(self, id: int) -> str:
        """The spelling of a token as the vocabulary has it. Raises TokenizerError for an id outside of it."""
        if not 0 <= id < self.vocab_size:
            raise TokenizerError(f"the vocabulary has no id {id}", remedy=f"ids are 0 to {self.vocab_size - 1}")
        return self._vocabulary.tokens[id]

    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for. Raises TokenizerError for a negative id; an unknown one has none."""
        return self._piece(id)

    def id(self, token: str) -> int | None:
        """The id of a token spelled as the vocabulary has it; None if there is none."""
        return self._vocabulary.ids.get(token)

    def _run(self, text: str, begin: int, end: int) -> list[int]:
        return self._encode_run(text[begin:end], begin == 0) if begin < end else []

    def _piece(self, id: int) -> bytes:
        if id < 0:
            raise TokenizerError(f"{id} is no token id", remedy="pass ids as encode() and generate() give them")
        return self._vocabulary.piece(id) if id < self.vocab_size else b""


def _trusted(segments: Sequence[tuple[str, bool]]) -> Iterable[tuple[int, int]]:
    """(begin, end) in the joined text of each stretch whose control spellings count; neighbours are one stretch."""
    position = 0
    for trusted, group in groupby(segments, key=lambda segment: segment[1]):
        length = sum(len(text) for text, _ in group)
        if trusted:
            yield position, position + length
        position += length


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise TokenizerError(
            f"the text has a lone surrogate U+{ord(text[problem.start]):04X} at character {problem.start}",
            remedy="read the text as UTF-8 with errors='replace'",
        ) from None
