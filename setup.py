"""The package map, and what is compiled on request.

`transports/` and `storage/` install as `agentos.transports`, `agentos.storage`. With
`AGENTOS_COMPILE=1` mypyc compiles the modules below (`make wheel` does): the roles' machines, and
what moves messages. It needs what the package imports beside it, to know its types, so the build
is not isolated. A module that is compiled defines no `msgspec.Struct` (mypyc would drop
`frozen=True` and its like) and inherits from no class of another library.
"""

import os
import sys

from setuptools import Extension, setup

COMPILED = {
    "core": (
        "addresses audience balancing beating calls deliberation executor fields fleet floors gateway "
        "graph holdings jsontext liveness loading placement places prepared proxy region rooms routes "
        "rows scheduling store taskrun timers weight"
    ),
    "runtime": "asking journal links mailbox peers results switch turns uplink wire",
}


def compiled() -> list[Extension]:
    """The extension modules; none unless asked for, or while only metadata is wanted."""
    if os.environ.get("AGENTOS_COMPILE") != "1" or "bdist_wheel" not in sys.argv:
        return []
    from mypyc.build import mypycify

    paths = [
        f"agentos/{part}/{name}.py" for part, all_ in COMPILED.items() for name in all_.split()
    ]
    options = ["--strict", "--ignore-missing-imports", "--config-file="]
    return mypycify([*options, *paths], opt_level="2", debug_level="0")


setup(
    packages=[
        "agentos",
        "agentos.agents",
        "agentos.cli",
        "agentos.core",
        "agentos.core.messages",
        "agentos.loadtest",
        "agentos.runtime",
        "agentos.simulation",
        "agentos.storage",
        "agentos.testing",
        "agentos.transports",
    ],
    package_dir={
        "agentos": "agentos",
        "agentos.storage": "storage",
        "agentos.transports": "transports",
    },
    package_data={"agentos": ["py.typed"]},
    ext_modules=compiled(),
)
