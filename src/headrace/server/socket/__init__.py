"""The WebSocket: any number of questions at once over one connection.

`connection.py` is any socket's life, `outlet.py` what it sends, fairly, and `shared.py` what two
threads write; `chat.py` what is asked over it, and `answer.py` one answer. A protocol of another
endpoint would stand beside `chat.py`.
"""
