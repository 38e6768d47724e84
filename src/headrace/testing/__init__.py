"""headrace without a model: for tests of headrace, and of what is built on it.

FakeModel       a model whose next token depends on what its KV banks really hold
saying          a rule for it: say this, then end
FaultyModel     any model, failing at a known step
ManualEngine    the real engine around a fake model, stepped by hand
ManualClock     its time
FakeTokenizer   one token a byte
FakeTemplate    a chat template in two markers
FakeEmbedder    texts to vectors: texts that share words point the same way
scripted_engine the real engine on its own thread, saying a given text at a given pace
ScriptedModel   its model, which costs almost no processor time
asgi.Call       in `headrace.testing.asgi`: one request to an ASGI application, without a socket
"""

from headrace.testing.fake_embedder import FakeEmbedder
from headrace.testing.fake_model import FakeModel, FakeSampler, Rule, saying
from headrace.testing.fake_tokenizer import END_ID, START_ID, FakeTemplate, FakeTokenizer
from headrace.testing.faults import FaultyModel
from headrace.testing.harness import ManualClock, ManualEngine
from headrace.testing.scripted_model import (
    ScriptedModel,
    ScriptedSampler,
    ScriptedTokenizer,
    scripted_engine,
)

__all__ = [
    "END_ID",
    "START_ID",
    "FakeEmbedder",
    "FakeModel",
    "FakeSampler",
    "FakeTemplate",
    "FakeTokenizer",
    "FaultyModel",
    "ManualClock",
    "ManualEngine",
    "Rule",
    "ScriptedModel",
    "ScriptedSampler",
    "ScriptedTokenizer",
    "saying",
    "scripted_engine",
]
