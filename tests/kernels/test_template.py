"""Rehearsed steps against the same ops called one by one, for numbers of tokens that were not rehearsed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.native_cases import needs_native, pool, threads
from zoo import kernels
from zoo.kernels.native.recorder import Arena, ContractBroken
from zoo.kernels.native.template import Counts, Template

pytestmark = needs_native

COLUMNS = 64
MOST = 128
GIVEN = torch.empty(MOST, COLUMNS)
POSITIONS = torch.zeros(MOST, dtype=torch.int32)
WEIGHT = torch.randn(COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(1))
BIAS = torch.linspace(-1, 1, COLUMNS).bfloat16()
OTHER_BIAS = -BIAS
NORM = torch.linspace(0.5, 2, 16)
INV_FREQ = torch.linspace(1, 0.01, 16)


def rehearsed(step: Callable[[Counts], Tensor]) -> Template:
    return Template(step, (11, 3), (MOST, 7), pool(2), Arena())


def layers(counts: Counts) -> Tensor:
    """A bias that is converted at each call, several weights at once, heads as rows, a part of a row, angles."""
    x = GIVEN[: counts[0]]
    a, b = kernels.linear(x, (WEIGHT, WEIGHT[:16]), (BIAS, None))
    normed, _ = kernels.rms_norm(a.unflatten(-1, (-1, 16)), NORM, eps=1e-5)
    total = kernels.add(normed.flatten(1), a)
    angles = kernels.rotary(POSITIONS[: counts[0]], INV_FREQ, attention_scaling=1.0, interleaved=False)
    return kernels.add(kernels.add(total[:, 16:32], angles.cos), b)


def test_any_number_of_tokens() -> None:
    template = rehearsed(layers)
    for tokens in (*range(1, 40), 127, MOST):
        GIVEN[:tokens] = torch.randn(tokens, COLUMNS)
        POSITIONS[:tokens] = torch.randint(1000, (tokens,), dtype=torch.int32)
        with threads(2):
            wanted = layers((tokens, 1))
        found = template.run(pool(2), (tokens, 1))
        assert found.shape == (tokens, 16)
        assert torch.equal(found, wanted), tokens


WANTED = ([4], [0], [38], [0, 1, 2], [1, 8, 9, 37], [*range(39)], [])


@pytest.mark.parametrize("rows", WANTED, ids=len)
def test_some_rows_are_those_of_all(rows: list[int]) -> None:
    """What is behind the angles, of a part of a row, of angles and of a whole matrix, is computed for these alone."""
    template, tokens = rehearsed(layers), 39
    GIVEN[:tokens] = torch.randn(tokens, COLUMNS)
    POSITIONS[:tokens] = torch.randint(1000, (tokens,), dtype=torch.int32)
    every = template.run(pool(2), (tokens, 1)).clone()
    wanted = np.array(rows, np.int32), (len(rows), 1)
    assert len(template._parts[1]) == 2
    assert torch.equal(template.run(pool(2), (tokens, 1), wanted), every[rows])
    assert torch.equal(template.run(pool(2), (tokens, 1)), every)


def not_of_the_step(counts: Counts) -> Tensor:
    """The last op reads what was there before: to move its rows would change the inputs."""
    return kernels.add(twice(GIVEN[: counts[0]]), GIVEN[: counts[0]])


def parts_of_one_matrix(counts: Counts) -> Tensor:
    normed, _ = kernels.rms_norm(GIVEN[: counts[0]].unflatten(-1, (-1, 16)), NORM, eps=1e-5)
    wide = normed.flatten(1)
    return kernels.add(wide[:, :32], wide[:, 32:])


def angles(counts: Counts) -> Tensor:
    return kernels.rotary(POSITIONS[: counts[0]], INV_FREQ, attention_scaling=1.0, interleaved=False).cos


def one_row_for_all(counts: Counts) -> Tensor:
    y = twice(angles(counts))
    return kernels.add(y, y[:1].expand(counts[0], -1))


def rows_of_other_rows(counts: Counts) -> Tensor:
    return twice(twice(angles(counts)).view(2 * counts[0], -1)[: counts[0]])


@pytest.mark.parametrize("step", [not_of_the_step, parts_of_one_matrix, one_row_for_all, rows_of_other_rows, angles])
def test_rows_that_cannot_be_moved_are_chosen_at_the_end(step: Callable[[Counts], Tensor]) -> None:
    template = rehearsed(step)
    GIVEN.copy_(torch.randn(MOST, COLUMNS))
    POSITIONS.copy_(torch.arange(MOST))
    given = GIVEN.clone()
    every = template.run(pool(2), (50, 1)).clone()
    rows = np.array([3, 20, 49], np.int32)
    assert torch.equal(template.run(pool(2), (50, 1), (rows, (3, 1))), every[rows])
    assert not template._parts[1]
    assert torch.equal(GIVEN, given)


def test_nothing_is_computed_while_it_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(pool(2)), "execute", lambda *_: pytest.fail("it computes"))
    assert len(rehearsed(layers)) == 6


def test_what_is_beyond_the_tokens_is_left_alone() -> None:
    template = rehearsed(layers)
    GIVEN.fill_(1)
    POSITIONS.fill_(1)
    first = template.run(pool(2), (MOST, 1))
    last = first[-1].clone()
    GIVEN.fill_(2)
    template.run(pool(2), (MOST - 1, 1))
    assert torch.equal(first[-1], last)
    assert not torch.equal(first[0], last)


def twice(x: Tensor) -> Tensor:
    return kernels.add(x, x)


def other_ops(counts: Counts) -> Tensor:
    y = twice(GIVEN[: counts[0]])
    return twice(y) if counts[0] > 100 else y


def another_op(counts: Counts) -> Tensor:
    x = GIVEN[: counts[0]]
    return kernels.rms_norm(x, None, eps=1e-5)[0] if counts[0] > 100 else twice(x)


def another_weight(counts: Counts) -> Tensor:
    return kernels.linear(GIVEN[: counts[0]], (WEIGHT if counts[0] > 100 else WEIGHT.T.contiguous(),), (None,))[0]


def another_bias(counts: Counts) -> Tensor:
    return kernels.linear(GIVEN[: counts[0]], (WEIGHT,), (BIAS if counts[0] > 100 else OTHER_BIAS,))[0]


def another_number(counts: Counts) -> Tensor:
    return kernels.rms_norm(GIVEN[: counts[0]], None, eps=1 / counts[0])[0]


def some_rows(counts: Counts) -> Tensor:
    twice(GIVEN[: min(counts[0], 100)])
    return twice(GIVEN[: counts[0]])


def one_row_less(counts: Counts) -> Tensor:
    twice(GIVEN[: counts[0] - 1])
    return twice(GIVEN[: counts[0]])


def other_rows(counts: Counts) -> Tensor:
    twice(twice(GIVEN[: counts[0]])[counts[0] // 2 :][:3])
    return twice(GIVEN[: counts[0]])


def rows_from_the_end(counts: Counts) -> Tensor:
    return twice(GIVEN[MOST - counts[0] :])


def a_row_too_few(counts: Counts) -> Tensor:
    return twice(GIVEN[: counts[0]])[1:]


def a_row_per_sequence(counts: Counts) -> Tensor:
    return twice(GIVEN[: counts[1]])


def another_place(counts: Counts) -> Tensor:
    y = twice(GIVEN[: counts[0]])
    return y[:, 1:] if counts[0] > 100 else y[:, :-1]


def torch_computes(counts: Counts) -> Tensor:
    return twice(GIVEN[: counts[0]]) + 1


def a_value_is_read(counts: Counts) -> Tensor:
    return GIVEN[: counts[0]] if POSITIONS[0] > 0 else twice(GIVEN[: counts[0]])


@pytest.mark.parametrize(
    "step",
    [
        other_ops,
        another_op,
        another_weight,
        another_bias,
        another_number,
        some_rows,
        one_row_less,
        other_rows,
        rows_from_the_end,
        a_row_too_few,
        a_row_per_sequence,
        another_place,
        torch_computes,
        a_value_is_read,
    ],
)
def test_a_step_that_depends_on_the_number_of_tokens_in_another_way(step: Callable[[Counts], Tensor]) -> None:
    with pytest.raises(ContractBroken):
        rehearsed(step)


def test_rows_of_sequences_are_counted_apart() -> None:
    def step(counts: Counts) -> Tensor:
        twice(GIVEN[: 2 * counts[1], :1])
        return twice(GIVEN[: counts[0]])

    template = rehearsed(step)
    template.run(pool(2), (9, 2))
    assert template._words.reshape(2, -1)[:, 4].tolist() == [4, 9]
