# main.py — FastAPI endpoint with Groq streaming
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from groq import Groq
import json

app = FastAPI()
client = Groq(api_key=os.getenv("GROQ_API_KEY"))

async def generate_stream(prompt: str, conversation_id: str):
    # Load conversation history from cache/DB
    history = await get_conversation(conversation_id)

    messages = history + [{"role": "user", "content": prompt}]

    stream = client.chat.completions.create(
        model="llama-3.1-8b-instant",
        messages=messages,
        stream=True,
        max_tokens=1024
    )

    for chunk in stream:
        content = chunk.choices[0].delta.content
        if content:
            # Stream token + save to conversation history
            await append_to_conversation(conversation_id, content)
            yield f"data: {json.dumps({'token': content})}\n\n"

    yield "data: [DONE]\n\n"

@app.post("/api/chat")
async def chat(request: Request):
    data = await request.json()
    return StreamingResponse(
        generate_stream(data["prompt"], data["conversation_id"]),
        media_type="text/event-stream"
    )
