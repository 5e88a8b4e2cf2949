"""The console script ``mgm`` and ``python -m mg_milvus``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; ends the process with the exit code of the command."""
    from mg_milvus.cli.app import run
    from mg_milvus.store.lite_workarounds import skip_pandas, skip_scipy

    skip_scipy()
    skip_pandas()

    sys.exit(run())


if __name__ == "__main__":
    main()
