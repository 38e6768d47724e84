// A chat's route in Express that remembers: the guide's program, with its gaps filled.
// The conversation is headrace's: the route names it, and sends what is new.
const express = require('express');
const { Groq } = require('groq-sdk');

const app = express();
app.use(express.json());
const client = new Groq(); // GROQ_BASE_URL says where headrace is

app.post('/api/chat', async (req, res) => {
  const { prompt, conversationId } = req.body ?? {};
  if (typeof prompt !== 'string' || typeof conversationId !== 'string') {
    return res.status(400).json({ error: 'prompt and conversationId must be texts' });
  }
  res.setHeader('Content-Type', 'text/event-stream');
  res.setHeader('Cache-Control', 'no-cache');
  res.setHeader('X-Accel-Buffering', 'no');
  // Whoever closes the page ends the answer, too.
  const leaving = new AbortController();
  res.on('close', () => leaving.abort());
  const say = (value) => res.write(`data: ${JSON.stringify(value)}\n\n`);
  try {
    const stream = await client.chat.completions.create(
      {
        model: 'llama-3.1-8b-instant',
        messages: [{ role: 'user', content: prompt }],
        stream: true,
        max_tokens: 1024,
        conversation: { id: conversationId, create: true },
      },
      { signal: leaving.signal },
    );
    for await (const chunk of stream) {
      const content = chunk.choices[0]?.delta?.content;
      if (content) say({ token: content });
    }
    res.write('data: [DONE]\n\n');
  } catch (error) {
    if (!leaving.signal.aborted) say({ error: error.message });
  }
  res.end();
});

const server = app.listen(process.env.PORT ?? 3000, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
});
