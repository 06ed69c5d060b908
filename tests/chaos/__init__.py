"""The campaign: a real cluster whose processes really die, and what the outside world saw of it.

`python -m tests.chaos` (`make chaos`) starts the supervisor of `agentos up` with a store, two
gateways and three regions of three proxies, each link through a TCP proxy that can be cut; keeps
it under a steady load of chains, fans, samples and juries; and lets a seeded hand kill -9, stop,
continue and restart every role, cut links, lock the database and fill the disk. At the end it
judges everything from the database, from what the clients were told, and from a log outside in
which the agents note each call that they are really asked.

    python -m tests.chaos [--kills 1000] [--minutes 120] [--seed N] [--json FILE]
    python -m tests.chaos --short          22 kills in less than a minute, as in CI
    python -m tests.chaos --alone 100      one kill at a time: takeover times
    python -m tests.chaos --pauses 30      one of each role stands still, each alone
    python -m tests.chaos --everything 10  kill -9 of all processes at once

The seed is printed; the same seed does the same. What it finds running then may differ, since the
machine's own timing is no part of the seed.
"""
