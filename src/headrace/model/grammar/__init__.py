"""Grammars: which tokens may come next, so that an answer cannot be anything but what was asked.

vocabulary.py   a model's tokens as the grammar library wants them, made once per model
schema.py       JSON schemas: bounded, and made to say what their author most likely meant
compiler.py     JSON schema or rules → compiled grammar, within bounds; keeps the latest
compiled.py     a compiled grammar, and where one choice stands in it: masks for the sampler
"""

from headrace.model.grammar.compiled import CompiledGrammar
from headrace.model.grammar.compiler import GrammarCompiler
from headrace.model.grammar.vocabulary import Vocabulary

__all__ = ["CompiledGrammar", "GrammarCompiler", "Vocabulary"]
