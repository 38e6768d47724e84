"""How much a tenant may ask of a model: requests and tokens, a minute and a day.

LimitTable   which model has which limits: `none`, `groq-free`, or a file
Limiter      admits a request or says when to come again
Permit       an admitted request's reservation, settled when it is over
Store        where buckets are kept; MemoryStore keeps them here
"""

from headrace.server.limits.bucket import Dimension, Limit
from headrace.server.limits.limiter import Limiter, Permit
from headrace.server.limits.store import MemoryStore, Store
from headrace.server.limits.table import LimitTable, Row

__all__ = [
    "Dimension",
    "Limit",
    "LimitTable",
    "Limiter",
    "MemoryStore",
    "Permit",
    "Row",
    "Store",
]
