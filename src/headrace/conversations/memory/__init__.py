"""What conversations remember: chunks of documents and messages, found by words and by vectors."""

from headrace.conversations.memory.memory import Memory, MemoryLimits
from headrace.conversations.memory.values import Chunk, Found, Recall, Scope, Source

__all__ = ["Chunk", "Found", "Memory", "MemoryLimits", "Recall", "Scope", "Source"]
