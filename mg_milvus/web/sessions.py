"""Who has signed in, and how often a wrong token may be shown."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_SECONDS = 12 * 3600
LONGEST_SECONDS = 7 * 24 * 3600
MOST_SESSIONS = 1000
MOST_ADDRESSES = 10_000
"""Entries of the tables of clients, which an attacker could otherwise make grow."""


@dataclass(slots=True)
class _Session:
    began: float
    seen: float


class Sessions:
    """Random ids, in memory only: they end with the server. Belongs to one event loop.

    A session ends when it was not used for ``IDLE_SECONDS``, after ``LONGEST_SECONDS``, by ``end``, or as the one that
    was used least recently of more than ``MOST_SESSIONS``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self) -> str:
        """A new session's id, of 256 random bits."""
        made = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions[_digest(made)] = _Session(now, now)
        if len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return made

    def holds(self, offered: str) -> bool:
        """Whether this is the id of a session; it has been used now."""
        key, now = _digest(offered), self._clock()
        session = self._sessions.get(key)
        if session is None:
            return False
        if now - session.seen > IDLE_SECONDS or now - session.began > LONGEST_SECONDS:
            del self._sessions[key]
            return False
        session.seen = now
        self._sessions.move_to_end(key)
        return True

    def end(self, offered: str) -> None:
        """End a session, if it is one."""
        self._sessions.pop(_digest(offered), None)


def _digest(offered: str) -> bytes:
    """What the table is searched by: the time that takes tells nothing about the ids in it."""
    return hashlib.sha256(offered.encode("utf-8", "replace")).digest()


class _Bucket:
    """So many failures at once, then one in so many seconds."""

    def __init__(self, most: float, seconds_each: float) -> None:
        self._most, self._seconds_each = most, seconds_each
        self._left, self._at = most, 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next attempt may fail; 0: it may fail now."""
        self._left = min(self._most, self._left + (now - self._at) / self._seconds_each)
        self._at = now
        return max(0.0, 1 - self._left) * self._seconds_each

    def take(self, now: float) -> None:
        """Count a failure."""
        self.wait(now)
        self._left = max(0.0, self._left - 1)


class Attempts:
    """Slows down the guessing of tokens. Belongs to one event loop.

    An address may fail ``FAILURES`` times at once and then once in ``SECONDS_EACH``; all addresses together
    ``ALL_FAILURES`` times and then once in ``ALL_SECONDS_EACH``. Whoever has shown the right token before is not held
    up by the failures of other addresses.
    """

    FAILURES, SECONDS_EACH = 5, 10.0
    ALL_FAILURES, ALL_SECONDS_EACH = 50, 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = _Bucket(self.ALL_FAILURES, self.ALL_SECONDS_EACH)
        self._failing: OrderedDict[str, _Bucket] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds until an attempt from this address is listened to; 0: now."""
        who, now = _network(address), self._clock()
        own = self._failing[who].wait(now) if who in self._failing else 0.0
        return own if who in self._known else max(own, self._all.wait(now))

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        who, now = _network(address), self._clock()
        bucket = self._failing.setdefault(who, _Bucket(self.FAILURES, self.SECONDS_EACH))
        bucket.take(now)
        self._all.take(now)
        _keep_newest(self._failing, who)

    def succeeded(self, address: str) -> None:
        """Remember who has shown the right token."""
        who = _network(address)
        self._known[who] = None
        _keep_newest(self._known, who)


def _network(address: str) -> str:
    """An address, or for IPv6 the /64 of it: as many as a single customer gets."""
    try:
        known = ip_address(address)
    except ValueError:
        return address[:64]
    return str(ip_network((known, 64), strict=False)) if isinstance(known, IPv6Address) else address


def _keep_newest(table: OrderedDict[str, _Bucket] | OrderedDict[str, None], newest: str) -> None:
    table.move_to_end(newest)
    if len(table) > MOST_ADDRESSES:
        table.popitem(last=False)
