"""Work for many at once: everyone gets an own answer, of work that began after the question."""

from __future__ import annotations

import asyncio

import pytest

from app.gathered import Gathered


def test_those_who_ask_while_a_batch_is_out_are_the_next_one() -> None:
    batches: list[list[int]] = []

    async def ask() -> list[int]:
        go_on = asyncio.Event()

        async def squares(numbers: list[int]) -> list[int]:
            batches.append(numbers)
            await go_on.wait()
            return [number**2 for number in numbers]

        gathered: Gathered[int, int] = Gathered(squares)
        first = asyncio.create_task(gathered.ask(0))
        while not batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(gathered.ask(number)) for number in (3, 1, 3)]
        await asyncio.sleep(0)
        go_on.set()
        return [await task for task in (first, *others)]

    assert asyncio.run(ask()) == [0, 9, 1, 9]
    assert batches == [[0], [3, 1, 3]]


def test_an_error_is_of_one_or_of_the_whole_batch() -> None:
    async def inverses(numbers: list[int]) -> list[float | Exception]:
        if 7 in numbers:
            raise KeyError(7)
        return [1 / number if number else ZeroDivisionError("of this one") for number in numbers]

    async def ask(*numbers: int) -> list[object]:
        gathered: Gathered[int, float] = Gathered(inverses)
        return await asyncio.gather(*map(gathered.ask, numbers), return_exceptions=True)

    fine, wrong, also_fine = asyncio.run(ask(2, 0, 4))
    assert (fine, also_fine) == (0.5, 0.25) and isinstance(wrong, ZeroDivisionError)
    assert all(isinstance(answer, KeyError) for answer in asyncio.run(ask(2, 7)))


def test_who_leaves_keeps_nobody_from_an_answer() -> None:
    async def same(numbers: list[int]) -> list[int]:
        return numbers

    async def ask() -> int:
        gathered: Gathered[int, int] = Gathered(same)
        leaving, staying = (asyncio.create_task(gathered.ask(number)) for number in (1, 2))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    assert asyncio.run(ask()) == 2
