"""The fence: a total order on (global, regional) epochs.

A task has one owner at a time. Each change of owner is a claim, and each claim issues an epoch
greater than every one before it; a write that carries an older epoch comes from an owner that was
replaced. This is the fencing token of Kleppmann, "How to do distributed locking" (2016), with two
digits, so that a region can change the owner within itself without asking the gateway:

    gateway's claim   (g, r) -> (g + 1, 0)
    region's claim    (g, r) -> (g, r + 1)

The order is lexicographic. docs/guarantees.md shows why neither the literal reading of the
specification's rule ("g2 >= g1 and r2 > g1") nor its component-wise reading is an order at all.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

EPOCH_MAX = 2**53 - 1
"""The largest component: what every JSON implementation reads back exactly (RFC 8259, section 6)."""

Component = Annotated[int, msgspec.Meta(ge=0, le=EPOCH_MAX)]


class Epoch(
    msgspec.Struct, frozen=True, order=True, array_like=True, forbid_unknown_fields=True, gc=False
):
    """One ownership of one task. Compared lexicographically; travels as `[global, regional]`.

    Args:
        global_epoch: how many times a gateway has claimed the task.
        regional_epoch: how many times a region has, since the last claim of a gateway.
    """

    global_epoch: Component = 0
    regional_epoch: Component = 0

    def next_global(self) -> Epoch:
        """The epoch that a gateway's claim issues: newer than every epoch of this global one."""
        return Epoch(self.global_epoch + 1, 0)

    def next_regional(self) -> Epoch:
        """The epoch that a region's claim issues."""
        return Epoch(self.global_epoch, self.regional_epoch + 1)

    def __str__(self) -> str:
        return f"({self.global_epoch}, {self.regional_epoch})"
