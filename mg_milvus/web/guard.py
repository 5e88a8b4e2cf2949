"""Who may ask: the host name, other sites, the token, and the headers that keep a browser inside this page."""

from __future__ import annotations

import hmac
import math
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse

from mg_milvus.web.sessions import Attempts, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mg_milvus.web.meters import Meters
    from mg_milvus.web.settings import WebSettings

MOST_BODY_BYTES = 2_000_000
"""Of what is not a picture: forms and JSON."""

TOO_LARGE = f"the body has more than {MOST_BODY_BYTES:,} bytes: send less at once"

LONGEST_MESSAGE = 1000
"""Messages repeat what was sent, but not all of it: the beginning, and the end, where the reason is."""

_OPEN_PATHS = ("/static/", "/health", "/sign-in")
"""What is answered without a token: code and styles that anyone can install, and the way in."""

_PICTURE_PATHS = frozenset({"/api/query", "/api/uploads"})
"""What takes pictures, and counts their bytes itself."""

_OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
"""``Host`` as a browser on this machine writes it; another one is a domain that was rebound to this machine."""

_PAGES = ("/", "/docs")
"""What another site may link to."""

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
    """Wrong tokens came faster than they are listened to; ``seconds`` until the next one is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = math.ceil(seconds)
        super().__init__(f"too many wrong tokens: try again in {self.seconds} seconds")


class Access:
    """The token, and those who have shown it. Belongs to one event loop."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._sessions, self._attempts = Sessions(), Attempts()

    def is_token(self, request: Request, offered: str) -> bool:
        """Whether this is the token.

        Raises:
            TooManyAttemptsError: it was not compared.
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
        """Whether who asks has signed in."""
        return self._sessions.holds(request.cookies.get(_cookie(request), ""))

    def sign_in(self, request: Request, answer: Response) -> Response:
        """Begin a session with an answer, whatever id the browser had before."""
        self._sessions.end(request.cookies.get(_cookie(request), ""))
        # Lax: a link to a question, in a mail or on another site, is followed by who has signed in. It is a cookie of
        # the browser's session: Sessions says when it ends at the latest.
        answer.set_cookie(
            _cookie(request), self._sessions.begin(), httponly=True, samesite="lax", secure=_is_tls(request)
        )
        answer.headers["referrer-policy"] = "no-referrer"
        return answer

    def sign_out(self, request: Request, answer: Response) -> Response:
        """End the session; the browser forgets its id, and the thumbnails that it kept."""
        self._sessions.end(request.cookies.get(_cookie(request), ""))
        answer.delete_cookie(_cookie(request), httponly=True, samesite="lax", secure=_is_tls(request))
        answer.headers["clear-site-data"] = '"cache"'
        return answer


class Guard:
    """ASGI middleware, outside everything else."""

    def __init__(
        self, app: ASGIApp, settings: WebSettings, meters: Meters, access: Access, sign_in: Callable[..., Response]
    ) -> None:
        """``sign_in(request, problem)`` makes the page that asks people for the token."""
        self._app, self._settings, self._meters = app, settings, meters
        self._access, self._sign_in = access, sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Scripts and styles may be kept, but are asked for again: an upgrade must not meet old ones.
                headers.setdefault("cache-control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
                route = getattr(scope.get("route"), "path", "other")
                self._meters.request(scope["method"], route, message["status"])
            await send(message)

        refusal = self._refusal(Request(scope))
        if scope["path"] not in _PICTURE_PATHS:
            receive = _limited(receive)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        host, token = request.headers.get("host", ""), self._settings.token
        if token is None and not _OWN_HOST.fullmatch(host):
            return refused(421, f"this page is served to this machine only, not as '{host[:100]}'")
        if _is_foreign(request):
            return refused(403, "another site asked for this; only this page itself may")
        stated = request.headers.get("content-length", "0")
        if request.url.path not in _PICTURE_PATHS and (
            not re.fullmatch(r"\d{1,20}", stated) or int(stated) > MOST_BODY_BYTES
        ):
            return refused(413, TOO_LARGE)
        if token is None or any(request.url.path.startswith(path) for path in _OPEN_PATHS):
            return None
        try:
            return self._unless_signed_in(request)
        except TooManyAttemptsError as error:
            return self._sign_in(request, error) if _is_page(request) else too_many(error)

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
        answer = refused(401, "a token is needed: open the page to sign in, or send Authorization: Bearer TOKEN")
        answer.headers["www-authenticate"] = "Bearer"
        return answer


def refused(status: int, message: str) -> Response:
    """An error as JSON."""
    message = message.encode("utf-8", "backslashreplace").decode()  # JSON may hold halves of characters
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2]} … {message[-LONGEST_MESSAGE // 2 :]}"
    return JSONResponse({"error": message}, status)


def too_many(error: TooManyAttemptsError) -> Response:
    """What those get who guess tokens."""
    answer = refused(429, str(error))
    answer.headers["retry-after"] = str(error.seconds)
    return answer


def _is_too_large(request: Request) -> bool:
    stated = request.headers.get("content-length", "0")
    return not re.fullmatch(r"\d{1,20}", stated, re.ASCII) or int(stated) > MOST_BODY_BYTES


def _limited(receive: Receive) -> Receive:
    """The body of a request, which ends in an error where it becomes too large to be kept in memory."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MOST_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message

    return limited


def _cookie(request: Request) -> str:
    """Name of the cookie of this server: browsers send those of one host to all its ports.

    Over TLS the prefix keeps other hosts of the domain, and what is not encrypted, from setting it.
    """
    _, port = request.scope.get("server") or ("", None)
    return f"{'__Host-' if _is_tls(request) else ''}mgm_session_{port or 0}"


def _is_tls(request: Request) -> bool:
    """Whether the browser's own connection is encrypted.

    uvicorn takes X-Forwarded-Proto from proxies on this machine, and from the addresses in FORWARDED_ALLOW_IPS.
    """
    return request.url.scheme == "https"


def _is_page(request: Request) -> bool:
    return request.method == "GET" and request.url.path in _PAGES


def _without_token(request: Request) -> Response:
    """Leads to the same page, with nothing in its address that a history may keep."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
    return RedirectResponse(f"/?{urlencode(rest)}" if rest else "/", 303)


def _is_foreign(request: Request) -> bool:
    """Whether a browser asks for another site: such requests carry this page's cookies, but not its interest."""
    headers = request.headers
    site = headers.get("sec-fetch-site", "none")
    if site not in {"none", "same-origin"}:
        followed = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return not (followed and request.url.path in _PAGES)
    origin = headers.get("origin")
    if origin is None or request.method in {"GET", "HEAD"}:
        return False
    try:
        return urlsplit(origin).netloc != headers.get("host", "")
    except ValueError:
        return True
