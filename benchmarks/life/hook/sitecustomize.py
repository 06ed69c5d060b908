"""Makes every process of a measured cluster keep a ledger: Python imports this at its start.

It is on the path only of processes that `benchmarks.life` starts; the product knows nothing of it.
"""

from benchmarks.life import ledger

ledger.from_environment()
