"""Queries: retrieve candidates per granularity, fuse their rankings, explain the scores."""
