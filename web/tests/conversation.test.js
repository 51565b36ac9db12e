// Conversations with a server that is interrupted: no text is lost, and none is
// shown twice.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";

import { Conversation } from "../src/conversation.ts";
import { FinishReason, GenerationService } from "../src/gen/charlstm/v1/generation_pb";
import { SessionService } from "../src/gen/charlstm/v1/session_pb";

/** What the model generates, whatever the prompt: character n of a session. */
const character = (n) => String.fromCharCode(97 + (n % 26));

/** A rejection with a reason, as the server sends it. */
function rejection(code, text) {
  const error = new ConnectError(text, code);
  error.details = [{ type: "google.rpc.ErrorInfo", value: new Uint8Array() }];
  return error;
}

/** A server with one session, which fails as the test says. */
class FakeServer {
  constructor() {
    /** Position of the session; undefined: there is none. */
    this.position = undefined;
    this.lastCallPosition = 0;
    this.calls = [];
    this.busyChecks = 0;
    /** Called with the number of the call and the characters sent; may throw. */
    this.before = () => {};
    this.reason = () => FinishReason.LENGTH;
    const server = this;
    const transport = createRouterTransport(({ service }) => {
      service(GenerationService, {
        async *generate(request, { signal }) {
          yield* server.generate(request, signal);
        },
      });
      service(SessionService, {
        getSession: () => server.session(),
        deleteSession: () => ({}),
        forkSession: () => ({}),
      });
    });
    this.services = {
      generation: createClient(GenerationService, transport),
      sessions: createClient(SessionService, transport),
    };
  }

  session() {
    this.before("getSession", 0);
    if (this.position === undefined) throw rejection(Code.NotFound, "unknown session");
    const busy = this.busyChecks-- > 0;
    return { session: { position: BigInt(this.position), busy } };
  }

  async *generate(request, signal) {
    const call = this.calls.push(request);
    this.before(call, -1);
    const begin = Number(request.expectedPosition);
    if (![this.position ?? 0, this.lastCallPosition].includes(begin)) {
      throw rejection(Code.FailedPrecondition, `the session is at ${this.position}`);
    }
    this.lastCallPosition = begin;
    yield { event: { case: "started", value: { model: "m", version: 1n, seed: 7n, position: BigInt(begin) } } };
    const start = begin + request.prime.length;
    let at = start;
    for (; at < start + request.maxChars; at++) {
      this.before(call, at - start);
      if (signal.aborted) return;
      this.position = Math.max(this.position ?? 0, at + 1);
      const value = { text: character(at), position: BigInt(at + 1) };
      yield { event: { case: "text", value } };
      if (this.reason(call, at + 1 - start) === FinishReason.SHUTDOWN) break;
    }
    const chars = at < start + request.maxChars ? at + 1 - start : request.maxChars;
    this.position = start + chars;
    const position = BigInt(this.position);
    const reason = this.reason(call, chars);
    yield { event: { case: "finished", value: { reason, position, chars: BigInt(chars) } } };
  }
}

const expected = (begin, count) => Array.from({ length: count }, (_, n) => character(begin + n)).join("");
const shown = (conversation) => conversation.parts.map(({ text }) => text).join("");
const lost = () => new ConnectError("no connection", Code.Unavailable);

/** Settings that generate `length` characters. */
const settings = (length) => ({ model: "m", temperature: 1, topK: 3, seed: "7", length });

let stored;
beforeEach((context) => {
  stored = new Map();
  globalThis.sessionStorage = {
    getItem: (key) => stored.get(key) ?? null,
    setItem: (key, value) => stored.set(key, value),
    removeItem: (key) => stored.delete(key),
  };
  // All waits end immediately.
  const real = globalThis.setTimeout;
  context.mock.method(globalThis, "setTimeout", (call) => real(call, 0));
});

/** Starts a conversation whose prompt is "ab". */
async function begin(server, chars) {
  const conversation = new Conversation(server.services, settings(chars), "key");
  conversation.setDraft("ab");
  await conversation.generate();
  return conversation;
}

/** Lets call 1, and with it all attempts until `isBack`, fail after 3 characters. */
function failAfterThree(server) {
  const state = { isBack: false };
  server.before = (call, chars) => {
    if (!state.isBack && (call !== 1 || chars >= 3)) throw lost();
  };
  return state;
}

test("a call is repeated until the server is back, and nothing is shown twice", async () => {
  const server = new FakeServer();
  const conversation = new Conversation(server.services, settings(10), "key");
  const lengths = [];
  server.before = (call, chars) => {
    lengths.push(shown(conversation).length);
    if (call < 5 && chars === call) throw lost();
  };
  conversation.setDraft("ab");
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, 10)}`);
  assert.deepEqual(lengths, lengths.toSorted((a, b) => a - b), "the text never becomes shorter");
  assert.equal(conversation.error, "");
  assert.ok(server.calls.slice(1).every(({ model, sampling }) => model === "m@1" && sampling.seed === 7n));
});

test("progress makes the attempts start from the first delay again", async () => {
  const server = new FakeServer();
  // One more character in every call: more failures than there are attempts.
  server.before = (call, chars) => {
    if (call <= 30 && chars >= call) throw lost();
  };
  const conversation = await begin(server, 40);
  assert.equal(shown(conversation), `ab${expected(2, 40)}`);
});

test("after the last attempt the text stays, and Continue generates the rest", async () => {
  const server = new FakeServer();
  const state = failAfterThree(server);
  const conversation = await begin(server, 10);
  assert.equal(conversation.isRunning, false);
  assert.equal(shown(conversation), `ab${expected(2, 3)}`);
  assert.match(conversation.error, /cannot be reached.*Continue/);

  const reloaded = Conversation.restore(server.services, "key");
  assert.equal(shown(reloaded), `ab${expected(2, 3)}`, "also after a reload");

  state.isBack = true;
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, 10)}`);
  assert.equal(conversation.position, 12n);
});

test("after the last attempt, a text that is added follows what is shown", async () => {
  const server = new FakeServer();
  const state = failAfterThree(server);
  const conversation = await begin(server, 10);
  state.isBack = true;
  conversation.setDraft("XY");
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, 3)}XY${expected(7, 10)}`);
});

test("a server that is at capacity or cannot store sessions is waited for", async () => {
  for (const code of [Code.ResourceExhausted, Code.Unavailable]) {
    const server = new FakeServer();
    server.before = (call, chars) => {
      if ((call === 1 && chars === 3) || call === 2) throw rejection(code, "wait");
    };
    const conversation = await begin(server, 10);
    assert.equal(shown(conversation), `ab${expected(2, 10)}`);
  }
});

test("a rejected prompt becomes the draft again", async () => {
  const server = new FakeServer();
  server.before = (call) => {
    if (call === 1) throw rejection(Code.InvalidArgument, "unknown character 'b'");
  };
  const conversation = await begin(server, 10);
  assert.equal(conversation.draft, "ab");
  assert.equal(shown(conversation), "");
  assert.equal(conversation.error, "unknown character 'b'");
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, 10)}`);
});

test("a text stays although its session no longer exists", async () => {
  const server = new FakeServer();
  server.before = (call, chars) => {
    if (call === 1 && chars === 3) throw lost();
    if (call === 2) throw rejection(Code.NotFound, "the session was evicted");
  };
  const conversation = await begin(server, 10);
  assert.equal(shown(conversation), `ab${expected(2, 3)}`);
  assert.equal(conversation.error, "the session was evicted");
});

test("a text continues after a clean shutdown of the server", async () => {
  const server = new FakeServer();
  server.reason = (call, chars) =>
    call === 1 && chars === 4 ? FinishReason.SHUTDOWN : FinishReason.LENGTH;
  const conversation = await begin(server, 10);
  assert.equal(shown(conversation), `ab${expected(2, 10)}`);
  assert.deepEqual(server.calls.map(({ prime, maxChars }) => [prime, maxChars]), [["ab", 10], ["", 6]]);
  assert.equal(server.calls[1].sampling.seed, undefined, "the random state continues");
});

/** Stops a conversation once it shows `count` characters. */
async function stopAt(server, conversation, count) {
  const { before } = server;
  server.before = (call, chars) => {
    before(call, chars);
    if (call === 1 && chars === count) conversation.stop();
  };
  conversation.setDraft("ab");
  await conversation.generate();
}

test("a stop leaves the session at what is shown", async () => {
  const server = new FakeServer();
  server.busyChecks = 2;
  const conversation = new Conversation(server.services, settings(1000), "key");
  await stopAt(server, conversation, 5);
  assert.equal(conversation.status, "Stopped.");
  const before = shown(conversation).length;
  assert.equal(Number(conversation.position), before);
  conversation.set({ length: 4 });
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, before + 4 - 2)}`);
});

test("a stop does not wait without end for a session that stays busy", async () => {
  const server = new FakeServer();
  server.busyChecks = Infinity;
  const conversation = new Conversation(server.services, settings(1000), "key");
  await stopAt(server, conversation, 5);
  assert.equal(conversation.isRunning, false);
  assert.match(conversation.error, /has not ended the stopped call/);
  const before = shown(conversation);
  assert.ok(before.length >= 5);

  server.busyChecks = 0;
  conversation.set({ length: 4 });
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, before.length + 4 - 2)}`);
});

test("a stop while the server cannot be reached keeps the text", async () => {
  const server = new FakeServer();
  let isDown = false;
  server.before = (call, chars) => {
    if (isDown) throw lost();
    isDown = call === 1 && chars === 5;
  };
  const conversation = new Conversation(server.services, settings(1000), "key");
  await stopAt(server, conversation, 5);
  const text = shown(conversation);
  assert.ok(text.length > 2, text);
  isDown = false;
  conversation.set({ length: 4 });
  await conversation.generate();
  assert.equal(shown(conversation), `ab${expected(2, text.length + 4 - 2)}`);
});
