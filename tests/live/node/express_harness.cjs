// Runs the guide's Express server, with what the guide leaves out: a body parser, somewhere to keep
// conversations, and a port to listen on. Prints the port, then serves until its input ends.
const { readFileSync } = require('node:fs');
const express = require('express');

const conversations = new Map([['old', [{ role: 'user', content: 'My name is Ada.' },
                                        { role: 'assistant', content: 'Hello, Ada!' }]]]);
let app;

function requireForGuide(name) {
  if (name !== 'express') return require(name);
  return () => {
    app = express();
    app.use(express.json());
    return app;
  };
}

async function getConversation(id) {
  return conversations.get(id) ?? [];
}

async function appendToConversation(id, content) {
  conversations.set(id, [...(conversations.get(id) ?? []), content]);
}

const source = readFileSync(process.argv[2], 'utf8');
const given = { require: requireForGuide, getConversation, appendToConversation };
new Function(...Object.keys(given), source)(...Object.values(given));

app.get('/kept/:id', (req, res) => res.json(conversations.get(req.params.id) ?? []));
const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume().on('end', () => process.exit(0));
