"""Import jobs of a Milvus server, over its REST API (since 2.4): start one, ask how far it is.

``pymilvus.bulk_writer`` has the same three requests, but cannot be imported without the client libraries of two object
storages. Here they are made with the standard library.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from mg_milvus.display import one_line
from mg_milvus.errors import AuthenticationError, StoreError, UnsupportedError
from mg_milvus.store.access import Tls, hide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from http.client import HTTPResponse

MOST_FILES = 1_000
"""Files of one job; servers take 1,024."""
_MOST_BYTES = 16 << 20
"""Of an answer; that of 1,024 jobs, each with its files, is a tenth of it."""
_AT_WORK = {"Pending", "Importing", "InProgress"}


@dataclass(frozen=True, slots=True)
class Job:
    """How far a job is.

    Attributes:
        state: "Pending", "Importing", "Completed" or "Failed".
        percent: done, 0 to 100.
        reason: why it failed.
    """

    state: str
    percent: int
    reason: str

    @property
    def at_work(self) -> bool:
        """Whether the server still has to do with it."""
        return self.state in _AT_WORK


class ImportApi:
    """The import jobs of one server."""

    def __init__(self, uri: str, token: str | None, timeout: float, tls: Tls | None = None) -> None:
        """``uri`` as for pymilvus: a path in it names the database; ``tls`` as for the store.

        Raises:
            UnsupportedError: it is no server's.
        """
        parts = urlsplit(uri)
        if parts.scheme not in {"http", "https", "tcp"} or not parts.hostname:
            shown = uri.rpartition("@")[2]
            raise UnsupportedError(f"import jobs are a server's, and {shown} is none: leave --bucket out")
        self._base = base_url(f"https://{uri.partition('://')[2]}" if tls else uri)
        self._opener = build_opener(_Encrypted(tls or Tls()), _NoRedirects())
        self._token, self._timeout = token, timeout
        self._database = {"dbName": parts.path.strip("/")} if parts.path.strip("/") else {}

    def at_work(self, collection: str) -> list[str]:
        """The ids of the jobs into a collection that are not done."""
        url, told = self._post("list", {"collectionName": collection})
        with self._reading(url):
            return [_id(job) for job in told.get("records") or () if job.get("state") in _AT_WORK]

    def start(self, collection: str, files: Sequence[str]) -> str:
        """Start a job; its id.

        Args:
            collection: that gets the rows.
            files: paths in the server's bucket, of Parquet files with exactly its columns.
        """
        url, told = self._post("create", {"collectionName": collection, "files": [[file] for file in files]})
        with self._reading(url):
            return _id(told)

    def job(self, job_id: str) -> Job:
        """How far a job is."""
        url, told = self._post("describe", {"jobId": job_id})
        with self._reading(url):
            percent = min(100, max(0, int(told.get("progress") or 0)))
            return Job(self._line(str(told["state"]), 40), percent, self._line(str(told.get("reason") or "")))

    def _post(self, verb: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Where it was asked, and the data of the answer.

        Raises:
            AuthenticationError: the token is wrong.
            UnsupportedError: nothing there speaks this API.
            StoreError: the server refused.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(self._database | body).encode()
        url = f"{self._base}/v2/vectordb/jobs/import/{verb}"
        with self._reading(url):
            request = Request(url, data, headers)  # noqa: S310 - http(s) only
            with self._opener.open(request, timeout=self._timeout) as answer:
                text = answer.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it answers with more than {_MOST_BYTES:,} bytes")
            told = json.loads(text)
            if told["code"] == 0:
                return url, dict(told["data"])
            code, message = self._line(str(told["code"]), 40), self._line(str(told.get("message")))
        raise StoreError(f"the server refuses an import job ({code}): {message}")

    @contextmanager
    def _reading(self, url: str) -> Iterator[None]:
        """Around asking at a URL and taking the answer apart: whatever is wrong with it becomes an error of ours."""
        try:
            yield
        except HTTPError as error:
            if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise AuthenticationError(f"{self._base} refuses the token: give the right --token") from error
            raise UnsupportedError(f"{url} answers {error.code} {self._line(error.reason)}: {_REMEDY}") from error
        except (
            OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
        ) as error:  # fmt: skip
            reason = self._line(str(getattr(error, "reason", error))) or type(error).__name__
            raise UnsupportedError(f"{url} cannot be asked ({reason}): {_REMEDY}") from error

    def _line(self, said: str, most: int = 500) -> str:
        return one_line(hide(said, self._token), most)


def _id(job: dict[str, Any]) -> str:
    """The id of a job, which goes into messages and the next questions.

    Raises:
        ValueError, KeyError: it has none as servers give them.
    """
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", job_id := str(job["jobId"])):
        raise ValueError(f"{job_id!r} is not the id of a job")
    return job_id


class _NoRedirects(HTTPRedirectHandler):
    """No server of Milvus redirects, and the token would go wherever the answer says."""

    def redirect_request(self, *_: Any) -> None:
        """What urllib calls to ask again elsewhere; without another request the answer is an error."""


class _Encrypted(HTTPSHandler):
    """TLS with the user's own certificates, and another name in the server's."""

    def __init__(self, tls: Tls) -> None:
        super().__init__()
        self._tls = tls

    def https_open(self, request: Request) -> HTTPResponse:
        """What urllib calls for ``https://``."""
        return self.do_open(partial(_EncryptedConnection, self._tls), request)


class _EncryptedConnection(HTTPSConnection):
    def __init__(self, tls: Tls, host: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._tls = tls

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock = self._tls.context().wrap_socket(self.sock, server_hostname=self._tls.server_name or self.host)


_REMEDY = "import jobs need a Milvus server from 2.4 on; without --bucket, mgm load needs none"


def base_url(uri: str) -> str:
    """Where the REST API of the server at a URI is: the same port, without the database and the password."""
    parts = urlsplit(uri)
    return f"{'https' if parts.scheme == 'https' else 'http'}://{parts.netloc.rpartition('@')[2]}"
