"""A chat's route in FastAPI that remembers: the guide's program, with its gaps filled.

The conversation is headrace's: the route names it, and sends what is new.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from groq import APIError, AsyncGroq
from pydantic import BaseModel, Field

app = FastAPI()
client = AsyncGroq()  # GROQ_BASE_URL says where headrace is


class Chat(BaseModel):
    prompt: str = Field(min_length=1)
    conversation_id: str = Field(min_length=1, max_length=128)


async def generate_stream(chat: Chat) -> AsyncIterator[str]:
    try:
        stream = await client.chat.completions.create(
            model="llama-3.1-8b-instant",
            messages=[{"role": "user", "content": chat.prompt}],
            stream=True,
            max_tokens=1024,
            extra_body={"conversation": {"id": chat.conversation_id, "create": True}},
        )
        # Whoever closes the page ends the answer, too: the block is left, and headrace stops.
        async with stream:
            async for chunk in stream:
                if content := chunk.choices[0].delta.content:
                    yield f"data: {json.dumps({'token': content})}\n\n"
    except APIError as error:
        yield f"data: {json.dumps({'error': error.message})}\n\n"
        return
    yield "data: [DONE]\n\n"


@app.post("/api/chat")
async def chat(chat: Chat) -> StreamingResponse:
    return StreamingResponse(
        generate_stream(chat),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
