"""A cluster on the harness's bus, ready to be given tasks and faults."""

from __future__ import annotations

from agentos.core import messages as m
from agentos.core.gateway import GatewayMachine
from agentos.core.limits import Limits
from agentos.core.proxy import ProxyMachine
from agentos.core.region import RegionMachine
from agentos.core.store import StoreMachine
from agentos.storage.memory import MemoryDatabase
from tests.harness import Bus, Script


class Cluster(Bus):
    """A bus with a gateway, a store, regions and their proxies; every proxy offers `offers`."""

    def __init__(
        self,
        script: Script,
        *,
        regions: int = 1,
        proxies: int = 1,
        seed: int = 0,
        offers: dict[str, int] | None = None,
        limits: Limits | None = None,
        database: MemoryDatabase | None = None,
    ) -> None:
        super().__init__(script, seed)
        self.limits = limits or Limits()
        self.offers = offers or {"echo": 2}
        self.database = database or MemoryDatabase(clock=lambda: 0.0)
        self._born = 0
        self.add(StoreMachine(self.database, self.limits))
        self.start_gateway("gateway/a")
        for r in range(regions):
            self.start_region(f"region/r{r}")
            for p in range(proxies):
                self.start_proxy(f"proxy/r{r}/{p}")

    def start_gateway(self, address: str) -> None:
        """Start a gateway, or a fresh one in its place."""
        self.add(GatewayMachine(self.limits, address=address, incarnation=self._incarnation()))

    def start_region(self, address: str) -> None:
        """Start a region, or a fresh one in its place."""
        self.add(RegionMachine(address, self.limits, incarnation=self._incarnation()))

    def start_proxy(self, address: str) -> None:
        """Start a proxy, or a fresh one in its place."""
        self.add(
            ProxyMachine(
                address,
                self.offers,
                self.limits,
                chance=self.random.random,
                incarnation=self._incarnation(),
            )
        )

    def submit(self, description: str, *, client: str = "client/c", key: str | None = None) -> int:
        """Submit a task and run until its id is known, asking again as clients do."""
        ref = f"s{self._incarnation()}"
        submit = m.Submit(task_description=description, key=key or ref, notify=True)
        known = len(self.mail[client])

        def answers() -> list[m.Submitted]:
            return [q for q in self.mail[client][known:] if isinstance(q, m.Submitted)]

        for _ in range(20):
            self.send(client, m.GATEWAY, submit, ref)
            end = self.now + 2.0
            self.run_until(lambda: bool(answers()) or self.now > end, 5.0)  # noqa: B023
            if answers():
                return answers()[0].task_id
        raise AssertionError("the gateway never answered")

    def task(self, task_id: int) -> m.TaskInfo:
        """The task as the database has it."""
        task = self.database.get_task(task_id)
        assert task is not None
        return task

    def ended(self, *task_ids: int) -> bool:
        """Whether all these have ended."""
        return all(self.task(task_id).state in m.TERMINAL for task_id in task_ids)

    def _incarnation(self) -> str:
        self._born += 1
        return str(self._born)
