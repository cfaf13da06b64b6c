"""Micro-batches: who waits is always told."""

import asyncio

import pytest

from toa_exp.batching import Batcher


@pytest.mark.parametrize("results", [[1], [1, 2, 3]])
def test_a_wrong_number_of_results_is_told_to_all_and_the_next_batch_is_handled(results):
    answers = [results, [7]]

    async def main() -> tuple[list[object], int]:
        batcher = Batcher(lambda _: answers.pop(0), 4)
        first = [batcher.submit(item) for item in (1, 2)]
        wrong = await asyncio.wait_for(asyncio.gather(*first, return_exceptions=True), 10)
        after = await asyncio.wait_for(batcher.submit(3), 10)
        await batcher.close()
        return wrong, after

    wrong, after = asyncio.run(main())
    assert all(isinstance(error, ValueError) and "a batch of 2" in str(error) for error in wrong)
    assert after == 7
