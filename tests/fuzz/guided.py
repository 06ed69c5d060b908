"""One target under atheris, guided by coverage: `python -m tests.fuzz.guided TARGET SECONDS …`.

libFuzzer ends the process when it is done; its own options follow, and a folder to collect in.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["agentos.core", "agentos.runtime.wire"]):
    from tests.fuzz.making import MAKERS, damaged
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's `-max_total_time` is over, or something fails."""
    name, options = sys.argv[1], sys.argv[2:]
    maker = MAKERS[name]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return damaged(data, maker(rng), rng)[:max_size]

    atheris.Setup([sys.argv[0], *options], TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
