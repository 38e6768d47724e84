"""Chat templates: messages to a prompt, with the Jinja template that a GGUF carries.

chat.py      the template itself: which one, what it is given, what its errors mean
sandbox.py   Jinja with a budget: no hostile template gets far, none gets out
origins.py   text that remembers who wrote each of its characters
"""

from headrace.model.template.chat import ChatTemplate

__all__ = ["ChatTemplate"]
