"""The asking side for asyncio: batches out, batches in, and nothing stays open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec
import pykka
import pytest

from agentos.core import messages as m
from agentos.core.epoch import Epoch
from agentos.core.errors import Overloaded
from agentos.core.limits import Limits
from agentos.runtime.asking import TOGETHER, AsyncAsker, Waiter
from agentos.runtime.switch import Switch
from tests.switches import FAST, Net, net


@pytest.fixture
def world() -> Iterator[Net]:
    with net() as made:
        yield made


class Room:
    """A switch with an echo and a mute on it, and an asker; made in the loop that runs."""

    def __init__(self, world: Net, limits: Limits = FAST) -> None:
        self.switch: Switch = world.switch(limits=limits)
        self.batches: list[int] = []
        self.unasked: list[m.Message] = []
        self.asker = AsyncAsker(self.switch, self.unasked.append)
        self.switch.attach("echo", self._echo)
        self.switch.attach("mute", lambda batch: None)

    def _echo(self, batch: list[m.Envelope]) -> None:
        self.batches.append(len(batch))
        self.switch.send([m.Envelope(e.sender, e.to, e.message, e.ref) for e in batch])

    async def echo(self, value: int) -> object:
        answer = await self.asker.ask("echo", m.Say(value=value), 10.0)
        assert isinstance(answer, m.Say)
        return answer.value


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("batch", [TOGETHER + 20, TOGETHER - 20])
def test_one_turn_is_one_batch(world: Net, batch: int) -> None:
    """What is asked in one turn of the loop leaves together, in order, in lists that are bounded."""

    async def work() -> None:
        room = Room(world, msgspec.structs.replace(FAST, batch=batch))
        answers = await asyncio.gather(*(room.echo(i) for i in range(250)))
        assert answers == list(range(250))
        most = min(TOGETHER, batch)
        assert room.batches == [most] * (250 // most) + [250 % most]
        assert await room.echo(1) == 1
        assert room.batches[-1] == 1
        assert not room.asker._open

    run(work())


def test_many_questions_do_not_wait_for_the_last(world: Net) -> None:
    """A list that is full leaves while the turn of the loop that asks goes on."""

    async def work() -> None:
        room = Room(world)
        asks = [asyncio.ensure_future(room.echo(i)) for i in range(2 * TOGETHER)]
        heard: list[int] = []
        asyncio.get_running_loop().call_soon(lambda: heard.extend(room.batches))
        await asyncio.gather(*asks)
        assert heard == room.batches == [TOGETHER, TOGETHER]  # before the turn's own flush

    run(work())


def test_answers_of_many_threads(world: Net) -> None:
    """Whatever thread delivers, and when: every answer arrives, and wakes who waits for it."""

    async def work() -> None:
        room = Room(world)
        asked: list[m.Envelope] = []
        room.switch.attach("later", asked.extend)

        async def ask(value: int) -> object:
            answer = await room.asker.ask("later", m.Say(value=value), 30.0)
            return answer.value  # type: ignore[attr-defined]

        def answer(which: int) -> None:
            for e in asked[which::4]:
                room.switch.send([m.Envelope(e.sender, e.to, e.message, e.ref)])

        for _ in range(20):
            asked.clear()
            questions = [asyncio.create_task(ask(i)) for i in range(100)]
            while len(asked) < 100:
                await asyncio.sleep(0)
            threads = [threading.Thread(target=answer, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            assert await asyncio.gather(*questions) == list(range(100))
            for thread in threads:
                thread.join()

    run(work())


def test_nothing_stays_open(world: Net) -> None:
    """Timed out, refused and cancelled questions are forgotten; a late answer goes to whoever listens."""

    async def work() -> None:
        room = Room(world)
        with pytest.raises(TimeoutError):
            await room.asker.ask("mute", m.Say(value=1), 0.01)
        with pytest.raises(pykka.ActorDeadError):
            await room.asker.ask("nobody", m.Say(value=1), 10.0)
        waiting = asyncio.create_task(room.asker.ask("mute", m.Say(value=1), 10.0))
        await asyncio.sleep(0)
        (ref,) = room.asker._open
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not room.asker._open
        assert await room.echo(1) == 1
        room.switch.send([m.Envelope(room.asker.address, "mute", m.Say(value="late"), ref)])
        while not room.unasked:
            await asyncio.sleep(0)
        assert room.unasked == [m.Say(value="late")]

    run(work())


def test_open_questions_are_bounded(world: Net) -> None:
    """Over the bound the oldest question is given up, and the others are answered."""

    async def work() -> None:
        room = Room(world, msgspec.structs.replace(FAST, mailbox=3))
        silent = [
            asyncio.create_task(room.asker.ask("mute", m.Say(value=i), 10.0)) for i in range(3)
        ]
        await asyncio.sleep(0)
        assert await room.echo(1) == 1
        with pytest.raises(Overloaded, match="open"):
            await silent[0]
        assert not silent[1].done()
        room.asker.close()
        for task in silent[1:]:
            with pytest.raises(pykka.ActorDeadError):
                await task

    run(work())


def test_what_was_told_before_closing_leaves(world: Net) -> None:
    """`close` right after `tell` loses nothing, and frees the name."""

    async def work() -> None:
        room = Room(world)
        heard: list[m.Envelope] = []
        room.switch.attach("ear", heard.extend)
        room.asker.tell("ear", m.Say(value="last words"))
        room.asker.close()
        assert [e.message for e in heard] == [m.Say(value="last words")]
        AsyncAsker(room.switch, print)

    run(work())


def test_a_loop_that_has_ended(world: Net) -> None:
    """Deliveries after the end of the loop are dropped without a word."""
    rooms: list[Room] = []

    async def work() -> None:
        rooms.append(Room(world))

    run(work())
    room = rooms[0]
    room.switch.send([m.Envelope(room.asker.address, "mute", m.Say(value=1))])
    assert room.switch.counters.total() == 0


def test_a_waiter(world: Net) -> None:
    """Hears in order what is pushed; None when nothing is in time, and at once when it is closed."""

    async def work() -> None:
        waiter = Waiter()
        events = [m.Event(task_id=i, epoch=Epoch(1, 1), event="node") for i in (1, 2, 3)]
        assert await waiter.next(0.01) is None
        assert await waiter.next(0.0) is None
        waiter.push(events[0])
        waiter.push(events[1])
        assert [await waiter.next(10.0), await waiter.next(10.0)] == events[:2]
        asyncio.get_running_loop().call_soon(waiter.push, events[2])
        assert await waiter.next(30.0) is events[2]
        waiting = asyncio.create_task(waiter.next(30.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        asyncio.get_running_loop().call_soon(waiter.close)
        assert await waiter.next(30.0) is None
        assert await waiter.next(30.0) is None

    run(work())
