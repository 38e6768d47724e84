"""Embedding models: folders of files that become vectors of texts, on the same core."""
