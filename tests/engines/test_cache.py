"""The cache of a batch whose rows come and go, on numbers that tell row and column."""

import torch

from toa_exp.engines.cache import RowCache

LAYERS, HEADS, SIZE = 2, 3, 4


def states(rows: list[list[float]]) -> list[list[torch.Tensor]]:
    """Keys and values as a prefill leaves them: one number a column in all layers, heads and places."""
    values = torch.tensor(rows)[:, None, :, None].expand(-1, HEADS, -1, SIZE).clone()
    return [[values, -values] for _ in range(LAYERS)]


def step(cache: RowCache, column: list[float]) -> list[list[float]]:
    """Write a column as the layers of a model do; returns what they attend to, a list a row."""
    seen = []
    for layer in range(LAYERS):
        new = torch.tensor(column)[:, None, None, None].expand(-1, HEADS, 1, SIZE)
        assert cache.get_mask_sizes(1, layer) == (cache.get_seq_length() + 1, 0)
        keys, values = cache.update(new, -new, layer)
        assert torch.equal(torch.nan_to_num(keys), torch.nan_to_num(-values))
        assert torch.equal(torch.nan_to_num(keys), torch.nan_to_num(keys[:, :1, :, :1]).expand_as(keys))
        seen.append(keys[:, 0, :, 0].tolist())
    cache.advance()
    assert seen[0] == seen[1]
    return seen[0]


def test_rows_end_in_the_same_column_whenever_they_came():
    first = states([[0, 1, 2], [3, 4, 5]])
    cache = RowCache(first)
    cache.admit(first)
    assert step(cache, [10, 11]) == [[0, 1, 2, 10], [3, 4, 5, 11]]
    cache.admit(states([[6, 7]]))
    assert [row[-3:] for row in step(cache, [12, 13, 14])] == [[2, 10, 12], [5, 11, 13], [6, 7, 14]]
    cache.admit(states([[20.0 + i for i in range(9)]]))
    after = step(cache, [15, 16, 17, 18])
    assert after[3] == [20, 21, 22, 23, 24, 25, 26, 27, 28, 18]
    assert after[0][-6:] == [0, 1, 2, 10, 12, 15]
    assert after[2][-4:] == [6, 7, 14, 17]


def test_rows_that_stay_move_up_and_unused_columns_are_dropped():
    first = states([[0, 1, 2, 3], [4, 5, 6, 7], [-1, -1, 8, 9], [-1, 10, 11, 12]])
    cache = RowCache(first)
    cache.admit(first)
    cache.leave(holes=[0, 1], movers=[2, 3], rows=2, longest=3)
    assert step(cache, [20, 21]) == [[-1, 8, 9, 20], [10, 11, 12, 21]]
    cache.leave(holes=[0], movers=[1], rows=1, longest=4)
    assert step(cache, [22]) == [[10, 11, 12, 21, 22]]


def test_many_steps_outgrow_the_buffers():
    first = states([[0, 1], [2, 3]])
    cache = RowCache(first)
    cache.admit(first)
    for number in range(300):
        after = step(cache, [number, -number])
    assert after[0] == [0, 1, *range(300)]
    assert after[1] == [2, 3, *(-number for number in range(300))]


def test_nothing_is_left_of_a_row_that_was_wiped():
    nan = float("nan")
    first = states([[0, 1, 2], [nan, nan, nan]])
    cache = RowCache(first)
    cache.admit(first)
    cache.wipe([1])
    cache.leave(holes=[], movers=[], rows=1, longest=3)
    cache.admit(states([[5]]))
    assert step(cache, [6, 7]) == [[0, 1, 2, 6], [0, 0, 5, 7]]
