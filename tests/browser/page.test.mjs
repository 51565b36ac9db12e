// The web page in a real browser, as a person uses it.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { Server, freePort } from "./server.mjs";

const { chromium } = await import(process.env.PLAYWRIGHT);

/** Pictures for the README are written here, if it is set. */
const PICTURES = process.env.CHARLSTM_PICTURES;

/** A better model for the pictures. */
const EPOCHS = PICTURES ? 40 : 6;

/** Reached only if what a test waits for never happens. */
const LIMIT_MS = 300_000;

/** Length of a text that is interrupted: on a fast machine, still being generated
 * when the page shows its beginning. */
const LONG = 40_000;

/** So few texts at the same time that a queue forms. */
const MAX_BATCH = 2;

const REBINDING_NAME = "rebinding.test";

/** A text with a simple rule, which a small model learns quickly. */
const SENTENCES = [
  "The ship sailed north along the coast and the wind was fair. ",
  "In the evening the captain read the log and wrote a letter home. ",
  "The mate said that the weather would change before the morning. ",
  "Nobody on the ship had seen the island before, and nobody spoke.\n",
];
const CORPUS = Array.from({ length: 120 }, (_, n) => SENTENCES[(n * n + (n >> 2)) % 4]).join("");
const HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script><b>&amp;".repeat(60);

let browser, server, context, page;
/** What the page has reported as errors. */
let errors = [];
const hosts = new Set();

async function open(url, options = {}) {
  context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(LIMIT_MS);
  page = await context.newPage();
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (line) => line.type() === "error" && errors.push(line.text()));
  page.on("dialog", (dialog) => errors.push(`a dialog: ${dialog.message()}`));
  page.on("request", (request) => hosts.add(new URL(request.url()).host));
  await page.goto(url);
}

async function picture(name) {
  if (PICTURES) await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}

/** Scrolls to the progress of a training, below the header of the page. */
const showProgress = () => page.evaluate(() => {
  document.querySelector(".heading").scrollIntoView();
  scrollBy(0, -120);
});

const column = (name) => page.getByRole("article", { name });
const paper = (name = "Text") => page.getByRole("region", { name: `${name}: prompt and continuation` });
const view = (name) => page.getByRole("link", { name, exact: true }).click();

/** Starts a training on a text, in the view that is open. */
async function train(text, model, epochs, hiddenSize = 48) {
  const file = { name: `${model}.txt`, mimeType: "text/plain", buffer: Buffer.from(text) };
  await page.locator("input[type=file]").setInputFiles(file);
  assert.equal(await page.getByLabel("Name of the model").inputValue(), model);
  await page.getByLabel("Epochs", { exact: true }).first().fill(String(epochs));
  await page.getByLabel("Hidden size").fill(String(hiddenSize));
  await page.getByRole("button", { name: "Train" }).click();
}

const trainingState = (text) => page.getByRole("heading", { name: text, level: 3 }).waitFor();

/** Generates a beginning of `chars` characters with seed 7. */
async function generate(prompt, chars) {
  await page.getByLabel("Beginning of the text").fill(prompt);
  await page.getByLabel("Seed").fill("7");
  await page.getByLabel("Characters").fill(String(chars));
  await page.getByRole("button", { name: "Generate" }).click();
}

/** Returns the prompt and its continuation from the API, with the settings of `generate`. */
const textOfApi = (prompt, chars) => server.complete({
  model: "voyage", prompt, max_tokens: chars, seed: 7, top_k: 3, echo: true,
});

const end = (position) => page.getByText(new RegExp(`^${position} characters; `)).first();
const written = (position) => end(position).waitFor();

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", `--host-resolver-rules=MAP ${REBINDING_NAME} 127.0.0.1`],
  });
  server = await Server.start(["--max-batch", String(MAX_BATCH)]);
  await open(server.url);
});

after(async () => {
  await browser?.close();
  await server?.remove();
});

test("a text that is dropped names its model", async () => {
  await view("Train");
  const dataTransfer = await page.evaluateHandle(() => {
    const transfer = new DataTransfer();
    transfer.items.add(new File(["Once upon a time"], "Über Bücher (1).txt"));
    return transfer;
  });
  await page.locator(".drop").dispatchEvent("drop", { dataTransfer });
  await page.getByText("Über Bücher (1).txt").waitFor();
  await page.getByText("16 bytes").waitFor();
  assert.equal(await page.getByLabel("Name of the model").inputValue(), "Uber-Bucher-1");
  await page.reload();
});

test("a text is trained on, and its losses and samples are shown", async () => {
  await view("Train");
  await train(CORPUS, "voyage", EPOCHS, 192);
  await trainingState("voyage: finished");
  assert.equal(await page.locator(".epochs > li").count(), EPOCHS);
  assert.equal(await page.locator(".epochs .badge").count(), 1);
  assert.notEqual(await page.locator(".sample").first().innerText(), "");
  assert.equal(await page.locator(".chart canvas").count(), 1);
  const label = await page.locator(".chart").getAttribute("aria-label");
  assert.match(label, /nats .* bits\) per character/);
  await showProgress();
  await picture("train");
});

test("the curves are drawn again when the colours change", async () => {
  const dark = { accent: [126, 162, 255], second: [255, 157, 102] };
  // Counts as soon as the chart is drawn: a later update would hide an empty one.
  const counts = page.evaluate((colors) => new Promise((resolve) => {
    const count = ([red, green, blue]) => {
      const canvas = document.querySelector(".chart canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let pixels = 0;
      for (let at = 0; at < data.length; at += 4) {
        const differences = [data[at] - red, data[at + 1] - green, data[at + 2] - blue];
        if (data[at + 3] > 200 && differences.every((one) => Math.abs(one) < 8)) pixels++;
      }
      return pixels;
    };
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => {
      requestAnimationFrame(() => resolve(colors.map(count)));
    }, { once: true });
  }), Object.values(dark));
  await page.emulateMedia({ colorScheme: "dark" });
  const [accent, second] = await counts;
  assert.ok(accent > 100 && second > 100, `${accent} and ${second} pixels of the curves`);
  await page.emulateMedia({ colorScheme: "light" });
});

test("a text streams in, and is that of the API", async () => {
  await view("Write");
  await generate("The ship", 300);
  await written(308);
  assert.equal(await paper().textContent(), await textOfApi("The ship", 300));
});

test("a session is stopped, continued, and forked into two columns", async () => {
  await page.getByLabel("Characters").fill("1000000");
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByText("Generating with voyage@1").waitFor();
  const begun = (await paper().textContent()).length;
  await page.waitForFunction(
    (chars) => document.querySelector(".paper").textContent.length > chars + 50, begun);
  await page.getByRole("button", { name: "Stop" }).click();
  await page.getByText("Stopped.").waitFor();

  await page.getByRole("button", { name: "Fork" }).click();
  await column("Copy").waitFor();
  const shared = await paper("Original").textContent();
  assert.equal(await paper("Copy").textContent(), shared);
  for (const name of ["Original", "Copy"]) {
    await column(name).getByLabel("Characters").fill("200");
    await column(name).getByRole("button", { name: "Continue" }).click();
    await column(name).getByText(/characters per second/).waitFor();
  }
  const [original, copy] = [await paper("Original").textContent(), await paper("Copy").textContent()];
  assert.equal(original.length, shared.length + 200);
  assert.ok(original.startsWith(shared) && copy.startsWith(shared));
  assert.notEqual(original, copy, "the copy has a seed of its own");
  const all = await textOfApi("The ship", original.length - 8);
  assert.equal(original, all, "stopping and continuing loses and repeats nothing");
  await picture("fork");
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByRole("button", { name: "New text" }).click();
});

test("a text is scored, and each character is shaded by its surprise", async () => {
  await view("Score");
  await page.getByRole("textbox", { name: "Text", exact: true }).fill(
    "The ship sailed north along the coast and the zeppelin sang. ☃");
  await page.getByRole("button", { name: "Score" }).click();
  await page.getByText(/bits per character/).waitFor();
  const shades = page.locator(".scored span[title]");
  assert.equal(await shades.count(), 61);
  const bits = await shades.evaluateAll((all) => all.map((one) => parseFloat(one.title)));
  const mean = (part) => part.reduce((sum, value) => sum + value, 0) / part.length;
  assert.ok(mean(bits.slice(-21)) > mean(bits.slice(0, 39)), "what is new surprises more");
  await page.getByText(/[1-9] characters that the model does not know/).waitFor();
  await picture("score");
});

test("the operator sees load, models and sessions", async () => {
  await view("Server");
  await page.getByText(/^Version /).waitFor();
  await page.getByRole("cell", { name: "voyage@1" }).first().waitFor();
  const meter = (name, value) => page.waitForFunction(
    (expected) => document.querySelector(`meter[aria-label="${expected.name}"]`).value === expected.value,
    { name, value });
  await meter("Generating", 0);
  await meter("Queue", 0);
  const calls = new AbortController();
  const texts = Array.from({ length: MAX_BATCH + 1 }, async (_, index) => {
    const session = { model: "voyage", session_id: `load-${index}` };
    await server.complete({ ...session, prompt: "The ship", max_tokens: 1 });
    const fields = { ...session, prompt: "", max_tokens: 1_000_000, stream: true };
    const response = await server.request(fields, calls.signal);
    // A text that is not read would wait, and give up its place.
    await response.text();
  });
  await meter("Generating", MAX_BATCH);
  await meter("Queue", 1);
  await page.getByRole("row", { name: /^load-0 .* generating$/ }).waitFor();
  calls.abort();
  await Promise.allSettled(texts);
  await meter("Generating", 0);
});

test("a reload in the middle of a text continues it", async () => {
  await view("Write");
  await generate("The ship", LONG);
  await page.waitForFunction(() => document.querySelector(".paper").textContent.length > 300);
  await page.reload();
  await page.waitForFunction(
    (chars) => document.querySelector(".paper").textContent.length === chars, LONG + 8);
  assert.equal(await paper().textContent(), await textOfApi("The ship", LONG));
  await page.getByRole("button", { name: "New text" }).click();
});

test("a restart of the server in the middle of a text continues it", async () => {
  await generate("The ship", LONG);
  await page.waitForFunction(() => document.querySelector(".paper").textContent.length > 300);
  await server.end("SIGTERM");
  await server.launch();
  await page.waitForFunction(
    (chars) => document.querySelector(".paper").textContent.length === chars, LONG + 8);
  assert.equal(await paper().textContent(), await textOfApi("The ship", LONG));
  await page.getByRole("button", { name: "New text" }).click();
});

test("a crash of the server in the middle of a text and of a training loses neither", async () => {
  await view("Train");
  await train(CORPUS, "long", 5000);
  await trainingState("long: running");
  await page.locator(".epochs > li").first().waitFor();
  await view("Write");
  await column("Text").getByLabel("Model").selectOption("voyage");
  await generate("In the", LONG);
  await page.waitForFunction(() => document.querySelector(".paper").textContent.length > 300);
  await server.end("SIGKILL");
  // The connection may have held the rest of the text.
  await page.getByText("Trying again").or(end(LONG + 6)).first().waitFor();
  await server.launch();
  await written(LONG + 6);
  assert.equal(await paper().textContent(), await textOfApi("In the", LONG));

  await view("Train");
  await trainingState("long: interrupted");
  await page.getByRole("button", { name: "Resume" }).click();
  await trainingState("long: running");
  await page.getByRole("button", { name: "Cancel" }).click();
  await trainingState("long: cancelled");
  // What the browser has logged about the server that was down.
  errors = errors.filter((error) => !error.includes("ERR_"));
});

test("the text of a model never becomes markup", async () => {
  await train(HOSTILE, "hostile", 40);
  await trainingState("hostile: finished");
  assert.match(await page.locator(".sample").first().textContent(), /[<&]/);
  assert.equal(await page.locator(".sample *").count(), 0);
  await view("Write");
  await page.getByRole("button", { name: "New text" }).click();
  await column("Text").getByLabel("Model").selectOption("hostile");
  await generate("<img src=x onerror=", 400);
  await written(419);
  const text = await paper().textContent();
  assert.ok(text.startsWith("<img src=x onerror="), text);
  assert.equal(await paper().locator("img, script, b").count(), 0);
  await view("Score");
  await page.getByRole("region", { name: "Score" }).getByLabel("Model").selectOption("hostile");
  await page.getByRole("textbox", { name: "Text", exact: true }).fill("<img src=x onerror=alert(1)>");
  await page.getByRole("button", { name: "Score" }).click();
  await page.getByText(/bits per character/).waitFor();
  assert.equal(await page.locator(".scored img").count(), 0);
});

test("the page can be operated with the keyboard alone", async () => {
  await page.goto(`${server.url}/#write`);
  await page.reload();
  const focused = () => page.evaluate(() => document.activeElement?.textContent ?? "");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "Write");
  for (let presses = 0; (await focused()) !== "New text"; presses++) {
    assert.ok(presses < 20, "no way to the buttons");
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  const label = () => page.evaluate(() => document.activeElement?.labels?.[0].innerText ?? "");
  assert.match(await label(), /Beginning of the text/);
  await page.keyboard.type("<b>");
  await page.locator(".column button.primary:enabled").waitFor();
  await page.keyboard.press("Control+Enter");
  await page.getByText(/characters per second/).waitFor();
});

test("it fits a phone and follows the dark mode", async () => {
  await context.close();
  await open(server.url, { viewport: { width: 390, height: 844 }, colorScheme: "dark", isMobile: true });
  for (const name of ["Write", "Train", "Score", "Server"]) {
    await view(name);
    const overflow = await page.evaluate(
      () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(overflow <= 0, `${name} is ${overflow} pixels too wide`);
  }
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(ground, "rgb(18, 21, 27)");
  await view("Train");
  await page.locator(".pick select").selectOption({ index: 2 });
  await page.locator(".chart canvas").waitFor();
  await showProgress();
  await picture("phone");
  await context.close();
  await open(server.url);
});

test("no request went to another host, and the page reported no error", () => {
  assert.deepEqual([...hosts], [`127.0.0.1:${server.port}`]);
  assert.deepEqual(errors, []);
});

test("pages of other hosts cannot use the server", async () => {
  const calls = `
    const attempts = [
      fetch("${server.url}/v1/models"),
      fetch("${server.url}/v1/completions", { method: "POST", headers: { "content-type": "application/json" }, body: "{}" }),
    ];
    Promise.allSettled(attempts).then((all) => {
      document.title = all.map((one) => one.status).join();
    });`;
  const foreign = createServer((request, response) => {
    response.setHeader("content-type", request.url === "/calls.js" ? "text/javascript" : "text/html");
    response.end(request.url === "/calls.js" ? calls : `<script src="/calls.js"></script>
      <iframe src="${server.url}/"></iframe>
      <form method="post" enctype="text/plain" action="${server.url}/v1/completions">
        <input name='{"model":"' value='"}'><button>send</button></form>`);
  });
  const port = await freePort();
  await new Promise((resolve) => foreign.listen(port, "127.0.0.1", resolve));
  try {
    await page.goto(`http://127.0.0.1:${port}/`);
    await page.waitForFunction(() => document.title !== "");
    assert.equal(await page.title(), "rejected,rejected");
    const frame = page.frames().find((one) => one !== page.mainFrame());
    assert.equal(await frame.locator("#app").count(), 0, "the page is in a frame");
    const [sent] = await Promise.all([
      page.waitForResponse((response) => response.url().endsWith("/v1/completions") && response.request().method() === "POST"),
      page.getByRole("button", { name: "send" }).click(),
    ]);
    assert.equal(sent.status(), 403);
  } finally {
    foreign.closeAllConnections();
    foreign.close();
  }
  const rebound = await page.goto(`http://${REBINDING_NAME}:${server.port}/`);
  assert.equal(rebound.status(), 403);
});

test("with tokens, the page asks for one and keeps it in memory only", async () => {
  const folder = mkdtempSync(join(tmpdir(), "charlstm-token-"));
  writeFileSync(join(folder, "tokens"), "the-right-token\n", { mode: 0o600 });
  const guarded = await Server.start(["--auth-token-file", join(folder, "tokens")]);
  try {
    await page.goto(guarded.url);
    for (const token of ["a-wrong-token", "the-right-token"]) {
      await page.getByLabel("Access token").fill(token);
      await page.getByRole("button", { name: "Use token" }).click();
      if (token === "a-wrong-token") {
        await page.getByText("does not accept this token").waitFor();
      }
    }
    await view("Server");
    await page.getByText(/^Version /).waitFor();
    const stored = await page.evaluate(
      () => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));
    assert.ok(!stored.includes("the-right-token"), stored);
    await page.reload();
    await page.getByLabel("Access token").waitFor();
  } finally {
    await guarded.remove();
    rmSync(folder, { recursive: true });
  }
});
