"""The records that rows of progress are decoded to and encoded from; see `rows`.

Apart from `rows`, which can be compiled: mypyc knows no `msgspec.Struct`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentos.core.messages import Usage


class Saved(msgspec.Struct, frozen=True):
    """What is needed of a row to go on from it; whatever else it holds is for people."""

    value: Any
    usage: Usage = Usage()


class Answer(msgspec.Struct, frozen=True, gc=False):
    value: msgspec.Raw
    proxy: str
    seconds: float
    usage: Usage
