// The official TypeScript SDK, unmodified, drives a running Galley.
//
// GALLEY_TEST_URL and GALLEY_TEST_KEY say which. Its model is scripted: "call weather" makes it call the custom tool
// `weather` and then say what the tool said, "run" makes it ask for `bash`, and anything else is echoed.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import Anthropic, { toFile } from '@anthropic-ai/sdk';
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema';
import { accumulateManagedAgentsEvent } from '@anthropic-ai/sdk/lib/sessions/accumulate';

const client = new Anthropic({
  baseURL: process.env.GALLEY_TEST_URL,
  apiKey: process.env.GALLEY_TEST_KEY,
  timeout: 20_000,
});
const { agents, environments, sessions, files, models } = client.beta;

const WEATHER = {
  type: 'custom',
  name: 'weather',
  description: 'The weather in a city.',
  input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};
const said = (text) => ({ type: 'user.message', content: [{ type: 'text', text }] });
const unique = (name) => `${name} ${crypto.randomUUID()}`;

async function all(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

async function newSession({ tools = [], ...rest } = {}) {
  const agent = await agents.create({ name: unique('agent'), model: 'scripted-1', tools });
  const environment = await environments.create({ name: unique('environment') });
  return sessions.create({ agent: agent.id, environment_id: environment.id, ...rest });
}

test('agents: created, updated, versioned, listed, archived', async () => {
  const agent = await agents.create({ name: unique('one'), model: 'scripted-1', system: 'Be brief.' });
  assert.equal(agent.version, 1);
  const changed = await agents.update(agent.id, { version: 1, system: 'Be long.' });
  assert.equal(changed.version, 2);
  assert.equal((await agents.retrieve(agent.id, { version: 1 })).system, 'Be brief.');
  assert.deepEqual((await all(agents.versions.list(agent.id))).map((one) => one.version).sort(), [1, 2]);
  await assert.rejects(agents.update(agent.id, { version: 1, name: 'late' }), { status: 409 });
  const listed = await all(agents.list({ limit: 1, 'created_at[gte]': agent.created_at }));
  assert.ok(listed.some((one) => one.id === agent.id));
  assert.notEqual((await agents.archive(agent.id)).archived_at, null);
});

test('environments: created, updated, listed, archived, deleted', async () => {
  const name = unique('lab');
  const environment = await environments.create({
    name,
    config: { type: 'cloud', networking: { type: 'unrestricted' } },
    metadata: { team: 'a' },
  });
  assert.equal((await environments.update(environment.id, { metadata: { team: 'b' } })).metadata.team, 'b');
  assert.ok((await all(environments.list())).some((one) => one.id === environment.id));
  assert.notEqual((await environments.archive(environment.id)).archived_at, null);
  assert.equal((await environments.delete(environment.id)).type, 'environment_deleted');
  await assert.rejects(environments.retrieve(environment.id), Anthropic.NotFoundError);
});

test('sessions: created, updated, listed both ways, archived, deleted', async () => {
  const session = await newSession({ title: 'first', metadata: { k: 'v' } });
  assert.equal(session.status, 'idle');
  assert.equal((await sessions.update(session.id, { title: 'second' })).title, 'second');
  const page = await sessions.list({ limit: 1, statuses: ['idle'], agent_id: session.agent.id });
  assert.equal(page.data[0].id, session.id);
  assert.equal(page.prev_page, null);
  assert.equal((await sessions.archive(session.id)).status, 'terminated');
  assert.equal((await sessions.delete(session.id)).type, 'session_deleted');
  await assert.rejects(sessions.retrieve(session.id), Anthropic.NotFoundError);
});

test('a message is answered on a stream, previews first, and stands in the history', async () => {
  const session = await newSession();
  const stream = await sessions.events.stream(session.id, { event_deltas: ['agent.message', 'agent.thinking'] });
  await sessions.events.send(session.id, { events: [said('hello there')] });
  const seen = [];
  let preview;
  let shown;
  for await (const event of stream) {
    seen.push(event.type);
    if (event.type.startsWith('event_')) preview = shown = accumulateManagedAgentsEvent(preview, event);
    if (event.type === 'agent.message') preview = accumulateManagedAgentsEvent(preview, event);
    if (event.type === 'session.status_idle') break;
  }
  assert.ok(seen.indexOf('event_start') < seen.indexOf('agent.message'));
  assert.equal(preview.content[0].text, 'You said: hello there');
  assert.ok(preview.content[0].text.startsWith(shown.content[0]?.text ?? ''));
  const history = await all(sessions.events.list(session.id, { limit: 2 }));
  assert.deepEqual(
    history.map((event) => event.type),
    seen.filter((type) => !type.startsWith('event_') && type !== 'user.message').toSpliced(0, 0, 'user.message'),
  );
  const messages = await all(sessions.events.list(session.id, { types: ['agent.message'], order: 'desc' }));
  assert.equal(messages.length, 1);
});

test('the tool runner answers custom tools', async () => {
  const session = await newSession({ tools: [WEATHER], initial_events: [said('call weather')] });
  const weather = betaTool({
    name: 'weather',
    description: WEATHER.description,
    inputSchema: WEATHER.input_schema,
    run: ({ city }) => `rain in ${city}`,
  });
  const calls = [];
  for await (const call of sessions.events.toolRunner(session.id, { tools: [weather], maxIdleMs: 300 })) {
    calls.push([call.name, call.posted, call.isError]);
  }
  assert.deepEqual(calls, [['weather', true, false]]);
  const [message] = await all(sessions.events.list(session.id, { types: ['agent.message'] }));
  assert.equal(message.content[0].text, 'The tool said: rain in Paris');
});

test('a tool that asks first waits for the confirmation', async () => {
  const ask = { enabled: true, permission_policy: { type: 'always_ask' } };
  const session = await newSession({
    tools: [{ type: 'agent_toolset_20260401', default_config: ask }],
    initial_events: [said('run')],
  });
  const stream = await sessions.events.stream(session.id);
  const waiting = async () => (await all(sessions.events.list(session.id))).findLast((e) => e.type === 'session.status_idle');
  let idle = await waiting();
  for await (const event of stream) {
    if (idle) break;
    if (event.type === 'session.status_idle') idle = event;
    if (idle) break;
  }
  assert.equal(idle.stop_reason.type, 'requires_action');
  const [tool_use_id] = idle.stop_reason.event_ids;
  const again = await sessions.events.stream(session.id);
  await sessions.events.send(session.id, {
    events: [{ type: 'user.tool_confirmation', tool_use_id, result: 'deny', deny_message: 'not today' }],
  });
  for await (const event of again) if (event.type === 'session.status_idle') break;
  const [result] = await all(sessions.events.list(session.id, { types: ['agent.tool_result'] }));
  assert.equal(result.tool_use_id, tool_use_id);
  assert.equal(result.is_error, true);
});

test('files: uploaded, described, downloaded, listed, deleted', async () => {
  const file = await files.upload({
    file: await toFile(Buffer.from('a,b\n1,2\n'), 'sales.csv', { type: 'text/csv' }),
    expires_in_seconds: 3600,
  });
  assert.equal(file.filename, 'sales.csv');
  assert.notEqual(file.expires_at, null);
  assert.equal((await files.retrieveMetadata(file.id)).size_bytes, 8);
  assert.equal(await (await files.download(file.id)).text(), 'a,b\n1,2\n');
  assert.deepEqual((await all(files.list({ ids: [file.id] }))).map((one) => one.id), [file.id]);
  assert.equal((await files.delete(file.id)).type, 'file_deleted');
});

test('models are listed', async () => {
  const listed = await all(models.list());
  assert.ok(listed.length > 0);
  assert.equal((await models.retrieve(listed[0].id)).id, listed[0].id);
});

test('errors arrive as the SDK knows them, and are not tried again in vain', async () => {
  await assert.rejects(sessions.retrieve('sesn_none'), Anthropic.NotFoundError);
  await assert.rejects(agents.create({ name: 'x', model: 'scripted-1', systm: 'typo' }), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.match(error.message, /systm/);
    assert.match(error.requestID, /^req_/);
    return true;
  });
  const stranger = new Anthropic({ baseURL: client.baseURL, apiKey: 'not-the-key-of-this-server' });
  await assert.rejects(stranger.beta.agents.list(), Anthropic.AuthenticationError);
});
