"""mg-milvus beside what people use instead: the parts of ``peers.py``."""
