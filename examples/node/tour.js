// npm install @grpc/grpc-js @grpc/proto-loader
// node tour.js 127.0.0.1:50051 book.txt MODEL     (in the root of the checkout)
const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const files = ["training", "generation"].map((name) => `charlstm/v1/${name}.proto`);
// With `oneofs` each event tells in `event` which kind it is.
const options = { includeDirs: ["proto"], keepCase: true, longs: Number, enums: String, oneofs: true };
const { v1 } = grpc.loadPackageDefinition(loader.loadSync(files, options)).charlstm;

// What an error carries: a google.rpc.Status with a google.rpc.ErrorInfo in it.
const { Status: RpcStatus, ErrorInfo } = loader.fromJSON({
  nested: {
    Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
    Status: { fields: { details: { rule: "repeated", type: "Any", id: 3 } } },
    ErrorInfo: { fields: { reason: { type: "string", id: 1 } } },
  },
});

const [address, path, model] = process.argv.slice(2);
const credentials = grpc.credentials.createInsecure();
const trainings = new v1.TrainingService(address, credentials);
const generations = new v1.GenerationService(address, credentials);

/** Streams the corpus up while the events come down. */
async function train() {
  const call = trainings.Train();
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

/** Generates, and returns the text. */
async function write(request) {
  let written = "";
  for await (const { text } of generations.Generate(request)) written += text?.text ?? "";
  return written;
}

async function meetAnError() {
  try {
    await write({ model: "nobody", prime: "a" });
  } catch (error) {
    const [bytes] = error.metadata.get("grpc-status-details-bin");
    const info = RpcStatus.deserialize(bytes).details.find((detail) =>
      detail.type_url.endsWith("google.rpc.ErrorInfo"),
    );
    const { reason } = ErrorInfo.deserialize(info.value);
    console.log(`error ${grpc.status[error.code]} ${reason}: ${error.details}`);
  }
}

async function leaveMidway(prime) {
  const call = generations.Generate({ model, prime, max_chars: 1_000_000 });
  let chars = 0;
  try {
    for await (const { text } of call) {
      chars += text?.text.length ?? 0;
      if (chars >= 20) call.cancel();
    }
  } catch (error) {
    console.log(`left midway, as ${grpc.status[error.code]}`);
  }
}

async function main() {
  const prime = [...fs.readFileSync(path, "utf8").slice(0, 20)].slice(0, 10).join("");
  await train();
  const first = await write({ model, prime, max_chars: 40, session_id: "node" });
  console.log(`wrote ${[...first].length} characters: ${JSON.stringify(first)}`);
  const more = await write({ session_id: "node", max_chars: 10 }); // goes on where it stands
  console.log(`wrote ${[...more].length} more`);
  await meetAnError();
  await leaveMidway(prime);
}

main();
