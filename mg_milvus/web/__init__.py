"""The web page and its API under ``/api``: ``create_app`` makes the application, ``server.serve`` runs it.

Needs the extra ``web`` (FastAPI and uvicorn).
"""

from __future__ import annotations

from mg_milvus.web.settings import WebSettings

__all__ = ["WebSettings"]
