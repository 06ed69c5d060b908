"""The testing client: sends many tasks in a pattern, and measures what becomes of each.

`send_req` sends one and waits for its end; `send_all`, `send_in_interval`, `send_batch_interval`
and `send_dynamic_batch_interval` send many over one connection. `Report` sums a `Run` up;
`agentos.loadtest.plots` draws it. docs/load-testing.md says what is measured, and how.
"""

from agentos.loadtest.report import Latency, Report, Row, Summary, compare, percentile
from agentos.loadtest.run import Options, Outcome, Request, Response, Run
from agentos.loadtest.sending import (
    send_all,
    send_batch_interval,
    send_dynamic_batch_interval,
    send_in_interval,
    send_req,
)

__all__ = [
    "Latency",
    "Options",
    "Outcome",
    "Report",
    "Request",
    "Response",
    "Row",
    "Run",
    "Summary",
    "compare",
    "percentile",
    "send_all",
    "send_batch_interval",
    "send_dynamic_batch_interval",
    "send_in_interval",
    "send_req",
]
