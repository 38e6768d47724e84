// server.js — Express endpoint with Groq streaming
const express = require('express');
const { Groq } = require('groq-sdk');
const app = express();
const client = new Groq({ apiKey: process.env.GROQ_API_KEY });

app.post('/api/chat', async (req, res) => {
  res.setHeader('Content-Type', 'text/event-stream');
  res.setHeader('Cache-Control', 'no-cache');
  res.setHeader('Connection', 'keep-alive');

  const { prompt, conversationId } = req.body;
  const history = await getConversation(conversationId);
  const messages = [...history, { role: 'user', content: prompt }];

  const stream = await client.chat.completions.create({
    model: 'llama-3.1-8b-instant',
    messages,
    stream: true,
    max_tokens: 1024
  });

  for await (chunk of stream) {
    const content = chunk.choices[0]?.delta?.content;
    if (content) {
      await appendToConversation(conversationId, content);
      res.write(`data: ${JSON.stringify({ token: content })}\n\n`);
    }
  }

  res.write('data: [DONE]\n\n');
  res.end();
});
