"""Conversations played through the context strategies: memory, latency, what is remembered."""
