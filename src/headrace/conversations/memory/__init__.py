"""What conversations remember: chunks of documents and messages, found by words and by vectors.

Of these modules, `values.py` alone is imported by those who may need no database: the others take
long to import.
"""
