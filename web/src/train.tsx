// Training: starts a training on a text, and shows trainings while they run.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";

import { Chart } from "./chart";
import { isConnectionLoss, message, sleep } from "./connection";
import { State, type Training } from "./gen/charlstm/v1/training_pb";
import { LossHistory } from "./loss_history";
import { trainings } from "./rpc";
import { duration } from "./time";

/** The server accepts messages of 64 MiB; the rest is for the other fields. */
const MAX_TEXT_BYTES = 64 * 1024 * 1024 - 4096;

/** Interval between two updates of the list, in milliseconds. */
const LIST_MS = 3000;

const STATES: Record<State, string> = {
  [State.UNSPECIFIED]: "unknown",
  [State.RUNNING]: "running",
  [State.SUCCEEDED]: "finished",
  [State.CANCELLED]: "cancelled",
  [State.FAILED]: "failed",
  [State.INTERRUPTED]: "interrupted",
  [State.QUEUED]: "waiting",
};

const isActive = (state: State) => state === State.RUNNING || state === State.QUEUED;

export function Train({ onModelsChanged }: { onModelsChanged: () => void }) {
  const [list, setList] = useState<Training[]>([]);
  const [selected, setSelected] = useState<string>();
  const [error, setError] = useState("");

  const refresh = async () => {
    try {
      const { trainings: found } = await trainings.listTrainings({});
      setList(found);
      setSelected((current) => current ?? found[0]?.trainingId);
      setError("");
    } catch (reason) {
      setError(message(reason));
    }
  };
  useEffect(() => {
    void refresh();
    const timer = setInterval(() => void refresh(), LIST_MS);
    return () => clearInterval(timer);
  }, []);

  const started = (id: string) => {
    setSelected(id);
    void refresh();
  };
  const training = list.find((one) => one.trainingId === selected);
  return (
    <section aria-labelledby="train-title">
      <h2 id="train-title">Train</h2>
      <Upload onStarted={started} />
      {error && <p role="alert" class="error">{error}</p>}
      {list.length > 0 && (
        <label class="pick">
          Training
          <select value={selected} onChange={(event) => setSelected(event.currentTarget.value)}>
            {list.map((one) => (
              <option key={one.trainingId} value={one.trainingId}>
                {`${one.spec?.model ?? ""} · ${STATES[one.state]} · ${new Date(
                  Number(one.createdUnixMs),
                ).toLocaleString()}`}
              </option>
            ))}
          </select>
        </label>
      )}
      {training && (
        <Progress
          key={training.trainingId}
          training={training}
          onChanged={() => {
            void refresh();
            onModelsChanged();
          }}
        />
      )}
    </section>
  );
}

function Upload({ onStarted }: { onStarted: (id: string) => void }) {
  const [file, setFile] = useState<File>();
  const [model, setModel] = useState("");
  const [epochs, setEpochs] = useState("");
  const [hiddenSize, setHiddenSize] = useState("");
  const [error, setError] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [isOver, setOver] = useState(false);

  const choose = (chosen?: File | null) => {
    if (!chosen) return;
    setFile(chosen);
    setError("");
    // A name that the server accepts.
    const stem = chosen.name.replace(/\.[^.]*$/, "").normalize("NFKD").replace(/\p{M}/gu, "");
    const name = stem.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "");
    setModel((current) => current || name.slice(0, 64).replace(/-+$/, "") || "book");
  };
  const start = async (event: Event) => {
    event.preventDefault();
    if (!file) return setError("Choose a text first.");
    if (file.size > MAX_TEXT_BYTES) {
      return setError("The text has more than 64 MB: use `charlstm-client train`.");
    }
    setBusy(true);
    setError("");
    try {
      const spec = {
        model,
        epochs: epochs ? Number(epochs) : undefined,
        hiddenSize: hiddenSize ? Number(hiddenSize) : undefined,
      };
      const corpus = new Uint8Array(await file.arrayBuffer());
      const { trainingId } = await trainings.startTraining({ spec, corpus });
      onStarted(trainingId);
    } catch (reason) {
      setError(message(reason));
    }
    setBusy(false);
  };

  return (
    <form class="card" onSubmit={start}>
      <label
        class={isOver ? "drop over" : "drop"}
        onDragOver={(event) => {
          event.preventDefault();
          setOver(true);
        }}
        onDragLeave={() => setOver(false)}
        onDrop={(event) => {
          event.preventDefault();
          setOver(false);
          choose(event.dataTransfer?.files[0]);
        }}
      >
        <strong>{file ? file.name : "Drop a text here, or choose a file"}</strong>
        <span>
          {file
            ? `${file.size.toLocaleString("en")} bytes`
            : "Plain text in UTF-8, such as a book; the more, the better"}
        </span>
        <input type="file" onChange={(event) => choose(event.currentTarget.files?.[0])} />
      </label>
      <div class="controls">
        <label>
          Name of the model
          <input
            required
            pattern="[A-Za-z0-9][A-Za-z0-9._\-]{0,63}"
            title="Letters, digits, '.', '_' and '-'"
            value={model}
            onInput={(event) => setModel(event.currentTarget.value)}
          />
        </label>
        <label>
          Epochs
          <input
            type="number"
            min={1}
            max={100000}
            placeholder="automatic"
            value={epochs}
            onInput={(event) => setEpochs(event.currentTarget.value)}
          />
        </label>
        <label>
          Hidden size
          <input
            type="number"
            min={1}
            max={4096}
            placeholder="512"
            value={hiddenSize}
            onInput={(event) => setHiddenSize(event.currentTarget.value)}
          />
        </label>
      </div>
      <p class="hint">A smaller hidden size trains faster: 128 is good for a first try.</p>
      {error && <p role="alert" class="error">{error}</p>}
      <div class="actions">
        <button type="submit" class="primary" disabled={isBusy}>
          {isBusy ? "Uploading …" : "Train"}
        </button>
      </div>
    </form>
  );
}

function Progress({ training, onChanged }: { training: Training; onChanged: () => void }) {
  const id = training.trainingId;
  const history = useRef(new LossHistory());
  const [, redraw] = useReducer((count: number) => count + 1, 0);
  const [error, setError] = useState("");
  /** Counts the resumes: each of them starts another watch call. */
  const [run, setRun] = useState(0);

  useEffect(() => {
    const abort = new AbortController();
    void watch(history.current, id, abort.signal, () => redraw(0), setError).then(onChanged);
    return () => abort.abort();
  }, [id, run]);

  const act = async (call: Promise<unknown>) => {
    setError("");
    try {
      await call;
      onChanged();
    } catch (reason) {
      setError(message(reason));
    }
  };
  const { accepted, finished, epochs, notes, progress, isRunning } = history.current;
  const state = finished?.state ?? (isRunning ? State.RUNNING : training.state);
  const canResume = !isActive(state) && state !== State.SUCCEEDED && state !== State.UNSPECIFIED;
  const resume = async () => {
    await act(trainings.resumeTraining({ trainingId: id }));
    setRun((count) => count + 1);
  };
  const { best } = history.current;

  return (
    <article class="card" aria-label="Progress of the training">
      <div class="heading">
        <h3>{`${training.spec?.model ?? ""}: ${STATES[state]}`}</h3>
        <div class="actions">
          <button
            type="button"
            disabled={!isActive(state)}
            onClick={() => void act(trainings.cancelTraining({ trainingId: id }))}
          >
            Cancel
          </button>
          <button type="button" disabled={!canResume} onClick={() => void resume()}>Resume</button>
        </div>
      </div>
      <progress value={progress} max={1} aria-label="Progress">{`${Math.round(progress * 100)} %`}</progress>
      <p class="status" role="status">{describe(history.current, state)}</p>
      {finished?.message && <p class="error">{finished.message}</p>}
      {error && <p role="alert" class="error">{error}</p>}
      <div class="watch">
        <div class="curve">
          <Chart
            curves={history.current.curves()}
            label={`Loss over the epochs. ${lossText(best ?? epochs[epochs.length - 1])}`}
          />
          <ul class="legend" aria-hidden="true">
            <li class="step">training, each step</li>
            <li class="train">training, mean of an epoch</li>
            <li class="validation">validation{best && <> (best: epoch {best.epoch})</>}</li>
          </ul>
          {notes.map((note, index) => <p key={index} class="hint">{note}</p>)}
        </div>
        <ol class="epochs" aria-label="Epochs">
          {[...epochs].reverse().map((epoch) => (
            <li key={epoch.epoch} class={epoch === best ? "best" : ""}>
              <h4>
                Epoch {epoch.epoch}
                {accepted?.resolvedSpec?.epochs ? ` of ${accepted.resolvedSpec.epochs}` : ""}
                {epoch === best && <span class="badge">best</span>}
              </h4>
              <p class="hint">{lossText(epoch)}</p>
              {epoch.sample && <pre class="sample">{epoch.sample}</pre>}
            </li>
          ))}
        </ol>
      </div>
    </article>
  );
}

/** Follows a training to its end, also across broken connections. */
async function watch(
  history: LossHistory,
  trainingId: string,
  signal: AbortSignal,
  redraw: () => void,
  report: (error: string) => void,
): Promise<void> {
  let isDrawing = false;
  while (!signal.aborted) {
    try {
      const fromSequence = history.nextSequence;
      for await (const event of trainings.watchTraining({ trainingId, fromSequence }, { signal })) {
        history.add(event);
        if (!isDrawing) {
          isDrawing = true;
          setTimeout(() => {
            isDrawing = false;
            redraw();
          }, 100);
        }
      }
      report("");
      break;
    } catch (error) {
      if (signal.aborted) return;
      report(message(error));
      if (!isConnectionLoss(error)) break;
      await sleep(1000, signal);
    }
  }
  redraw();
}

function describe(history: LossHistory, state: State): string {
  const { accepted, etaSeconds, charsPerSecond, isRunning } = history;
  if (state === State.QUEUED) return "Waiting for another training to end.";
  const parts: string[] = [];
  if (accepted) {
    parts.push(
      `${accepted.corpusChars.toLocaleString("en")} characters, ${accepted.vocabularySize} distinct`,
      `${accepted.parameters.toLocaleString("en")} parameters on ${accepted.device}`,
    );
  }
  if (isRunning) {
    parts.push(
      `${Math.round(charsPerSecond).toLocaleString("en")} characters per second`,
      `about ${duration(Math.max(1, etaSeconds) * 1000)} left`,
    );
  }
  return parts.join("; ");
}

function lossText(epoch?: { trainLoss: number; validationLoss?: number }): string {
  if (!epoch) return "";
  const text = (loss: number) =>
    `${loss.toFixed(3)} nats (${(loss / Math.LN2).toFixed(2)} bits) per character`;
  const { trainLoss, validationLoss } = epoch;
  const train = `Training ${text(trainLoss)}`;
  return validationLoss === undefined ? train : `${train}; validation ${text(validationLoss)}`;
}
