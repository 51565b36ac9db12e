// The operator's view: load, sessions and models of the server.

import { useEffect, useState } from "preact/hooks";

import { message } from "./connection";
import type { Model } from "./gen/charlstm/v1/model_pb";
import type { GetServerStatusResponse } from "./gen/charlstm/v1/server_pb";
import type { Session } from "./gen/charlstm/v1/session_pb";
import { server, sessions } from "./rpc";
import { duration } from "./time";

/** Interval between two updates, in milliseconds. */
const UPDATE_MS = 2000;

/** Number of sessions that are listed. */
const LISTED = 50;

export function Operator({ models }: { models: Model[] }) {
  const [status, setStatus] = useState<GetServerStatusResponse>();
  const [listed, setListed] = useState<Session[]>([]);
  const [total, setTotal] = useState(0);
  const [error, setError] = useState("");

  useEffect(() => {
    const update = async () => {
      try {
        setStatus(await server.getServerStatus({}));
        const page = await sessions.listSessions({ pageSize: LISTED });
        setListed(page.sessions);
        setTotal(Number(page.total));
        setError("");
      } catch (reason) {
        setError(message(reason));
      }
    };
    void update();
    const timer = setInterval(() => void update(), UPDATE_MS);
    return () => clearInterval(timer);
  }, []);

  return (
    <section aria-labelledby="server-title">
      <h2 id="server-title">Server</h2>
      {error && <p role="alert" class="error">{error}</p>}
      {status && (
        <>
          <div class="tiles">
            <Tile name="Generating" value={status.generationsRunning} max={status.maxBatch} />
            <Tile name="Queue" value={status.generationsQueued} max={status.maxQueue} />
            <Tile name="Sessions" value={Number(status.sessions)} max={Number(status.maxSessions)} />
            <Tile
              name="Trainings"
              value={status.trainingsRunning}
              note={`running; ${status.trainingsQueued.toLocaleString("en")} waiting`}
            />
          </div>
          <p class="hint">
            {`Version ${status.serverVersion} on ${status.device}, ${threads(status.threads)}, ` +
              `${status.precision}${status.kernels ? ` (${status.kernels})` : ""}; ` +
              `up for ${duration(Number(status.uptimeSeconds) * 1000)}`}
          </p>
        </>
      )}
      <h3>Models</h3>
      <Table
        head={["Model", "Parameters", "Layers", "Validation", "Created"]}
        rows={models.map((model) => [
          `${model.name}@${model.version}`,
          model.parameters.toLocaleString("en"),
          `${model.numLayers} × ${model.hiddenSize}`,
          model.validationLoss === undefined ? "" : `${model.validationLoss.toFixed(3)} nats`,
          new Date(Number(model.createdUnixMs)).toLocaleString(),
        ])}
      />
      <h3>Sessions</h3>
      <Table
        head={["Session", "Model", "Characters", "Idle", ""]}
        rows={listed.map((session) => [
          session.sessionId,
          `${session.model}@${session.version}`,
          session.position.toLocaleString("en"),
          duration(Number(session.idleMs)),
          session.busy ? "generating" : "",
        ])}
      />
      {total > listed.length && (
        <p class="hint">
          The {listed.length} most recently used of {total.toLocaleString("en")}.
        </p>
      )}
    </section>
  );
}

const threads = (count: number) => (count === 1 ? "1 thread" : `${count} threads`);

interface TileProps {
  name: string;
  value: number;
  max?: number;
  note?: string;
}

function Tile({ name, value, max, note }: TileProps) {
  return (
    <div class="card tile">
      <span>{name}</span>
      <strong>{value.toLocaleString("en")}</strong>
      {max !== undefined && (
        <>
          <meter min={0} max={max || 1} value={value} aria-label={name} />
          <span class="hint">of {max.toLocaleString("en")}</span>
        </>
      )}
      {note && <span class="hint">{note}</span>}
    </div>
  );
}

function Table({ head, rows }: { head: string[]; rows: string[][] }) {
  if (rows.length === 0) return <p class="hint">None.</p>;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={head[0]}>
      <table>
        <thead>
          <tr>{head.map((name) => <th key={name} scope="col">{name}</th>)}</tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row[0]}>{row.map((cell, index) => <td key={index}>{cell}</td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
