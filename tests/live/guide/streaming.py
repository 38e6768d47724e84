# Python: SSE streaming with Groq SDK
from groq import Groq
import json

client = Groq(api_key="your_key")

def stream_chat(prompt: str):
    stream = client.chat.completions.create(
        model="llama-3.1-8b-instant",
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        max_tokens=512
    )

    for chunk in stream:
        content = chunk.choices[0].delta.content
        if content:
            # Yield token to frontend via SSE
            yield json.dumps({"token": content}) + "\n\n"

    yield json.dumps({"done": True}) + "\n\n"
