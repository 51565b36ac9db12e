// Writing with a model: one or two columns, each a session.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";

import { message } from "./connection";
import { Conversation, type Services, type Settings } from "./conversation";
import type { Model } from "./gen/charlstm/v1/model_pb";
import { generation, sessions } from "./rpc";

const SERVICES: Services = { generation, sessions };

const KEYS = ["charlstm-column-1", "charlstm-column-2"] as const;

/** Distance from the end of a text at which its end counts as visible. */
const END_PX = 24;

/** Defaults of the command line. */
const DEFAULTS: Settings = { model: "", temperature: 1, topK: 3, seed: "", length: 400 };

export function Write({ models }: { models: Model[] }) {
  const [columns, setColumns] = useState<Conversation[]>(() => {
    const [first, second] = KEYS.map((key) => Conversation.restore(SERVICES, key));
    const main = first ?? new Conversation(SERVICES, { ...DEFAULTS }, KEYS[0]);
    return second ? [main, second] : [main];
  });
  const [error, setError] = useState("");

  useEffect(() => {
    for (const column of columns) void column.resume();
  }, []);
  useEffect(() => {
    const save = () => columns.forEach((column) => column.save());
    addEventListener("pagehide", save);
    return () => removeEventListener("pagehide", save);
  }, [columns]);

  const fork = async () => {
    const [first] = columns;
    if (!first) return;
    setError("");
    try {
      setColumns([first, await first.fork(KEYS[1])]);
    } catch (reason) {
      setError(message(reason));
    }
  };
  const close = () => {
    void columns[1]?.discard();
    setColumns(columns.slice(0, 1));
  };
  const restart = () => {
    const [first, ...others] = columns;
    void first?.discard();
    const next = new Conversation(SERVICES, { ...(first?.settings ?? DEFAULTS) }, KEYS[0]);
    setColumns([next, ...others]);
  };

  return (
    <section aria-labelledby="write-title">
      <h2 id="write-title">Write</h2>
      {models.length === 0 && (
        <p class="hint">
          There is no model yet. <a href="#train">Train one</a> on your own text.
        </p>
      )}
      {error && <p role="alert" class="error">{error}</p>}
      <div class={columns.length > 1 ? "columns two" : "columns"}>
        {columns.map((column, index) => (
          <Column
            key={KEYS[index]}
            name={columns.length > 1 ? (index === 0 ? "Original" : "Copy") : "Text"}
            column={column}
            models={models}
            onFork={columns.length === 1 ? fork : undefined}
            onRestart={index === 0 ? restart : undefined}
            onClose={index === 1 ? close : undefined}
          />
        ))}
      </div>
    </section>
  );
}

interface ColumnProps {
  name: string;
  column: Conversation;
  models: Model[];
  onFork?: () => void;
  onRestart?: () => void;
  onClose?: () => void;
}

function Column({ name, column, models, onFork, onRestart, onClose }: ColumnProps) {
  const [, redraw] = useReducer((count: number) => count + 1, 0);
  const beginning = useRef<HTMLTextAreaElement>(null);
  const paper = useRef<HTMLDivElement>(null);
  /** How far the text is scrolled, and whether it follows its end: until a
   * person scrolls up. */
  const scroll = useRef({ top: 0, follows: true });
  useEffect(() => column.subscribe(() => redraw(0)), [column]);
  useEffect(() => {
    if (!column.settings.model && models[0]) column.set({ model: models[0].name });
  }, [column, models]);
  useEffect(() => {
    const element = paper.current;
    if (element && scroll.current.follows) element.scrollTop = element.scrollHeight;
  });

  const { settings, isRunning, isEmpty, draft } = column;
  const canStart = !isRunning && models.length > 0 && (draft !== "" || !isEmpty);
  const submit = (event: Event) => {
    event.preventDefault();
    if (canStart) void column.generate();
  };

  return (
    <article class="card column" aria-label={name}>
      {onFork === undefined && <h3>{name}</h3>}
      <div
        class="paper"
        ref={paper}
        tabIndex={0}
        role="region"
        aria-label={`${name}: prompt and continuation`}
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          const isAtEnd = scrollHeight - scrollTop - clientHeight < END_PX;
          const isUp = scrollTop < scroll.current.top;
          const follows = isAtEnd || (scroll.current.follows && !isUp);
          scroll.current = { top: scrollTop, follows };
        }}
      >
        {isEmpty ? (
          <span class="placeholder">The text appears here.</span>
        ) : (
          column.parts.map((part, index) => (
            <span key={index} class={part.from}>{part.text}</span>
          ))
        )}
        {isRunning && <span class="caret" aria-hidden="true" />}
      </div>
      <p class="status" role="status">{column.status}</p>
      {column.error && <p role="alert" class="error">{column.error}</p>}
      <form onSubmit={submit}>
        <label>
          {isEmpty ? "Beginning of the text" : "Text to add (may be empty)"}
          <textarea
            ref={beginning}
            rows={2}
            value={draft}
            placeholder={isEmpty ? "Once upon a time" : ""}
            onInput={(event) => column.setDraft(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
            }}
          />
        </label>
        <div class="controls">
          <label>
            Model
            <select
              value={settings.model}
              disabled={!isEmpty}
              onChange={(event) => column.set({ model: event.currentTarget.value })}
            >
              {models.map((model) => (
                <option key={model.name} value={model.name}>{`${model.name}@${model.version}`}</option>
              ))}
            </select>
          </label>
          <Slider
            name="Temperature"
            value={settings.temperature}
            max={2}
            step={0.05}
            onChange={(temperature) => column.set({ temperature })}
          />
          <Slider
            name="Top-k"
            value={settings.topK}
            max={20}
            step={1}
            show={settings.topK === 0 ? "off" : undefined}
            onChange={(topK) => column.set({ topK })}
          />
          <label>
            Seed
            <input
              inputMode="numeric"
              pattern="[0-9]{1,19}"
              title="A whole number; empty: random"
              placeholder="random"
              value={settings.seed}
              onInput={(event) => column.set({ seed: event.currentTarget.value.trim() })}
            />
          </label>
          <label>
            Characters
            <input
              type="number"
              min={1}
              max={1000000}
              required
              value={settings.length}
              onInput={(event) => column.set({ length: event.currentTarget.valueAsNumber || 1 })}
            />
          </label>
        </div>
        <div class="actions">
          <button type="submit" class="primary" disabled={!canStart}>
            {isEmpty ? "Generate" : "Continue"}
          </button>
          <button type="button" disabled={!isRunning} onClick={() => column.stop()}>Stop</button>
          {onFork && (
            <button type="button" disabled={isEmpty || isRunning} onClick={onFork}>Fork</button>
          )}
          {onClose && <button type="button" onClick={onClose}>Close</button>}
          {onRestart && (
            <button
              type="button"
              disabled={isEmpty}
              onClick={() => {
                onRestart();
                // The button is disabled now, and would keep no focus.
                beginning.current?.focus();
              }}
            >
              New text
            </button>
          )}
        </div>
      </form>
    </article>
  );
}

interface SliderProps {
  name: string;
  value: number;
  max: number;
  step: number;
  show?: string;
  onChange: (value: number) => void;
}

function Slider({ name, value, max, step, show, onChange }: SliderProps) {
  return (
    <label>
      <span>{name} <output>{show ?? String(value)}</output></span>
      <input
        type="range"
        min={0}
        max={max}
        step={step}
        value={value}
        onInput={(event) => onChange(event.currentTarget.valueAsNumber)}
      />
    </label>
  );
}
