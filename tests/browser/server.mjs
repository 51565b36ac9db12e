// The server under test, on a port that stays the same across restarts.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PROGRAM = process.env.CHARLSTM_SERVER;

/** Reached only if the server never becomes ready, or never ends. */
const LIMIT_MS = 60_000;

/** Fails if `promise` takes too long. */
function limited(promise, action) {
  let timer;
  const late = new Promise((_, reject) => {
    const error = new Error(`the server did not ${action} within ${LIMIT_MS} ms`);
    timer = setTimeout(() => reject(error), LIMIT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Returns a port that is free now. */
export function freePort() {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

export class Server {
  /** Starts a server with an empty data folder; waits until it is ready. */
  static async start(flags = []) {
    const server = new Server();
    server.folder = mkdtempSync(join(tmpdir(), "charlstm-browser-"));
    server.port = await freePort();
    server.url = `http://127.0.0.1:${server.port}`;
    server.flags = flags;
    await server.launch();
    return server;
  }

  async launch() {
    const listen = ["--listen", `127.0.0.1:${this.port}`];
    const data = ["--data-dir", join(this.folder, "data"), "--device", "cpu"];
    this.child = spawn(PROGRAM, [...listen, ...data, ...this.flags], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const isReady = new Promise((resolve, reject) => {
      this.child.stdout.once("data", resolve);
      this.child.once("error", reject);
      this.child.once("exit", (code) => reject(new Error(`the server ended with ${code}`)));
    });
    await limited(isReady, "become ready");
  }

  /** Ends it: by SIGKILL as a power failure would, by SIGTERM cleanly. */
  async end(signal) {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const hasEnded = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill(signal);
    await limited(hasEnded, `end after ${signal}`);
  }

  async remove() {
    await this.end("SIGKILL");
    rmSync(this.folder, { recursive: true });
  }

  /** Sends a request of the HTTP API. */
  request(fields, signal) {
    return fetch(`${this.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(fields),
      signal,
    });
  }

  /** Generates over the HTTP API, without the page, in a stream. */
  async complete(fields) {
    const response = await this.request({ ...fields, stream: true });
    const body = await response.text();
    if (!response.ok) throw new Error(body);
    const events = body.split("\n").filter((line) => line.startsWith("data: "));
    if (events.pop() !== "data: [DONE]") throw new Error("the stream has no end");
    return events.map((event) => JSON.parse(event.slice(6)).choices[0].text).join("");
  }
}
