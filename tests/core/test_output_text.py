"""OutputText: stop strings, held back until decided, over whole characters."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from zoo.engine.text import OutputText
from zoo.tokenizer import TokenStream


def output(pieces: list[bytes], stops: list[str]) -> OutputText:
    return OutputText(TokenStream(lambda token: pieces[token], frozenset(), strip_space=False), stops)


def texts(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    """What each piece made certain, then the rest, and whether a stop string ended it."""
    out = output(pieces, stops)
    shown = []
    for token in range(len(pieces)):
        shown.append(out.push(token))
        if out.stopped:
            break
    shown.append(out.flush())
    return shown, out.stopped


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: the text before the first stop string to be complete, the longest if several end there."""
    for end in range(1, len(text) + 1):
        if ending := [len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(ending)], True
    return text, False


def test_without_stop_strings_nothing_is_held() -> None:
    assert texts([b"a", b"bc", b""], []) == (["a", "bc", "", ""], False)


def test_a_possible_beginning_is_held_until_decided() -> None:
    assert texts([b"x<", b"e", b"n", b"t"], ["<end>"]) == (["x", "", "", "<ent", ""], False)
    assert texts([b"x<", b"e", b"nd>y", b"z"], ["<end>"]) == (["x", "", "", ""], True)


def test_what_was_held_comes_at_the_end() -> None:
    assert texts([b"a<en"], ["<end>"]) == (["a", "<en"], False)


def test_only_the_longest_possible_beginning_is_held() -> None:
    assert texts([b"aab", b"aab", b"c"], ["aabaac"]) == (["", "aab", "aabc", ""], False)
    assert texts([b"xaba"], ["abab", "bb"]) == (["x", "aba"], False)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert texts([b"abcd"], ["abcd", "bc"]) == (["a", ""], True)
    assert texts([b"abc"], ["c", "bc"]) == (["a", ""], True)


def test_a_stop_string_in_the_middle_of_a_piece_cuts_it() -> None:
    assert texts([b"one STOP two"], ["STOP"]) == (["one ", ""], True)


def test_characters_stay_whole() -> None:
    data = "a€🦁".encode()
    shown, stopped = texts([data[i : i + 1] for i in range(len(data))], [])
    assert not stopped
    assert [part for part in shown if part] == ["a", "€", "🦁"]


def test_an_unfinished_character_is_marked_at_the_end() -> None:
    assert texts([b"a\xf0\x9f"], []) == (["a", "\ufffd"], False)


def test_a_stop_string_that_only_the_end_completes() -> None:
    assert texts([b"a\xe2\x82"], ["\ufffd"]) == (["a", ""], True)


LETTERS = st.sampled_from("ab<€🦁")


@given(
    st.text(LETTERS, max_size=30),
    st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_any_cut_gives_the_same_text(text: str, stops: list[str], places: list[int]) -> None:
    shown, stopped = texts(cut(text.encode(), places), stops)
    assert ("".join(shown), stopped) == naive(text, stops)


@given(st.text(LETTERS, max_size=30), st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=3))
def test_no_more_is_held_than_might_become_a_stop_string(text: str, stops: list[str]) -> None:
    out, shown = output([letter.encode() for letter in text], stops), ""
    for token in range(len(text)):
        shown += out.push(token)
        if out.stopped:
            return
        held = text[len(shown) : token + 1]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
