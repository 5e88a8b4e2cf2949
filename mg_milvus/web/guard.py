"""Who may ask: the host name, other sites, the token, and the headers that keep a browser inside this page."""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import URL, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mg_milvus.web.meters import Meters
    from mg_milvus.web.settings import WebSettings

COOKIE = "mgm_token"
COOKIE_SECONDS = 30 * 24 * 3600

_OPEN_PATHS = ("/static/", "/health", "/sign-in")
"""What is answered without a token: code and styles that anyone can install, and the way in."""

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


class Guard:
    """ASGI middleware, outside everything else."""

    def __init__(
        self, app: ASGIApp, settings: WebSettings, meters: Meters, sign_in: Callable[[Request], Response]
    ) -> None:
        """``sign_in`` makes the page that asks people for the token."""
        self._app, self._settings, self._meters, self._sign_in = app, settings, meters, sign_in

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
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        headers, token = request.headers, self._settings.token
        if token is None and not _OWN_HOST.fullmatch(headers.get("host", "")):
            return refused(421, f"this page is served to this machine only, not as '{headers.get('host', '')}'")
        if _is_foreign(request):
            return refused(403, "another site asked for this; only this page itself may")
        if token is None or any(request.url.path.startswith(path) for path in _OPEN_PATHS):
            return None
        offered = request.query_params.get("token")
        if offered is not None and request.method == "GET" and request.url.path == "/" and _same(offered, token):
            return with_cookie(RedirectResponse(URL("/").include_query_params(**_without_token(request)), 303), token)
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if _same(bearer, token) or _same(request.cookies.get(COOKIE, ""), token):
            return None
        if request.method == "GET" and request.url.path in _PAGES:
            return self._sign_in(request)
        answer = refused(401, "a token is needed: open the page to sign in, or send Authorization: Bearer TOKEN")
        answer.headers["www-authenticate"] = "Bearer"
        return answer


def refused(status: int, message: str) -> Response:
    """An error as JSON."""
    return JSONResponse({"error": message}, status)


def with_cookie(answer: Response, token: str) -> Response:
    """The answer, which also makes the browser remember the token."""
    answer.set_cookie(COOKIE, token, max_age=COOKIE_SECONDS, httponly=True, samesite="lax")
    return answer


def is_token(offered: str, settings: WebSettings) -> bool:
    """Whether this is the token."""
    return settings.token is not None and _same(offered, settings.token)


def _same(offered: str, token: str) -> bool:
    return hmac.compare_digest(offered.encode("utf-8", "replace"), token.encode())


def _without_token(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.query_params.items() if name != "token"}


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
