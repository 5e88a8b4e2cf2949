"""Millions of images: encode without Milvus, load, export, import jobs."""
