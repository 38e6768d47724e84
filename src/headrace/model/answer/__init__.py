"""What a model says beyond text (calls, thoughts, JSON): how it is asked for, how it is read.

style.py        the one class that the rest of the house uses: an `Ask` becomes an `AnswerPlan`
formats.py      how model families write calls and thoughts: two tables
messages.py     messages as a template wants them; instructions for templates without tools
rules.py        what an answer may look like, for the grammar compiler
parser.py       one choice's events, read: speech, thoughts, calls, and what was wrong
thoughts.py, calls.py, json_scan.py, parts.py    the readers it is made of
validation.py   calls and JSON held against their schemas
"""

from headrace.model.answer.parser import AnswerParser
from headrace.model.answer.style import AnswerPlan, AnswerStyle

__all__ = ["AnswerParser", "AnswerPlan", "AnswerStyle"]
