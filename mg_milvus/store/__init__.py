"""Collections of codes in Milvus: the ``Store`` protocol, servers and Milvus Lite."""
