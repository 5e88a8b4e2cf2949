"""Where the time and the memory go; used by ``profile_ingest.py`` and ``profile_query.py``."""
