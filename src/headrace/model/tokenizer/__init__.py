"""Text to tokens and back, with the vocabulary that a GGUF carries.

vocabulary.py     metadata → checked tokens, kinds, special ids
markers.py        where control tokens are spelled in a text
byte_level.py     "gpt2" vocabularies: byte-level BPE and its pre-tokenizers
sentencepiece.py  "llama" vocabularies: scores, ▁ for spaces, byte fallback
tokenizer.py      the one class that the rest of the house uses
"""

from headrace.model.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
