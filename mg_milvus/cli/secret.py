"""The tokens of the running command, which no report of a bug may hold: those are pasted into issues."""

from __future__ import annotations

_tokens: set[str] = set()


def keep(token: str | None) -> None:
    """Remember a token until the next command begins."""
    if token:
        _tokens.add(token)


def forget() -> None:
    """A new command begins."""
    _tokens.clear()


def hidden(text: str) -> str:
    """Text of a library's, or a traceback, without the tokens."""
    if _tokens:
        from mg_milvus.store.access import hide

        for token in _tokens:
            text = hide(text, token)
    return text
