"""Access control: settings, tokens, sessions, and the checks that every request passes."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse

from mg_milvus.errors import ServeError
from mg_milvus.images.discover import path_text, text_path
from mg_milvus.images.limits import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mg_milvus.web.metrics import Metrics


MIN_TOKEN_LENGTH = 12
MIN_TOKEN_DIGITS = 20
MIN_UNPREDICTABLE = 8
MIN_DIFFERENT = 6

_WORDS = (
    "administrator", "admin", "password", "passwort", "passw", "changeme", "letmein", "welcome", "default", "example",
    "qwertzuiop", "qwertyuiop", "qwertz", "qwerty", "azerty", "asdfghjkl", "asdfgh", "zxcvbnm", "yxcvbnm", "iloveyou",
    "trustno1", "sunshine", "princess", "football", "dragon", "monkey", "correcthorsebatterystaple",
    "correct horse battery staple", "secret", "token", "milvus", "mgm", "minioadmin", "test", "root", "user", "guest",
    "login", "1q2w3e4r5t", "1q2w3e4r", "q1w2e3r4",
)  # fmt: skip
"""Words that are tried first when tokens are guessed; longer ones first."""

_WRITTEN_AS = str.maketrans({"0": "o", "@": "a", "$": "s"})


@dataclass(frozen=True, slots=True)
class WebSettings:
    """Settings of the server.

    Attributes:
        read_only: no ingest and no deletion.
        token: every request needs it; None: no token, and only requests to this machine's own names are served.
        ingest_folders: folders whose images may be ingested from the page, absolute.
        upload_folder: where uploaded images are kept, absolute; None: no uploads into the index.
        move_folder: where copies may be moved from the page, absolute; None: nowhere.
        ignore_file: pairs that are no duplicates are kept there, absolute; None: they are not remembered.
        share_folder: where query images of shared links are kept for a week; None: they are not.
        thumbnail_folder: where thumbnails are cached; None: no cache.
        max_upload_bytes: bytes of the largest accepted image.
        max_pixels: most pixels of an image, whether uploaded or read from disk.
        root_path: the page's path behind a proxy, such as ``/images``, without a slash at its end.
        title: heading of the pages; empty: the name of the collection, or of its file.
        show: fields that cards show instead of the file's name.
    """

    read_only: bool = False
    token: str | None = None
    ingest_folders: tuple[Path, ...] = ()
    upload_folder: Path | None = None
    move_folder: Path | None = None
    ignore_file: Path | None = None
    share_folder: Path | None = None
    thumbnail_folder: Path | None = None
    max_upload_bytes: int = 50_000_000
    max_pixels: int = DEFAULT_MAX_PIXELS
    root_path: str = ""
    title: str = ""
    show: tuple[str, ...] = ()

    def resolve_ingest_folder(self, folder: str) -> tuple[Path, Path]:
        """The folder with links resolved, and the allowed folder that it is or lies in.

        Raises:
            ServeError: it lies in no allowed folder.
        """
        try:
            real = text_path(folder).resolve()
        except (OSError, ValueError, RuntimeError):
            real = None
        for allowed in (each.resolve() for each in self.ingest_folders):
            if real is not None and real.is_relative_to(allowed):
                return real, allowed
        known = ", ".join(path_text(each) for each in self.ingest_folders) or "none: start with --allow-ingest"
        raise ServeError(f"'{folder[:200]}' may not be ingested from the page; allowed are {known}")


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token, and refuse tokens that are easy to guess.

    Raises:
        ServeError: the reason and the remedy.
    """
    weakness = None if token is None else _weakness(token)
    if weakness is not None:
        raise ServeError(f'{weakness}: make one with python -c "import secrets; print(secrets.token_urlsafe(16))"')
    if token is None and not is_loopback(host):
        raise ServeError(
            f"host {host} can be reached from other machines, so a token is needed: add --token, or set "
            "MGM_WEB_TOKEN; or leave --host out to serve this machine only"
        )


def _weakness(token: str) -> str | None:
    """Why a token is easy to guess; None when it is not. The message does not repeat the token."""
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
        return f"the token has {len(token)} characters, expected at least {MIN_TOKEN_LENGTH} printable ones of ASCII"
    if token.isdecimal() and len(token) < MIN_TOKEN_DIGITS:
        return f"the token is a number of {len(token)} digits, expected at least {MIN_TOKEN_DIGITS}, or letters as well"
    rest = token.lower().translate(_WRITTEN_AS)
    for word in _WORDS:
        rest = rest.replace(word, "")
    # A character that continues a series (aaa, abc, 321), or a repeated pair, is predictable.
    steps = [ord(after) - ord(before) for before, after in pairwise(rest)]
    unpredictable = rest[:1] + "".join(
        letter for place, (letter, step) in enumerate(zip(rest[1:], steps, strict=True), 1)
        if abs(step) > 1 and rest[place - 1 : place + 1] not in rest[:place]
    )  # fmt: skip
    if len(unpredictable) < MIN_UNPREDICTABLE or len(set(unpredictable)) < MIN_DIFFERENT:
        return (
            "the token is guessed easily: without repetitions, series and well-known words it has "
            f"{len(unpredictable)} characters, {len(set(unpredictable))} of them different, expected "
            f"{MIN_UNPREDICTABLE} and {MIN_DIFFERENT}"
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


SESSION_IDLE_SECONDS = 12 * 3600
MAX_SESSION_SECONDS = 7 * 24 * 3600
MAX_SESSIONS = 1000
MAX_ADDRESSES = 10_000
"""Limit of the tables of clients, which an attacker could otherwise make grow."""


@dataclass(slots=True)
class _Session:
    began: float
    seen: float


class Sessions:
    """Session ids, random and in memory only. Belongs to one event loop.

    A session ends ``SESSION_IDLE_SECONDS`` after its last use, ``MAX_SESSION_SECONDS`` after its start, by ``end``, or
    as the least recently used of more than ``MAX_SESSIONS``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self) -> str:
        """A new session's id, of 256 random bits."""
        made = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions[_digest(made)] = _Session(now, now)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return made

    def holds(self, offered: str) -> bool:
        """Whether this is the id of a session; marks the session as used."""
        key, now = _digest(offered), self._clock()
        session = self._sessions.get(key)
        if session is None:
            return False
        if now - session.seen > SESSION_IDLE_SECONDS or now - session.began > MAX_SESSION_SECONDS:
            del self._sessions[key]
            return False
        session.seen = now
        self._sessions.move_to_end(key)
        return True

    def end(self, offered: str) -> None:
        """End a session, if it is one."""
        self._sessions.pop(_digest(offered), None)


def _digest(offered: str) -> bytes:
    """Key of the table: the duration of a lookup reveals nothing about the ids in it."""
    return hashlib.sha256(offered.encode("utf-8", "replace")).digest()


class _Bucket:
    """Token bucket: ``most`` failures at once, then one per ``seconds_each``."""

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
    """Limits the rate of wrong tokens. Belongs to one event loop.

    An address may fail ``FAILURES`` times at once and then once in ``SECONDS_EACH``; all addresses together
    ``ALL_FAILURES`` times and then once in ``ALL_SECONDS_EACH``. Failures of other addresses do not delay an
    address that has shown the right token before.
    """

    FAILURES, SECONDS_EACH = 5, 10.0
    ALL_FAILURES, ALL_SECONDS_EACH = 50, 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = _Bucket(self.ALL_FAILURES, self.ALL_SECONDS_EACH)
        self._failing: OrderedDict[str, _Bucket] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds until an attempt from this address is checked; 0: now."""
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
        """Remember an address that has shown the right token."""
        who = _network(address)
        self._known[who] = None
        _keep_newest(self._known, who)


def _network(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 address: what a single customer gets."""
    try:
        known = ip_address(address)
    except ValueError:
        return address[:64]
    return str(ip_network((known, 64), strict=False)) if isinstance(known, IPv6Address) else address


def _keep_newest(table: OrderedDict[str, _Bucket] | OrderedDict[str, None], newest: str) -> None:
    table.move_to_end(newest)
    if len(table) > MAX_ADDRESSES:
        table.popitem(last=False)


MAX_BODY_BYTES = 2_000_000
"""Limit of bodies that are not images: forms and JSON."""

TOO_LARGE = f"the body has more than {MAX_BODY_BYTES:,} bytes: send less at once"

MAX_MESSAGE_LENGTH = 1000
"""Messages repeat what was sent; of a longer one the beginning is kept, and the end, where the reason is."""

_OPEN_PATHS = ("/static/", "/health", "/sign-in")
"""Paths that need no token: scripts and styles, which are public, the health check, and the sign-in."""

_IMAGE_PATHS = frozenset({"/api/query", "/api/shares", "/api/uploads"})
"""Paths that accept images, and limit their bytes themselves."""

_OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
"""``Host`` as a browser on this machine sends it; another one is a domain that was rebound to this machine."""

PAGES = ("/", "/docs", "/browse", "/overview")
"""Pages that another site may link to."""

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=(), payment=()",
}


class TooManyAttemptsError(Exception):
    """Wrong tokens arrive too fast; the next one is checked in ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = math.ceil(seconds)
        super().__init__(f"too many wrong tokens: try again in {self.seconds} seconds")


class Access:
    """Checks tokens and keeps sessions. Belongs to one event loop."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._sessions, self._attempts = Sessions(), Attempts()

    def is_token(self, request: Request, offered: str) -> bool:
        """Whether this is the token.

        Raises:
            TooManyAttemptsError: the rate limit is reached; the token was not compared.
        """
        address = request.client.host if request.client else ""
        wait = self._attempts.wait(address)
        if wait > 0:
            raise TooManyAttemptsError(wait)
        right = self._token is not None and hmac.compare_digest(
            offered.encode("utf-8", "replace"), self._token.encode()
        )
        (self._attempts.succeeded if right else self._attempts.failed)(address)
        return right

    def has_session(self, request: Request) -> bool:
        """Whether the client has signed in."""
        return self._sessions.holds(request.cookies.get(_cookie(request), ""))

    def sign_in(self, request: Request, response: Response) -> Response:
        """Start a new session with a response; an id that the browser had before ends."""
        self._sessions.end(request.cookies.get(_cookie(request), ""))
        # Lax: a link to a query, in a mail or on another site, works for those who have signed in. The cookie ends with
        # the browser, and the session by the rules of Sessions.
        response.set_cookie(
            _cookie(request), self._sessions.begin(), httponly=True, samesite="lax", secure=_is_tls(request)
        )
        response.headers["referrer-policy"] = "no-referrer"
        return response

    def sign_out(self, request: Request, response: Response) -> Response:
        """End the session; the browser drops the cookie and its cached thumbnails."""
        self._sessions.end(request.cookies.get(_cookie(request), ""))
        response.delete_cookie(_cookie(request), httponly=True, samesite="lax", secure=_is_tls(request))
        response.headers["clear-site-data"] = '"cache"'
        return response


class Guard:
    """The outermost ASGI middleware: refuses requests, adds security headers, counts responses."""

    def __init__(
        self, app: ASGIApp, settings: WebSettings, metrics: Metrics, access: Access, sign_in: Callable[..., Response]
    ) -> None:
        """``sign_in(request, error)`` makes the page that asks for the token."""
        self._app, self._settings, self._metrics = app, settings, metrics
        self._access, self._sign_in = access, sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        root = self._settings.root_path
        if root and scope["path"] == root:
            await RedirectResponse(f"{root.rpartition('/')[2]}/", 307)(scope, receive, send)
            return
        if root and scope["path"].startswith(f"{root}/"):  # other proxies have removed it
            scope = {**scope, "path": scope["path"].removeprefix(root)}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Scripts and styles are revalidated: after an upgrade the browser must not use old ones.
                headers.setdefault("cache-control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(scope["method"], route, message["status"])
            await send(message)

        refusal = self._refusal(Request(scope))
        if scope["path"] not in _IMAGE_PATHS:
            receive = _limited(receive)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        host, token = request.headers.get("host", ""), self._settings.token
        if token is None and not _OWN_HOST.fullmatch(host):
            return error_response(421, f"this page is served to this machine only, not as '{host[:100]}'")
        if _is_foreign(request):
            return error_response(403, "another site asked for this; only this page itself may")
        stated = request.headers.get("content-length", "0")
        if request.url.path not in _IMAGE_PATHS and (
            not re.fullmatch(r"\d{1,20}", stated) or int(stated) > MAX_BODY_BYTES
        ):
            return error_response(413, TOO_LARGE)
        if token is None or any(request.url.path.startswith(path) for path in _OPEN_PATHS):
            return None
        try:
            return self._unless_signed_in(request)
        except TooManyAttemptsError as error:
            return self._sign_in(request, error) if _is_page(request) else too_many_attempts_response(error)

    def _unless_signed_in(self, request: Request) -> Response | None:
        offered = request.query_params.get("token") if request.url.path == "/" and _is_page(request) else None
        if self._access.has_session(request):
            return None if offered is None else _without_token(request)
        if offered is not None and self._access.is_token(request, offered):
            return self._access.sign_in(request, _without_token(request))
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._access.is_token(request, bearer.strip()):
            return None
        if _is_page(request):
            return self._sign_in(request, None)
        message = "a token is needed: open the page to sign in, or send Authorization: Bearer TOKEN"
        response = error_response(401, message)
        response.headers["www-authenticate"] = "Bearer"
        return response


def error_response(status: int, message: str) -> Response:
    """An error as JSON."""
    message = message.encode("utf-8", "backslashreplace").decode()  # JSON strings may hold unpaired surrogates
    if len(message) > MAX_MESSAGE_LENGTH:
        message = f"{message[: MAX_MESSAGE_LENGTH // 2]} … {message[-MAX_MESSAGE_LENGTH // 2 :]}"
    return JSONResponse({"error": message}, status)


def too_many_attempts_response(error: TooManyAttemptsError) -> Response:
    """429 with Retry-After."""
    response = error_response(429, str(error))
    response.headers["retry-after"] = str(error.seconds)
    return response


def _limited(receive: Receive) -> Receive:
    """Wrap ``receive`` so that a body above ``MAX_BODY_BYTES`` raises 413."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message

    return limited


def _cookie(request: Request) -> str:
    """Name of this server's cookie, with its port: browsers send the cookies of a host to all its ports.

    Over TLS the prefix prevents other hosts of the domain, and unencrypted pages, from setting it.
    """
    _, port = request.scope.get("server") or ("", None)
    return f"{'__Host-' if _is_tls(request) else ''}mgm_session_{port or 0}"


def _is_tls(request: Request) -> bool:
    """Whether the browser's own connection is encrypted.

    uvicorn takes X-Forwarded-Proto from proxies on this machine, and from the addresses in FORWARDED_ALLOW_IPS.
    """
    return request.url.scheme == "https"


def _is_page(request: Request) -> bool:
    return request.method == "GET" and request.url.path in PAGES


def _without_token(request: Request) -> Response:
    """Redirect to the same page without the token in its address, which a history would keep."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
    return RedirectResponse(f"./?{urlencode(rest)}" if rest else "./", 303)


def _is_foreign(request: Request) -> bool:
    """Whether a browser sends this on behalf of another site: such requests carry this page's cookies."""
    headers = request.headers
    site = headers.get("sec-fetch-site", "none")
    if site not in {"none", "same-origin"}:
        followed = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return not (followed and request.url.path in PAGES)
    origin = headers.get("origin")
    if origin is None or request.method in {"GET", "HEAD"}:
        return False
    try:
        return urlsplit(origin).netloc != headers.get("host", "")
    except ValueError:
        return True
