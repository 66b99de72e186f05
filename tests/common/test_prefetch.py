"""Results come in order, and threads are a bounded number of items ahead of who takes them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from headstart.common.prefetch import prefetched


def test_results_come_in_order_whatever_takes_longest() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (5 - number))
        return number * number

    with ThreadPoolExecutor(5) as pool:
        assert list(prefetched(work, range(5), pool, 5)) == [0, 1, 4, 9, 16]


def test_no_more_items_are_begun_than_asked_for() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = prefetched(begun.append, range(100), pool, 4)
        next(results)
        time.sleep(0.1)
        assert begun == [0, 1, 2, 3]
        results.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_turn_and_cancels_the_rest() -> None:
    begun, going_on = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError("item 1")
        if number == 2:
            going_on.wait(10)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = prefetched(work, range(20), pool, 10)
        assert next(results) == 0
        with pytest.raises(ValueError, match="item 1"):
            next(results)
        going_on.set()
    assert max(begun) <= 2
