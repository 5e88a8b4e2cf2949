"""Import jobs of a Milvus server, over its REST API (since 2.4): start one, ask how far it is.

``pymilvus.bulk_writer`` has the same three requests, but cannot be imported without the client libraries of two object
storages. Here they are made with the standard library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from mg_milvus.errors import AuthenticationError, StoreError, UnsupportedError
from mg_milvus.store.access import Tls, hide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from http.client import HTTPResponse

MOST_FILES = 1_000
"""Files of one job; servers take 1,024."""
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
        self._opener = build_opener(_Encrypted(tls or Tls()), _Stay())
        self._token, self._timeout = token, timeout
        self._database = {"dbName": parts.path.strip("/")} if parts.path.strip("/") else {}

    def at_work(self, collection: str) -> list[str]:
        """The ids of the jobs into a collection that are not done."""
        told = self._post("list", {"collectionName": collection})
        return [str(job["jobId"]) for job in told.get("records") or () if job.get("state") in _AT_WORK]

    def start(self, collection: str, files: Sequence[str]) -> str:
        """Start a job; its id.

        Args:
            collection: that gets the rows.
            files: paths in the server's bucket, of Parquet files with exactly its columns.
        """
        return str(self._post("create", {"collectionName": collection, "files": [[file] for file in files]})["jobId"])

    def job(self, job_id: str) -> Job:
        """How far a job is."""
        told = self._post("describe", {"jobId": job_id})
        return Job(str(told["state"]), int(told.get("progress") or 0), str(told.get("reason") or ""))

    def _post(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """The data of an answer.

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
        try:
            request = Request(url, data, headers)  # noqa: S310 - http(s) only
            with self._opener.open(request, timeout=self._timeout) as answer:
                told = json.load(answer)
            if told["code"] == 0:
                return dict(told["data"])
        except HTTPError as error:
            if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise AuthenticationError(f"{self._base} refuses the token: give the right --token") from error
            raise UnsupportedError(f"{url} answers {error.code} {self._line(error.reason)}: {_REMEDY}") from error
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            reason = self._line(str(getattr(error, "reason", error))) or type(error).__name__
            raise UnsupportedError(f"{url} cannot be asked ({reason}): {_REMEDY}") from error
        raise StoreError(f"the server refuses an import job ({told['code']}): {self._line(str(told.get('message')))}")

    def _line(self, said: str) -> str:
        return hide(" ".join(said.split()), self._token)


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: urllib would hand the token on to wherever it leads."""

    def redirect_request(self, *_: object) -> None:
        """What urllib calls for a redirect; None: it is an error."""


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
