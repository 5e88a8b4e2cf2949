"""The console script ``mgm`` and ``python -m mg_milvus``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; ends the process with the exit code of the command."""
    # pymilvus would load SciPy, which takes a third of a second, to ask whether our codes are its sparse matrices.
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]  # documented: such an import fails
    from mg_milvus.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
