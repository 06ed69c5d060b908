"""Every bound of the system, each with its reason, checked together.

Nothing in Agent OS grows without one of these. Over a bound the answer is a typed refusal
(`Overloaded`, `GraphError`, `RemoteProtocolError`), never a silent drop of something accepted.
"""

from __future__ import annotations

import zlib

import msgspec

from agentos.core.errors import ConfigError

MAX_DESCRIPTION_BYTES = 1_000_000
MAX_DEPTH = 64
"""JSON nesting: orjson reads 1,024 levels but writes 254; 64 is more than a graph can use. No limit
to be set: what one owner has accepted and saved, the next one must be able to read."""
MAX_NODES = 10_000
MAX_INT = 2**63 - 1
"""What SQLite, PostgreSQL and every 64-bit client can hold; orjson reads 2^64 and more as floats."""
MAX_RETRY_AFTER_S = 86_400.0
"""What an endpoint's word of when to try again is believed for at most."""
LONGEST_S = 1e6
"""No time is longer: eleven days. Operating systems wait for no length of time."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bounds and intervals of one cluster. Times are in seconds, sizes in bytes.

    Raises:
        ConfigError: from `check`, when two of them contradict each other.
    """

    # -- time ------------------------------------------------------------------------------------
    heartbeat_s: float = 0.5
    """How often a proxy tells its region, and a region its gateway, that its actor is alive."""
    suspect_after: int = 3
    """Heartbeats that must be missed before a peer is suspected; one late message is not a death."""
    idle_heartbeats: int = 60
    """A proxy that has nothing to do says so only every so many heartbeats, and is suspected so much
    later; as long as it is given nothing. A thousand that rest must not cost what a busy one does."""
    sweep_s: float = 1.0
    """How often a role looks in the database for what a lost message left undone."""
    resend_s: float = 1.0
    """How long a role waits for the store's answer before it asks again."""
    link_ping_s: float = 1.0
    """How often a quiet uplink is probed (that of a proxy that rests: when as many of its heartbeats
    have gone up as may be missed); a link is given up after `suspect_after` silent probes."""
    reconnect_min_s: float = 0.05
    reconnect_max_s: float = 2.0
    """Exponential back-off with full jitter between these (AWS Architecture Blog, 2015)."""
    retry_min_s: float = 0.2
    retry_max_s: float = 10.0
    """Back-off between the attempts of one agent call."""
    stop_grace_s: float = 5.0
    """How long an orderly stop waits for the agent calls in flight."""

    # -- the wire --------------------------------------------------------------------------------
    max_frame_bytes: int = 8 * 1024 * 1024
    """Larger frames are refused by the socket itself (ZMQ_MAXMSGSIZE): room for a task's description."""
    high_water_mark: int = 10_000
    """Messages that wait in a socket for one peer, above which sending to it is refused."""
    max_peer_errors: int = 100
    """Protocol errors after which a child is disconnected."""
    max_children: int = 4_096
    """Connections to one listener."""
    peer_bytes: int = 64 * 1024 * 1024
    """What one peer may have waiting in one place: in a mailbox, for the database's answer, or of
    what it does not read. A message counts as its size and 8 KiB (`core.weight`), so that it is
    a bound on small ones too; one alone is always let in."""

    # -- actors ----------------------------------------------------------------------------------
    mailbox: int = 100_000
    """Messages that wait for one actor; above it, new requests are refused."""
    batch: int = 512
    """Messages that an actor takes at once, and so that one commit can carry."""

    # -- the gateway -----------------------------------------------------------------------------
    max_unfinished: int = 5_000_000
    """Accepted tasks that are not finished; the backlog is in the database, not in memory."""
    max_pending_submits: int = 10_000
    """Submissions that wait for their commit."""
    max_watchers: int = 100_000
    """Tasks whose events somebody waits for; above it, clients poll."""

    # -- regions and proxies ---------------------------------------------------------------------
    tasks_per_proxy: int = 1024
    """Tasks that one proxy walks at a time; the next ones wait in the database."""
    calls_per_task: int = 256
    """Calls of one task that are on their way at once: a wide graph goes through in slices."""
    waiting_calls: int = 1_024
    """Calls that wait for a free slot in one proxy."""
    kept_answer_bytes: int = 16 * 1024 * 1024
    """Answers that a proxy keeps for owners who ask again: a lost message is not paid for twice."""
    ask_again_s: float = 5.0
    """How long an owner waits before it asks after a call; doubled each time."""
    max_attempts: int = 5
    """Owners that may be lost in a row over one task, with nothing saved between, before it fails."""

    # -- tasks -----------------------------------------------------------------------------------
    max_description_bytes: int = MAX_DESCRIPTION_BYTES
    max_nodes: int = MAX_NODES
    max_samples: int = 64
    max_voters: int = 64
    max_rounds: int = 16
    max_retries: int = 100
    max_timeout_s: float = 86_400.0
    max_prompt_bytes: int = 2_000_000
    """A prompt after its references are filled in."""
    max_result_bytes: int = 1_000_000
    """One answer; with the description it must fit a frame."""
    page_bytes: int = 2_000_000
    """Saved results that travel in one message when a new owner reads them."""

    @property
    def suspicion_s(self) -> float:
        """Seconds of silence after which a peer is suspected."""
        return self.heartbeat_s * self.suspect_after

    @property
    def idle_beat_s(self) -> float:
        """Seconds between the heartbeats of a proxy that has nothing to do."""
        return self.heartbeat_s * self.idle_heartbeats

    def fingerprint(self) -> str:
        """The same for limits that a cluster's roles may have together: all but `stop_grace_s`."""
        alike = msgspec.structs.replace(self, stop_grace_s=1.0)
        return f"{zlib.crc32(msgspec.json.encode(alike)):08x}"

    def check(self) -> Limits:
        """Return these limits if they fit together.

        Raises:
            ConfigError: naming every contradiction at once, or the first value that is no number.
        """
        try:
            msgspec.convert(msgspec.structs.asdict(self), Limits)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"limits: {str(error).replace(' - at `$.', ' at `limits.')}"
            ) from error
        if faults := self.faults():
            raise ConfigError("; ".join(f"{key} {reason}" for key, reason in faults))
        return self

    def faults(self) -> list[tuple[str, str]]:
        """Every contradiction: the key of the limit to change, and what it must be."""
        values = msgspec.structs.asdict(self)
        faults = [
            (f"limits.{name}", f"must be greater than 0, not {value!r}")
            for name, value in values.items()
            if not value > 0  # nor is NaN
        ] + [
            (f"limits.{name}", f"must be at most {LONGEST_S:g} seconds, not {value!r}")
            for name, value in values.items()
            if name.endswith("_s") and value > LONGEST_S
        ]
        if self.suspect_after < 2:
            reason = "must be at least 2: one late heartbeat is not a death"
            faults.append(("limits.suspect_after", reason))
        if self.reconnect_max_s < self.reconnect_min_s:
            faults.append(
                ("limits.reconnect_max_s", "must not be less than limits.reconnect_min_s")
            )
        if self.retry_max_s < self.retry_min_s:
            faults.append(("limits.retry_max_s", "must not be less than limits.retry_min_s"))
        if self.peer_bytes < self.max_frame_bytes:
            faults.append(("limits.peer_bytes", "must not be less than limits.max_frame_bytes"))
        biggest = max(
            # JSON text inside JSON: a control character may take six bytes (RFC 8259, section 7).
            3 * self.max_description_bytes,
            3 * self.max_prompt_bytes,
            3 * self.max_result_bytes,
            3 * self.page_bytes,
        )
        if self.max_frame_bytes < biggest:
            reason = "three times the largest description, prompt, result and page"
            faults.append(("limits.max_frame_bytes", f"must be at least {biggest}: {reason}"))
        if self.max_description_bytes > MAX_DESCRIPTION_BYTES:
            reason = f"must be at most {MAX_DESCRIPTION_BYTES}: it may only be lowered"
            faults.append(("limits.max_description_bytes", reason))
        if self.max_nodes > MAX_NODES:
            reason = f"must be at most {MAX_NODES}: it may only be lowered"
            faults.append(("limits.max_nodes", reason))
        return faults
