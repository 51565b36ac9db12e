// Scoring: how well a model predicts a text, with each character shaded by its
// surprise.

import { useState } from "preact/hooks";

import { message } from "./connection";
import { UnknownCharacters } from "./gen/charlstm/v1/generation_pb";
import type { Model } from "./gen/charlstm/v1/model_pb";
import { generation } from "./rpc";

/** Maximum length of a text: each character is an element of the page. */
const MAX_CHARS = 20_000;

/** Bits of surprise per shade. */
const BITS_PER_SHADE = 1;
const SHADES = 10;

interface Result {
  text: string[];
  /** Surprise of each character but the first, in bits. */
  bits: number[];
  bitsPerChar: number;
  perplexity: number;
  unknownChars: number;
}

export function Score({ models }: { models: Model[] }) {
  const [chosen, setModel] = useState("");
  const [text, setText] = useState("");
  const [result, setResult] = useState<Result>();
  const [error, setError] = useState("");
  const [isBusy, setBusy] = useState(false);
  const model = chosen || models[0]?.name || "";

  const score = async (event: Event) => {
    event.preventDefault();
    setError("");
    setBusy(true);
    try {
      const scored = await generation.score({
        model,
        text,
        logprobs: true,
        // Keeps one value for each character.
        unknown: UnknownCharacters.REPLACE,
      });
      setResult({
        text: [...text],
        bits: scored.logprobs.map((value) => -value / Math.LN2),
        bitsPerChar: scored.bitsPerChar,
        perplexity: scored.perplexity,
        unknownChars: Number(scored.unknownChars),
      });
    } catch (reason) {
      setResult(undefined);
      setError(message(reason));
    }
    setBusy(false);
  };

  return (
    <section aria-labelledby="score-title">
      <h2 id="score-title">Score</h2>
      <form class="card" onSubmit={score}>
        <label>
          Text
          <textarea
            rows={6}
            required
            minLength={2}
            maxLength={MAX_CHARS}
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
        <div class="controls single">
          <label>
            Model
            <select value={model} onChange={(event) => setModel(event.currentTarget.value)}>
              {models.map(({ name, version }) => (
                <option key={name} value={name}>{`${name}@${version}`}</option>
              ))}
            </select>
          </label>
        </div>
        {error && <p role="alert" class="error">{error}</p>}
        <div class="actions">
          <button type="submit" class="primary" disabled={isBusy || models.length === 0}>Score</button>
        </div>
      </form>
      {result && <Scored result={result} />}
    </section>
  );
}

function Scored({ result }: { result: Result }) {
  const { text, bits, bitsPerChar, perplexity, unknownChars } = result;
  return (
    <article class="card" aria-label="Scored text">
      <p role="status">
        {bitsPerChar.toFixed(3)} bits per character; perplexity {perplexity.toFixed(1)}: as uncertain
        as a choice among {perplexity.toFixed(1)} equally probable characters.
        {unknownChars > 0 &&
          ` ${unknownChars} characters that the model does not know count as its most frequent one.`}
      </p>
      <div class="paper scored" tabIndex={0} role="region" aria-label="Text, shaded by surprise">
        {text.map((character, index) => {
          const surprise = bits[index - 1];
          if (surprise === undefined) return <span key={index}>{character}</span>;
          const shade = Math.min(SHADES - 1, Math.floor(surprise / BITS_PER_SHADE));
          return (
            <span key={index} class={`s${shade}`} title={`${surprise.toFixed(2)} bits`}>
              {character}
            </span>
          );
        })}
      </div>
      <p class="scale" aria-hidden="true">
        expected
        {Array.from({ length: SHADES }, (_, shade) => <span key={shade} class={`s${shade}`}>{shade}</span>)}
        bits or more: surprising
      </p>
    </article>
  );
}
