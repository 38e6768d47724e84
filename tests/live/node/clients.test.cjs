// What both official Node.js clients must find: run once for each, named by CLIENT.
// REAL is a server with the default model, FAKE one with limits, LOCKED one that wants KEY.
const assert = require('node:assert/strict');
const { test } = require('node:test');

const { CLIENT, REAL, FAKE, LOCKED, KEY } = process.env;
const library = require(CLIENT);
const MODEL = 'llama-3.1-8b-instant';

function client(url, options = {}) {
  const baseURL = CLIENT === 'openai' ? `${url}/openai/v1` : url;
  return new library.default({ baseURL, apiKey: 'any', maxRetries: 0, ...options });
}

const real = client(REAL);
const fake = client(FAKE);
const asked = {
  model: MODEL, seed: 11, max_tokens: 24,
  messages: [{ role: 'user', content: 'Name three colours.' }],
};
const hello = { model: 'fake', max_tokens: 2, messages: [{ role: 'user', content: 'Hello.' }] };

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function textOf(chunks, index = 0) {
  return chunks.flatMap((chunk) => chunk.choices)
    .filter((choice) => choice.index === index)
    .map((choice) => choice.delta.content ?? '').join('');
}

test('whole and streamed are the same', async () => {
  const whole = await real.chat.completions.create(asked);
  const chunks = await all(await real.chat.completions.create({ ...asked, stream: true }));
  assert.equal(textOf(chunks), whole.choices[0].message.content);
  assert.deepEqual(chunks[0].choices[0].delta, { role: 'assistant', content: '' });
  assert.equal(chunks[0].x_groq.seed, 11);
  assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
  assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
  assert.ok(chunks.slice(1, -1).every((chunk) => chunk.choices[0].delta.content));
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + 24);
});

test('include_usage adds one chunk', async () => {
  const options = { ...asked, stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await real.chat.completions.create(options));
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.deepEqual(chunks.at(-1).usage, chunks.at(-2).usage);
});

test('several choices', async () => {
  const whole = await real.chat.completions.create({ ...asked, n: 3 });
  const chunks = await all(await real.chat.completions.create({ ...asked, n: 3, stream: true }));
  for (const choice of whole.choices) {
    assert.equal(textOf(chunks, choice.index), choice.message.content);
  }
});

test('stop', async () => {
  const whole = (await real.chat.completions.create(asked)).choices[0].message.content;
  const stop = whole.slice(12, 16);
  const [choice] = (await real.chat.completions.create({ ...asked, stop: [stop] })).choices;
  assert.equal(choice.message.content, whole.slice(0, whole.indexOf(stop)));
  assert.equal(choice.finish_reason, 'stop');
});

test('log probabilities', async () => {
  const options = { ...asked, logprobs: true, top_logprobs: 2 };
  const [choice] = (await real.chat.completions.create(options)).choices;
  const said = choice.logprobs.content;
  assert.equal(said.map((entry) => entry.token).join(''), choice.message.content);
  assert.ok(said.every((entry) => entry.top_logprobs.length === 2 && entry.logprob <= 0));
});

const tool = {
  type: 'function',
  function: {
    name: 'get_time',
    parameters: {
      type: 'object', required: ['zone'], additionalProperties: false,
      properties: { zone: { type: 'integer', minimum: -12, maximum: 14 } },
    },
  },
};
const calling = {
  ...asked, max_tokens: 100, tools: [tool], parallel_tool_calls: false,
  tool_choice: { type: 'function', function: { name: 'get_time' } },
};

test('a call, and its result', async () => {
  const { message, finish_reason } = (await real.chat.completions.create(calling)).choices[0];
  assert.equal(finish_reason, 'tool_calls');
  const [call] = message.tool_calls;
  assert.ok(Math.abs(JSON.parse(call.function.arguments).zone) <= 14);
  const result = { role: 'tool', tool_call_id: call.id, content: 'noon' };
  const messages = [...asked.messages, message, result];
  const again = await real.chat.completions.create({ ...asked, messages, tools: [tool] });
  assert.ok(again.choices[0].finish_reason);
});

test('a call in a stream', async () => {
  const chunks = await all(await real.chat.completions.create({ ...calling, stream: true }));
  const calls = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  assert.equal(calls.length, 1);
  assert.equal(calls[0].index, 0);
  assert.equal(calls[0].function.name, 'get_time');
  assert.ok(JSON.parse(calls[0].function.arguments));
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'tool_calls');
});

test('JSON by a schema', async () => {
  const schema = {
    type: 'object', required: ['colour'], additionalProperties: false,
    properties: { colour: { enum: ['red', 'green'] } },
  };
  const response_format = { type: 'json_schema', json_schema: { name: 'c', schema, strict: true } };
  const answer = await real.chat.completions.create({ ...asked, response_format });
  assert.match(JSON.parse(answer.choices[0].message.content).colour, /^(red|green)$/);
});

test('models', async () => {
  const ids = (await fake.models.list()).data.map((model) => model.id);
  assert.ok(ids.includes('fake') && ids.includes('org/slash'));
  assert.equal((await fake.models.retrieve('org/slash')).id, 'org/slash');
});

test('headers', async () => {
  const options = { ...hello, model: 'generous' };
  const { data, response } = await fake.chat.completions.create(options).withResponse();
  assert.equal(response.headers.get('x-request-id'), data.x_groq.id);
  assert.equal(response.headers.get('x-ratelimit-limit-tokens'), '30000');
  assert.match(response.headers.get('x-ratelimit-reset-requests'), /^[\dhm.]+m?s$/);
});

function refusal(kind, status, code) {
  return (error) => {
    assert.equal(error.constructor, library[kind]);
    assert.equal(error.status, status);
    // Groq's client keeps the whole body, OpenAI's what is inside.
    assert.equal((error.error.error ?? error.error).code, code);
    assert.match(error.headers.get('x-request-id'), /^req_01/);
    return true;
  };
}

test('refusals', async () => {
  const create = (more, from = fake) => from.chat.completions.create({ ...hello, ...more });
  await assert.rejects(create({ temperature: 3 }), refusal('BadRequestError', 400, undefined));
  await assert.rejects(create({}, client(LOCKED)), refusal('AuthenticationError', 401, 'invalid_api_key'));
  const page = client(FAKE, { defaultHeaders: { origin: 'https://somewhere.example' } });
  await assert.rejects(create({}, page), refusal('PermissionDeniedError', 403, 'forbidden'));
  await assert.rejects(create({ model: 'x' }), refusal('NotFoundError', 404, 'model_not_found'));
  await assert.rejects(
    create({ model: 'tiny', max_tokens: 100 }), refusal('APIError', 413, 'rate_limit_exceeded'));
  assert.ok((await create({}, client(LOCKED, { apiKey: KEY }))).choices);
});

test('no room for flex', async () => {
  const running = await fake.chat.completions.create({ ...hello, max_tokens: 1000, stream: true });
  const flex = fake.chat.completions.create({ ...hello, service_tier: 'flex' });
  await assert.rejects(flex, refusal('APIError', 498, 'capacity_exceeded'));
  running.controller.abort();
});

test('a limit, and the client comes again by itself', async () => {
  const name = CLIENT === 'openai' ? 'openai-js' : 'groq-js';
  const metered = { ...hello, model: `metered-for-${name}`, max_tokens: 1 };
  const ask = () => fake.chat.completions.create(metered);
  const isAdmitted = () => ask().then(() => true, () => false);
  while (await isAdmitted());
  // Waited for, so that the next one has a whole second to wait.
  while (!(await isAdmitted()));
  await assert.rejects(ask(), refusal('RateLimitError', 429, 'rate_limit_exceeded'));
  const statuses = [];
  const counting = async (...given) => {
    const response = await fetch(...given);
    statuses.push(response.status);
    return response;
  };
  const patient = client(FAKE, { maxRetries: 2, fetch: counting });
  assert.ok((await patient.chat.completions.create(metered)).choices);
  assert.deepEqual(statuses, [429, 200]);
});

test('giving up', async () => {
  const impatient = client(FAKE, { timeout: 300 });
  const waiting = impatient.chat.completions.create({ ...hello, max_tokens: 2000 });
  await assert.rejects(waiting, library.APIConnectionTimeoutError);
  assert.ok((await fake.chat.completions.create(hello)).choices);
});

test('leaving in mid-stream', async () => {
  const stream = await fake.chat.completions.create({ ...hello, max_tokens: 2000, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  // There is room for one at a time: this would wait for the end of the other.
  const next = await fake.chat.completions.create(hello);
  assert.ok(next.usage.queue_time < 1);
});
