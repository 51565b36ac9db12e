// A session on the server and its text on the page. A call that was interrupted
// is repeated with the version, precision and seed that the server reported and
// with the position where it began: the server then gives the same text.

import { create } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError } from "@connectrpc/connect";

import { NotReady, isWorthRepeating, message, sleep } from "./connection";
import {
  FinishReason,
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerationFinished,
  type GenerationService,
  type GenerationStarted,
} from "./gen/charlstm/v1/generation_pb";
import type { Session, SessionService } from "./gen/charlstm/v1/session_pb";

/** The services that a conversation calls. */
export interface Services {
  generation: Client<typeof GenerationService>;
  sessions: Client<typeof SessionService>;
}

/** A part of a text: what a person typed, or what the model generated. */
export interface Part {
  from: "person" | "model";
  text: string;
}

/** How the next characters are chosen. */
export interface Settings {
  model: string;
  temperature: number;
  topK: number;
  /** Empty: a new seed for a new session, otherwise that of the session. */
  seed: string;
  length: number;
}

/** A call that has not ended. */
interface Call {
  model: string;
  prime: string;
  maxChars: number;
  temperature: number;
  topK: number;
  seed?: string;
  precision?: string;
  position: string;
}

/** What a reload of the page keeps. */
interface Saved {
  id: string;
  parts: Part[];
  partial: string;
  draft: string;
  position: string;
  settings: Settings;
  call?: Call;
}

/** Delays between attempts without progress, in milliseconds. */
const RETRY_DELAYS = [250, 500, 1000, 2000, 2000, 3000, 3000, 5000, 5000, 5000, 5000, 5000];

/** Delays between checks whether the server has ended a stopped call, in
 * milliseconds: usually within one decode step. */
const BUSY_DELAYS = [50, 50, 100, 200, 400, 800, 1600, 3200, 5000];

/** Maximum time from one drawing of the text to the next, in milliseconds. */
const PAINT_MS = 40;

/** Codes of a rejection that a repeat does not change. */
const FINAL_CODES = [
  Code.InvalidArgument,
  Code.NotFound,
  Code.FailedPrecondition,
  Code.PermissionDenied,
  Code.Unimplemented,
];

export class Conversation {
  readonly id: string;
  settings: Settings;
  /** What a person has typed and not sent. */
  draft = "";
  /** Number of characters up to the end of what is shown. */
  position = 0n;
  /** What happens, for people. */
  status = "";
  error = "";
  /** The text before the result of the unfinished call. */
  private complete: Part[] = [];
  private call?: Call;
  /** What the unfinished call has generated so far. */
  private partial = "";
  private abort?: AbortController;
  private listeners = new Set<() => void>();
  private isPainting = false;
  private isDiscarded = false;

  constructor(
    private readonly services: Services,
    settings: Settings,
    private readonly key: string,
    id: string = newId(),
  ) {
    this.id = id;
    this.settings = settings;
  }

  /** Returns the conversation that this tab had under `key` before a reload. */
  static restore(services: Services, key: string): Conversation | undefined {
    const text = sessionStorage.getItem(key);
    if (!text) return undefined;
    const saved = JSON.parse(text) as Saved;
    const conversation = new Conversation(services, saved.settings, key, saved.id);
    conversation.complete = saved.parts;
    conversation.partial = saved.partial;
    conversation.draft = saved.draft;
    conversation.position = BigInt(saved.position);
    conversation.call = saved.call;
    return conversation;
  }

  /** The whole text. */
  get parts(): Part[] {
    return this.partial
      ? [...this.complete, { from: "model", text: this.partial }]
      : this.complete;
  }

  get isRunning(): boolean {
    return this.abort !== undefined;
  }

  get isEmpty(): boolean {
    return this.complete.length === 0 && this.partial === "";
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  set(settings: Partial<Settings>): void {
    this.settings = { ...this.settings, ...settings };
    this.save();
    this.changed();
  }

  setDraft(draft: string): void {
    this.draft = draft;
    this.changed();
  }

  /**
   * Adds the draft to the text, and generates what follows. An interrupted call
   * is finished first; without a draft, its rest is all that is generated.
   */
  async generate(): Promise<void> {
    if (this.isRunning) return;
    if (this.call && this.draft === "" && this.hasRest(this.call)) return this.resume();
    if (this.call && !(await this.endInterrupted(this.call))) return;
    const { settings, draft } = this;
    const isNew = this.position === 0n;
    this.draft = "";
    this.call = {
      model: isNew ? settings.model : "",
      prime: draft,
      maxChars: settings.length,
      temperature: settings.temperature,
      topK: settings.topK,
      seed: settings.seed || (isNew ? newSeed() : undefined),
      position: this.position.toString(),
    };
    if (draft) this.complete = [...this.complete, { from: "person", text: draft }];
    await this.run((signal) => this.repeat(signal));
  }

  /** Finishes an interrupted call, if there is one. */
  async resume(): Promise<void> {
    const { call } = this;
    if (!call || this.isRunning) return;
    await this.run((signal) =>
      this.hasRest(call) ? this.repeat(signal) : this.align(call, signal),
    );
  }

  /** Ends the generation; the session stays at what is shown. */
  stop(): void {
    this.abort?.abort();
  }

  /**
   * Copies the session. The copy gets a seed of its own, so that it differs.
   * Fails if an interrupted call cannot be finished, or the server rejects it.
   */
  async fork(key: string): Promise<Conversation> {
    if (this.call && !(await this.endInterrupted(this.call))) throw new NotReady(this.error);
    const copy = new Conversation(this.services, { ...this.settings, seed: newSeed() }, key);
    await this.services.sessions.forkSession({ sessionId: this.id, newSessionId: copy.id });
    copy.complete = [...this.complete];
    copy.position = this.position;
    copy.status = `A copy at character ${this.position}, with a seed of its own.`;
    copy.save();
    return copy;
  }

  /** Ends this conversation, and deletes its session. */
  async discard(): Promise<void> {
    this.isDiscarded = true;
    this.stop();
    sessionStorage.removeItem(this.key);
    try {
      await this.services.sessions.deleteSession({ sessionId: this.id });
    } catch {
      // It was never stored, or no longer exists.
    }
  }

  /** Keeps the text for a reload of the page. */
  save(): void {
    if (this.isDiscarded || (this.isEmpty && this.draft === "")) return;
    const saved: Saved = {
      id: this.id,
      parts: this.complete,
      partial: this.partial,
      draft: this.draft,
      position: this.position.toString(),
      settings: this.settings,
      call: this.call,
    };
    try {
      sessionStorage.setItem(this.key, JSON.stringify(saved));
    } catch {
      this.error = "The text is too long for the browser: a reload of the page loses it.";
    }
  }

  /** Ends an interrupted call at what is shown. Returns whether it has ended. */
  private async endInterrupted(call: Call): Promise<boolean> {
    call.maxChars = length(this.partial);
    await this.resume();
    return this.call === undefined;
  }

  /** Whether a call has not generated all that it was asked for. */
  private hasRest(call: Call): boolean {
    return call.maxChars > length(this.partial);
  }

  private async run(task: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const abort = new AbortController();
    this.abort = abort;
    this.error = "";
    this.status = "Waiting for the server …";
    this.changed();
    try {
      await task(abort.signal);
    } catch (error) {
      if (!abort.signal.aborted) this.failed(error);
      else if (this.call && !this.isDiscarded) await this.settle(this.call);
    }
    this.abort = undefined;
    this.save();
    this.changed();
  }

  /** Repeats the call until it has ended, or fails for good. */
  private async repeat(signal: AbortSignal): Promise<void> {
    for (let failures = 0; this.call; ) {
      const { position } = this;
      try {
        await this.attempt(this.call, signal);
      } catch (error) {
        if (this.position > position) failures = 0;
        const delay = RETRY_DELAYS[failures++];
        if (signal.aborted || delay === undefined || !isWorthRepeating(error)) throw error;
        this.status = `${message(error)} Trying again …`;
        this.changed();
        await sleep(delay, signal);
      }
    }
  }

  /** Makes the call once. It has ended if this succeeds. */
  private async attempt(call: Call, signal?: AbortSignal): Promise<void> {
    let text = "";
    const begin = performance.now();
    const responses = this.services.generation.generate(this.request(call), { signal });
    for await (const { event } of responses) {
      switch (event.case) {
        case "started":
          this.started(call, event.value);
          break;
        case "text":
          text += event.value.text;
          // A repeat first generates what is shown already.
          if (text.length > this.partial.length) {
            this.partial = text;
            this.position = event.value.position;
            this.paint();
          }
          break;
        case "finished":
          this.finished(call, text, event.value, performance.now() - begin);
          return;
      }
    }
    throw new NotReady("The server ended the text without a result.");
  }

  private request(call: Call): GenerateRequest {
    return create(GenerateRequestSchema, {
      model: call.model,
      prime: call.prime,
      maxChars: call.maxChars,
      sessionId: this.id,
      expectedPosition: BigInt(call.position),
      precision: call.precision,
      sampling: {
        temperature: call.temperature,
        topK: call.topK,
        seed: call.seed === undefined ? undefined : BigInt(call.seed),
      },
    });
  }

  /** Records what a repeat of the call needs. */
  private started(call: Call, started: GenerationStarted): void {
    call.model = `${started.model}@${started.version}`;
    call.precision = started.precision;
    call.seed = started.seed.toString();
    this.status = `Generating with ${call.model}, seed ${started.seed} …`;
    this.save();
  }

  private finished(call: Call, text: string, finished: GenerationFinished, ms: number): void {
    const { reason, position, chars } = finished;
    if (reason === FinishReason.SHUTDOWN && call.maxChars > length(text)) {
      this.continueAfterShutdown(call, text, position);
      throw new NotReady("The server is shutting down.");
    }
    this.partial = text;
    this.end(position);
    const rate = Math.round((Number(chars) * 1000) / ms);
    this.status =
      reason === FinishReason.CANCELLED
        ? "The session or its model was deleted."
        : `${position} characters; ${rate.toLocaleString("en")} characters per second`;
  }

  /**
   * Replaces the call by one for its rest, if the session is at the end of what
   * is shown. A repeat that was cut off before that does not move the session.
   */
  private continueAfterShutdown(call: Call, text: string, position: bigint): void {
    const end = BigInt(call.position) + BigInt(length(call.prime + text));
    if (text === "" || text.length < this.partial.length || position !== end) return;
    this.end(position);
    this.call = {
      ...call,
      prime: "",
      maxChars: call.maxChars - length(text),
      // The session keeps its random state.
      seed: undefined,
      position: position.toString(),
    };
  }

  /** Moves the result of the call into the text. */
  private end(position: bigint): void {
    this.complete = this.parts;
    this.partial = "";
    this.position = position;
    this.call = undefined;
    this.status = "";
  }

  /** Reports the error that ended a call. */
  private failed(error: unknown): void {
    this.status = "";
    this.error = message(error);
    if (!this.call) return;
    const isFinal = FINAL_CODES.includes(ConnectError.from(error).code);
    if (this.partial === "" && !isWorthRepeating(error)) {
      this.undo(this.call);
    } else if (isFinal) {
      // The session cannot give this text again: it stays as it is shown.
      this.end(this.position);
    } else {
      this.error += " The text is kept; Continue generates the rest.";
    }
  }

  /** After a stop: makes the session and the page have the same text. */
  private async settle(call: Call): Promise<void> {
    this.status = "Stopping …";
    this.changed();
    // Also after a reload, no more than this is generated.
    call.maxChars = length(this.partial);
    try {
      await this.align(call);
      this.status = "Stopped.";
    } catch (error) {
      this.status = "Stopped.";
      this.failed(error);
    }
  }

  /** Ends the call at what is shown, on the server too. */
  private async align(call: Call, signal?: AbortSignal): Promise<void> {
    const session = await this.idleSession(signal);
    const begin = BigInt(call.position);
    if (this.partial === "") {
      // A call that has not moved the session did not happen.
      if (!session || session.position === begin) return this.undo(call);
      // The server has generated more than the page has read.
      call.maxChars = Math.max(0, Number(session.position - begin) - length(call.prime));
    } else if (session?.position === this.position) {
      return this.end(this.position);
    }
    await this.attempt(call, signal);
  }

  /** Returns the session once no call runs in it; `undefined` if none exists. */
  private async idleSession(signal?: AbortSignal): Promise<Session | undefined> {
    for (const delay of BUSY_DELAYS) {
      try {
        const found = await this.services.sessions.getSession({ sessionId: this.id }, { signal });
        if (found.session && !found.session.busy) return found.session;
      } catch (error) {
        if (ConnectError.from(error).code === Code.NotFound) return undefined;
        throw error;
      }
      await sleep(delay, signal);
    }
    throw new NotReady("The server has not ended the stopped call yet.");
  }

  /** Takes a call back that did not happen; its prompt becomes the draft. */
  private undo(call: Call): void {
    this.call = undefined;
    this.partial = "";
    this.position = BigInt(call.position);
    this.status = "";
    if (call.prime) {
      this.complete = this.complete.slice(0, -1);
      this.draft = call.prime + this.draft;
    }
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }

  /** Draws the text soon, and not once per character. */
  private paint(): void {
    if (this.isPainting) return;
    this.isPainting = true;
    setTimeout(() => {
      this.isPainting = false;
      this.changed();
    }, PAINT_MS);
  }
}

/** Number of characters, as the server counts them. */
function length(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

function newId(): string {
  const random = [...crypto.getRandomValues(new Uint8Array(8))];
  return `page-${random.map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function newSeed(): string {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
