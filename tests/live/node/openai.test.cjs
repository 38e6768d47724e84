// What OpenAI's Node.js client has beyond Groq's. REAL is a server with the default model.
const assert = require('node:assert/strict');
const { test } = require('node:test');
const OpenAI = require('openai').default;

const client = new OpenAI({ baseURL: `${process.env.REAL}/openai/v1`, apiKey: 'any', maxRetries: 0 });
const model = 'llama-3.1-8b-instant';
const asked = { model, input: 'What is 2+2?', max_output_tokens: 60, temperature: 0 };

test('a response, whole and in events', async () => {
  const whole = await client.responses.create(asked);
  assert.equal(whole.status, 'completed');
  assert.ok(whole.output_text);
  const kinds = [];
  let said = '';
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    assert.equal(event.sequence_number, kinds.length);
    kinds.push(event.type);
    if (event.type === 'response.output_text.delta') said += event.delta;
  }
  assert.equal(said, whole.output_text);
  assert.equal(kinds[0], 'response.created');
  assert.equal(kinds.at(-1), 'response.completed');
});

test("the client's own view of events", async () => {
  const stream = client.responses.stream(asked);
  const response = await stream.finalResponse();
  assert.equal(response.output_text, (await client.responses.create(asked)).output_text);
});

test('the helper for streams', async () => {
  const messages = [{ role: 'user', content: 'What is 2+2?' }];
  const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
  let said = '';
  runner.on('content', (delta) => { said += delta; });
  assert.equal(await runner.finalContent(), said);
  assert.ok((await runner.finalChatCompletion()).choices[0].finish_reason);
});

test('the helper that runs tools', async () => {
  const called = [];
  const runner = client.chat.completions.runTools({
    model, seed: 1, max_tokens: 100, parallel_tool_calls: false,
    messages: [{ role: 'user', content: 'What time is it?' }],
    tool_choice: { type: 'function', function: { name: 'getTime' } },
    tools: [{
      type: 'function',
      function: {
        name: 'getTime', parse: JSON.parse,
        function: ({ zone }) => { called.push(zone); return 'noon'; },
        parameters: {
          type: 'object', required: ['zone'], additionalProperties: false,
          properties: { zone: { type: 'integer', minimum: -12, maximum: 14 } },
        },
      },
    }],
  });
  await runner.done();
  assert.equal(called.length, 1);
  assert.ok(Math.abs(called[0]) <= 14);
});

test('completions', async () => {
  const options = { model, prompt: ['One, two,', 'Red, green,'], n: 2, max_tokens: 6, seed: 3 };
  const whole = await client.completions.create(options);
  const texts = ['', '', '', ''];
  for await (const chunk of await client.completions.create({ ...options, stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
  }
  assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
});
