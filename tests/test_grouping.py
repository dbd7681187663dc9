# SPDX-License-Identifier: MIT
"""Groups: a cut that joins again, in the order that is written down."""

from __future__ import annotations

import pytest
import torch

from groupedmixer.config import get_config
from groupedmixer.group_order import phases_outer, slices_outer
from groupedmixer.grouping import Grouping


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (2, 2, 2), (5, 1, 2), (4, 2, 2), (1, 3, 2), (2, 4, 4)]
)
def test_merge_undoes_split(sizes: tuple[int, int, int]) -> None:
    slices, k_h, k_w = sizes
    grouping = Grouping(*sizes)
    y = torch.randn(2, 3 * slices, 2 * k_h, 3 * k_w)
    groups = grouping.split(y)
    assert groups.shape == (2, slices * k_h * k_w, 2, 3, 3)
    assert torch.equal(grouping.merge(groups), y)


def test_orders_begin_with_the_diagonal() -> None:
    assert slices_outer(2, 2, 2) == (
        *((0, 0, 0), (0, 1, 1), (0, 0, 1), (0, 1, 0)),
        *((1, 0, 0), (1, 1, 1), (1, 0, 1), (1, 1, 0)),
    )
    assert phases_outer(2, 2, 2) == (
        *((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)),
        *((0, 0, 1), (1, 0, 1), (0, 1, 0), (1, 1, 0)),
    )
    assert slices_outer(1, 1, 2) == phases_outer(1, 1, 2) == ((0, 0, 0), (0, 0, 1))


def test_rt_codes_phase_after_phase() -> None:
    assert get_config("rt").order == phases_outer(4, 2, 2)


def test_a_configuration_without_an_order_codes_slice_after_slice() -> None:
    assert Grouping(3, 2, 2).order == slices_outer(3, 2, 2)


def test_a_group_is_a_slice_at_a_phase() -> None:
    order = ((1, 0, 1), (0, 1, 0), (0, 0, 0), (1, 1, 1), (0, 0, 1), (1, 0, 0), (1, 1, 0), (0, 1, 1))
    grouping = Grouping(2, 2, 2, order)
    y = torch.randn(1, 6, 4, 8)
    features = torch.randn(1, 5, 4, 8)
    groups, at_groups = grouping.split(y), grouping.at_groups(features)
    for g, (c, i, j) in enumerate(order):
        expected = y[0, 3 * c : 3 * c + 3, i::2, j::2].permute(1, 2, 0)
        assert torch.equal(groups[0, g], expected)
        assert torch.equal(at_groups[0, g], features[0, :, i::2, j::2].permute(1, 2, 0))
    assert torch.equal(grouping.merge(groups), y)


@pytest.mark.parametrize("order", [((0, 0, 0),), ((0, 0, 0), (0, 0, 0)), ((0, 0, 0), (1, 0, 0))])
def test_an_order_must_be_a_permutation(order: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ValueError, match="order must be a permutation of the 2"):
        Grouping(1, 1, 2, order)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 2, 2, 2, got \[1, 4, 3, 4\]"):
        Grouping(2, 2, 2).split(torch.zeros(1, 4, 3, 4))
