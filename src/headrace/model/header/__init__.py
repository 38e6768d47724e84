"""The parts of a GGUF file's header, which `model/gguf.py` reads. None trusts the file.

cursor.py    the bytes, front to back
metadata.py  keys and values
tensors.py   where each tensor's bytes are
types.py     the formats of their numbers
"""
