"""The account as tables and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import markdown_table
from benchmarks.life.account import (
    BUDGET_US,
    MESSAGE_BUDGET_US,
    STEP_BUDGET_US,
    ZEROMQ,
    Account,
)

PROCESSES = ("client", "gateway", "region", "proxy")
STEPS: Mapping[str, str] = {
    "read": "read header frames",
    "route": "route (switch)",
    "mailbox": "mailbox",
    "open": "decode and check bodies",
    "handle": "decide (machines)",
    "commit": "begin and commit",
    "agents": "hand calls to agents",
    "write": "encode",
    ZEROMQ: "ZeroMQ's own threads",
    "rest": "the rest: threads, asyncio, sockets, agents",
}
BODY = ("open", "handle", "write")
"""The steps that are known by kind of message."""
LIFE = (
    *("submit", "create_task", "task_created", "submitted", "assign", "run"),
    *("invoke", "call_result", "record", "recorded", "ended"),
)
"""The messages of one task's life in the order in which they first come; others follow."""
NOTABLE_US = 2.0
"""What a message that is not in LIFE must take to be shown: heartbeats and sweeps, mostly."""
ELSEWHERE = {"invoke": "agents"}
"""Who takes the messages that no machine handles; the others are the client's."""


def thread_rows(account: Account) -> list[tuple[str, ...]]:
    """What each thread takes of a task, and what it may."""
    rows: list[tuple[str, ...]] = []
    for process in PROCESSES:
        threads = {name: us for (where, name), us in account.threads.items() if where == process}
        budgets = {name for where, name in BUDGET_US if where == process}
        for name in sorted(threads.keys() | budgets, key=lambda name: -threads.get(name, 0)):
            us, budget = threads.get(name, 0.0), BUDGET_US.get((process, name), 0.0)
            if us >= 0.5 or budget:
                rows.append((process, name, f"{us:,.0f}", f"{budget:,.0f}", f"{us - budget:+,.0f}"))
    total, budget = account.total_us, sum(BUDGET_US.values())
    rows.append(("**all**", "", f"**{total:,.0f}**", f"{budget:,.0f}", f"{total - budget:+,.0f}"))
    return rows


THREADS = ("process", "thread", "µs of CPU", "budget", "beside it")
MESSAGES = (
    *("message", "handled in", "times a task", "open", "decide", "write", "µs a task", "budget"),
)
DONE = ("what", *PROCESSES, "together", "budget")


def message_rows(account: Account) -> list[tuple[str, ...]]:
    """Each message of one task's life: how often it comes, and what it takes where."""
    kinds = {kind for _, step, kind in account.steps if kind and step in BODY}
    known = [kind for kind in LIFE if kind in kinds]
    rows = []
    for kind in [*known, *sorted(kinds - set(known))]:
        us: Counter[str] = Counter()
        for (_, step, of), value in account.steps.items():
            if of == kind:
                us[step] += value
        handled = {role: calls for (role, of), calls in account.handled.items() if of == kind}
        times = sum(handled.values())
        total = sum(us[step] for step in BODY)
        if kind in LIFE or total >= NOTABLE_US:
            where = ", ".join(handled) or ELSEWHERE.get(kind, "client")
            parts = [f"{us[step]:.1f}" if us[step] >= 0.05 else "" for step in BODY]
            often, budget = f"{times:.2f}" if times else "", MESSAGE_BUDGET_US.get(kind)
            may = f"{budget:.0f}" if budget else ""
            rows.append((kind, where, often, *parts, f"{total:.1f}", may))
    return rows


def step_rows(account: Account) -> list[tuple[str, ...]]:
    """Each process by what it does."""
    found = {process: account.by_step(process) for process in PROCESSES}
    rows = []
    for step, words in STEPS.items():
        values = [found[process].get(step, 0.0) for process in PROCESSES]
        budget = STEP_BUDGET_US[step]
        rows.append((words, *(f"{us:,.0f}" for us in (*values, sum(values), budget))))
    totals = [f"{account.process_us(process):,.0f}" for process in PROCESSES]
    budget = sum(STEP_BUDGET_US.values())
    rows.append(("**all**", *totals, f"**{account.total_us:,.0f}**", f"{budget:,.0f}"))
    return rows


def markdown(account: Account, intro: str) -> str:
    """The account for the document."""
    by_step = markdown_table(DONE, step_rows(account))
    return "\n\n".join(
        [
            intro,
            "By thread, with the budget that makes 3,000 tasks/s on two cores:",
            markdown_table(THREADS, thread_rows(account)),
            "By what is done (µs of CPU a task):",
            by_step,
            (
                "Message by message, in the order of a task's life (µs of CPU a task; `open` is "
                "decoding and checking, `decide` the machine, the store's SQL included, `write` "
                "encoding; the budgets add up to those of the same three lines above):"
            ),
            markdown_table(MESSAGES, message_rows(account)),
        ]
    )


def picture(account: Account, path: Path) -> None:
    """Stacked bars: by process, and by message."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 7.5), width_ratios=(2, 3))
    found = {process: account.by_step(process) for process in PROCESSES}
    colours = pyplot.get_cmap("tab10")
    base = [0.0] * len(PROCESSES)
    for number, (step, words) in enumerate(STEPS.items()):
        values = [found[process].get(step, 0.0) for process in PROCESSES]
        left.bar(PROCESSES, values, bottom=base, label=words, color=colours(number))
        base = [below + value for below, value in zip(base, values, strict=True)]
    for number, total in enumerate(base):
        left.text(number, total, f"{total:,.0f}", ha="center", va="bottom")
    left.set_title(f"One task: {account.total_us:,.0f} µs of CPU in all processes")
    left.set_ylabel("µs of CPU a task")
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    _messages(right, account, [colours(list(STEPS).index(step)) for step in BODY])
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _messages(axes: object, account: Account, colours: Sequence[object]) -> None:
    rows = message_rows(account)
    names = [f"{row[0]}  {row[2]}" for row in rows]
    base = [0.0] * len(rows)
    for column, (step, colour) in enumerate(zip(BODY, colours, strict=True)):
        values = [float(row[3 + column] or 0) for row in rows]
        axes.barh(names, values, left=base, label=STEPS[step], color=colour)  # type: ignore[attr-defined]
        base = [below + value for below, value in zip(base, values, strict=True)]
    axes.margins(x=0.05)  # type: ignore[attr-defined]
    axes.invert_yaxis()  # type: ignore[attr-defined]
    axes.set_title("Message by message, with how often a task has it")  # type: ignore[attr-defined]
    axes.set_xlabel("µs of CPU a task")  # type: ignore[attr-defined]
    axes.legend(fontsize=8)  # type: ignore[attr-defined]
