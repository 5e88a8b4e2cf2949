"""Image files to rows: the pipeline, fitting hash heads, metadata, metrics."""
