// Usage, in the root of the repository:
//   npm install @grpc/grpc-js @grpc/proto-loader
//   node examples/node/tour.js 127.0.0.1:50051 book.txt MODEL
const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const files = ["training", "generation"].map((name) => `charlstm/v1/${name}.proto`);
// `oneofs` adds a property `event` with the name of the field that is set.
const options = { includeDirs: ["proto"], keepCase: true, longs: Number, enums: String, oneofs: true };
const { v1 } = grpc.loadPackageDefinition(loader.loadSync(files, options)).charlstm;

// Error details: a google.rpc.Status that contains a google.rpc.ErrorInfo.
const { Status: RpcStatus, ErrorInfo } = loader.fromJSON({
  nested: {
    Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
    Status: { fields: { details: { rule: "repeated", type: "Any", id: 3 } } },
    ErrorInfo: { fields: { reason: { type: "string", id: 1 } } },
  },
});

const [address, path, model] = process.argv.slice(2);
if (model === undefined) {
  console.error("usage: tour.js ADDRESS CORPUS MODEL");
  process.exit(2);
}
// TLS if CHARLSTM_TLS_CA is set, the file of the certificate authority.
const { CHARLSTM_TLS_CA: authority, CHARLSTM_TOKEN_FILE: tokenFile } = process.env;
const credentials = authority
  ? grpc.credentials.createSsl(fs.readFileSync(authority))
  : grpc.credentials.createInsecure();
// Sent with each call: the access token in CHARLSTM_TOKEN_FILE, if it is set.
const metadata = new grpc.Metadata();
if (tokenFile) metadata.set("authorization", `Bearer ${fs.readFileSync(tokenFile, "utf8").trim()}`);
const trainings = new v1.TrainingService(address, credentials);
const generations = new v1.GenerationService(address, credentials);

/** Uploads the corpus, and prints the events of the training as they arrive. */
async function train() {
  const call = trainings.Train(metadata);
  call.write({
    spec: { model, hidden_size: 16, num_layers: 1, batch_size: 4, sequence_length: 16, epochs: 2 },
  });
  const events = (async () => {
    for await (const { event, epoch, finished } of call) {
      if (event === "epoch") console.log(`epoch ${epoch.epoch}: loss ${epoch.train_loss.toFixed(3)}`);
      if (event === "finished") console.log(`trained ${finished.model}@${finished.version}`);
    }
  })();
  for await (const corpus_chunk of fs.createReadStream(path)) {
    if (!call.write({ corpus_chunk })) await new Promise((resolve) => call.once("drain", resolve));
  }
  call.end();
  await events;
}

/** Returns the generated text. */
async function generate(request) {
  let generated = "";
  for await (const { text } of generations.Generate(request, metadata)) generated += text?.text ?? "";
  return generated;
}

/** Makes a call that fails, and prints the details of the error. */
async function showError() {
  try {
    await generate({ model: "unknown", prime: "a" });
  } catch (error) {
    const [bytes] = error.metadata.get("grpc-status-details-bin");
    const info = RpcStatus.deserialize(bytes).details.find((detail) =>
      detail.type_url.endsWith("google.rpc.ErrorInfo"),
    );
    const { reason } = ErrorInfo.deserialize(info.value);
    console.log(`error ${grpc.status[error.code]} ${reason}: ${error.details}`);
  }
}

/** Cancels a long generation after 20 characters. */
async function cancelEarly(prime) {
  const call = generations.Generate({ model, prime, max_chars: 1_000_000 }, metadata);
  let chars = 0;
  try {
    for await (const { text } of call) {
      chars += text?.text.length ?? 0;
      if (chars >= 20) call.cancel();
    }
  } catch (error) {
    console.log(`stopped early with ${grpc.status[error.code]}`);
  }
}

async function main() {
  const prime = [...fs.readFileSync(path, "utf8").slice(0, 20)].slice(0, 10).join("");
  await train();
  const first = await generate({ model, prime, max_chars: 40, session_id: "node" });
  console.log(`generated ${[...first].length} characters: ${JSON.stringify(first)}`);
  const more = await generate({ session_id: "node", max_chars: 10 }); // continues the session
  console.log(`generated ${[...more].length} more`);
  await showError();
  await cancelEarly(prime);
}

main();
