"""Chat templates: messages to a prompt, with the Jinja template that a GGUF carries.

chat.py        the template itself: which one, what it is given, what its errors mean
sandbox.py     Jinja's sandbox in Hugging Face's dialect
rewriting.py   puts prices into a template's syntax tree
operations.py  what templates can do to values: methods, operators, filters
meter.py       what a rendering may spend
origins.py     text that remembers who wrote each of its characters
"""

from headrace.model.template.chat import ChatTemplate

__all__ = ["ChatTemplate"]
