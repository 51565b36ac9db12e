// The page: its views, and the prompt for the access token.

import { render } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";

import { message } from "./connection";
import type { Model } from "./gen/charlstm/v1/model_pb";
import { Operator } from "./operator";
import { models as modelService, onTokenNeeded, setToken } from "./rpc";
import { Score } from "./score";
import { Train } from "./train";
import { Write } from "./write";

const VIEWS = [
  ["write", "Write"],
  ["train", "Train"],
  ["score", "Score"],
  ["server", "Server"],
] as const;

/** Interval between two updates of the models, in milliseconds. */
const MODELS_MS = 5000;

function view(): string {
  const name = location.hash.slice(1);
  return VIEWS.some(([known]) => known === name) ? name : "write";
}

function App() {
  const [current, setCurrent] = useState(view);
  const [models, setModels] = useState<Model[]>([]);
  const [error, setError] = useState("");
  const [askToken, setAskToken] = useState(false);
  const [wasRejected, setRejected] = useState(false);
  /** Counts the tokens: a new one resets all views. */
  const [login, setLogin] = useState(0);

  const refresh = useCallback(async () => {
    try {
      setModels((await modelService.listModels({})).models);
      setError("");
    } catch (reason) {
      setError(message(reason));
    }
  }, []);
  useEffect(() => {
    const changed = () => setCurrent(view());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  useEffect(() => {
    onTokenNeeded((rejected) => {
      setRejected(rejected);
      setAskToken(true);
    });
    void refresh();
    const timer = setInterval(() => void refresh(), MODELS_MS);
    return () => clearInterval(timer);
  }, [login]);

  if (askToken) {
    return (
      <TokenPrompt
        wasRejected={wasRejected}
        onToken={(token) => {
          setToken(token);
          setAskToken(false);
          setLogin((count) => count + 1);
        }}
      />
    );
  }
  return (
    <>
      <header>
        <h1>
          <img src="icon.svg" alt="" width={28} height={28} /> charlstm
        </h1>
        <nav aria-label="Views">
          {VIEWS.map(([name, title]) => (
            <a key={name} href={`#${name}`} aria-current={name === current ? "page" : undefined}>
              {title}
            </a>
          ))}
        </nav>
      </header>
      <main key={login}>
        {error && <p role="alert" class="error">{error}</p>}
        {/* Hidden, and not removed: a text and its session stay. */}
        <div hidden={current !== "write"}><Write models={models} /></div>
        {current === "train" && <Train onModelsChanged={() => void refresh()} />}
        <div hidden={current !== "score"}><Score models={models} /></div>
        {current === "server" && <Operator models={models} />}
      </main>
    </>
  );
}

interface TokenPromptProps {
  wasRejected: boolean;
  onToken: (token: string) => void;
}

function TokenPrompt({ wasRejected, onToken }: TokenPromptProps) {
  const [token, setValue] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.focus(), []);
  return (
    <main class="login">
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          onToken(token);
        }}
      >
        <h1>charlstm</h1>
        <p>This server needs an access token. It is kept until the page is closed or reloaded.</p>
        {wasRejected && <p role="alert" class="error">The server does not accept this token.</p>}
        <label>
          Access token
          <input
            ref={input}
            type="password"
            autocomplete="off"
            required
            value={token}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        <div class="actions"><button type="submit" class="primary">Use token</button></div>
      </form>
    </main>
  );
}

const app = document.getElementById("app");
if (app) render(<App />, app);
