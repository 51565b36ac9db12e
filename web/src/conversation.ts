// A session on the server and its text on the page. A call that breaks off is
// repeated with the version, precision and seed that the server reported and
// with the position where it began: the server then gives the same text.

import { create } from "@bufbuild/protobuf";

import {
  FinishReason,
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerationStarted,
} from "./gen/charlstm/v1/generation_pb";
import { generation, isConnectionLoss, isWorthRepeating, message, sessions, sleep } from "./rpc";

/** A part of a text: what a person typed, or what the model wrote. */
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

/** A call whose end has not been seen. */
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

interface Saved {
  id: string;
  parts: Part[];
  position: string;
  settings: Settings;
  call?: Call;
}

/** Delays between the attempts to reach the server again, in milliseconds. */
const RETRY_DELAYS = [250, 500, 1000, 2000, 2000, 3000, 3000, 5000, 5000, 5000, 5000, 5000];

/** Maximum time from one drawing of the text to the next. */
const PAINT_MS = 40;

export class Conversation {
  id: string;
  parts: Part[] = [];
  settings: Settings;
  position = 0n;
  /** What happens, for people. */
  status = "";
  error = "";
  private call?: Call;
  private abort?: AbortController;
  private listeners = new Set<() => void>();
  private isPainting = false;
  /** Whether the last part is what an unfinished call has written so far. */
  private isPartial = false;

  constructor(
    settings: Settings,
    private readonly key: string,
    id: string = newId(),
  ) {
    this.id = id;
    this.settings = settings;
  }

  /** Returns the conversation that this tab had under `key` before a reload. */
  static restore(key: string): Conversation | undefined {
    const text = sessionStorage.getItem(key);
    if (!text) return undefined;
    const saved = JSON.parse(text) as Saved;
    const conversation = new Conversation(saved.settings, key, saved.id);
    conversation.parts = saved.parts;
    conversation.position = BigInt(saved.position);
    conversation.call = saved.call;
    return conversation;
  }

  get isRunning(): boolean {
    return this.abort !== undefined;
  }

  get isEmpty(): boolean {
    return this.parts.length === 0;
  }

  /** Whether a reload interrupted a call. */
  get isInterrupted(): boolean {
    return this.call !== undefined && !this.isRunning;
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

  /** Adds a text of a person, and generates what follows. */
  async generate(prompt: string): Promise<void> {
    if (this.isRunning) return;
    const { settings } = this;
    const isNew = this.position === 0n;
    this.call = {
      model: isNew ? settings.model : "",
      prime: prompt,
      maxChars: settings.length,
      temperature: settings.temperature,
      topK: settings.topK,
      seed: settings.seed || (isNew ? newSeed() : undefined),
      position: this.position.toString(),
    };
    if (prompt) this.parts = [...this.parts, { from: "person", text: prompt }];
    await this.run();
  }

  /** Repeats the call that a reload interrupted. */
  async resume(): Promise<void> {
    if (this.isInterrupted) await this.run();
  }

  /** Ends the generation; the session stays at what was sent. */
  stop(): void {
    this.abort?.abort();
  }

  /** Copies the session. The copy gets a seed of its own, so that it differs. */
  async fork(key: string): Promise<Conversation> {
    const copy = new Conversation({ ...this.settings, seed: newSeed() }, key);
    await sessions.forkSession({ sessionId: this.id, newSessionId: copy.id });
    copy.parts = [...this.parts];
    copy.position = this.position;
    copy.status = `A copy at character ${this.position}; it has a seed of its own.`;
    copy.save();
    return copy;
  }

  /** Forgets the text, and deletes the session. */
  async discard(): Promise<void> {
    this.stop();
    sessionStorage.removeItem(this.key);
    const sessionId = this.id;
    this.id = newId();
    this.parts = [];
    this.position = 0n;
    this.call = undefined;
    this.status = this.error = "";
    this.changed();
    try {
      await sessions.deleteSession({ sessionId });
    } catch {
      // It was never stored, or is gone already.
    }
  }

  private async run(): Promise<void> {
    const abort = new AbortController();
    this.abort = abort;
    this.error = "";
    this.status = "Waiting for the server …";
    // What the call adds is drawn again if it is repeated.
    const before = this.parts.filter((part) => part.text);
    const last = before[before.length - 1];
    const base = last?.from === "model" && this.isPartial ? before.slice(0, -1) : before;
    try {
      for (let attempt = 0; ; attempt++) {
        try {
          await this.attempt(base, abort.signal);
          break;
        } catch (error) {
          const delay = RETRY_DELAYS[attempt];
          if (abort.signal.aborted || delay === undefined || !isWorthRepeating(error)) throw error;
          this.status = `${message(error)} Trying again …`;
          this.changed();
          await sleep(delay, abort.signal);
        }
      }
    } catch (error) {
      if (abort.signal.aborted) {
        this.status = "Stopping …";
        this.changed();
        await this.settle(base);
      } else {
        this.error = message(error);
        this.status = "";
        // A call that was rejected did not happen.
        if (!isConnectionLoss(error)) this.undo(base);
      }
    }
    this.abort = undefined;
    this.save();
    this.changed();
  }

  private async attempt(base: Part[], signal: AbortSignal): Promise<void> {
    let text = "";
    const show = (position: bigint) => {
      this.position = position;
      this.isPartial = true;
      this.parts = [...base, { from: "model", text }];
      this.paint();
    };
    const begin = performance.now();
    for await (const { event } of generation.generate(this.request(), { signal })) {
      switch (event.case) {
        case "started":
          this.started(event.value);
          break;
        case "text":
          text += event.value.text;
          show(event.value.position);
          break;
        case "finished": {
          const { reason, position, chars } = event.value;
          this.position = position;
          this.call = undefined;
          this.isPartial = false;
          const rate = Math.round((Number(chars) * 1000) / (performance.now() - begin));
          this.status =
            reason === FinishReason.SHUTDOWN
              ? "The server is shutting down; continue when it is back."
              : `${position} characters; ${rate.toLocaleString("en")} characters per second`;
          return;
        }
      }
    }
  }

  private request(maxChars?: number): GenerateRequest {
    const { call } = this;
    if (!call) throw new Error("no call");
    return create(GenerateRequestSchema, {
      model: call.model,
      prime: call.prime,
      maxChars: maxChars ?? call.maxChars,
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
  private started(started: GenerationStarted): void {
    if (!this.call) return;
    this.call.model = `${started.model}@${started.version}`;
    this.call.precision = started.precision;
    this.call.seed = started.seed.toString();
    this.status = `Writing with ${this.call.model}, seed ${started.seed} …`;
    this.save();
  }

  /** After a stop: makes the session and the page show the same text. */
  private async settle(base: Part[]): Promise<void> {
    const { call } = this;
    this.isPartial = false;
    if (!call) return;
    try {
      const session = await this.idleSession();
      const written = [...this.parts.slice(base.length).map((part) => part.text).join("")];
      const ahead = Number(this.position - session.position);
      if (ahead > 0) {
        const kept = written.slice(0, -ahead).join("");
        this.parts = kept ? [...base, { from: "model", text: kept }] : base;
        this.position = session.position;
      } else if (ahead < 0) {
        // The server has sent more than the page has read. The repeat of the
        // call ends where the page is.
        for await (const { event } of generation.generate(this.request(written.length))) {
          if (event.case === "finished") this.position = event.value.position;
        }
      }
      this.call = undefined;
    } catch {
      // A call that was stopped before its first character did not happen.
      this.undo(base);
    }
    this.status = "Stopped.";
  }

  private async idleSession(): Promise<{ position: bigint }> {
    for (;;) {
      const { session } = await sessions.getSession({ sessionId: this.id });
      if (session && !session.busy) return session;
      await sleep(50);
    }
  }

  private undo(base: Part[]): void {
    const call = this.call;
    this.call = undefined;
    this.isPartial = false;
    if (!call) return;
    this.position = BigInt(call.position);
    this.parts = base.slice(0, call.prime ? -1 : undefined);
  }

  private save(): void {
    if (this.isEmpty) return;
    const { id, parts, settings, call } = this;
    // What an unfinished call has written comes again when it is repeated.
    const kept = this.isPartial ? parts.slice(0, -1) : parts;
    const saved: Saved = { id, parts: kept, settings, call, position: this.position.toString() };
    sessionStorage.setItem(this.key, JSON.stringify(saved));
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

function newId(): string {
  return `page-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
}

function newSeed(): string {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
