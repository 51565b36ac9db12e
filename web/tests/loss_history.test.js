// What the chart and the list of epochs show of the events of a training.

import assert from "node:assert/strict";
import { test } from "node:test";

import { LossHistory } from "../src/loss_history.ts";

const STEPS_PER_EPOCH = 10n;

/** Returns a history of a training that has accepted its corpus. */
function accepted() {
  const history = new LossHistory();
  add(history, "accepted", { stepsPerEpoch: STEPS_PER_EPOCH });
  return history;
}

const add = (history, name, value) => history.add({ sequence: 0n, event: { case: name, value } });

function addEpoch(history, epoch, validationLoss, best) {
  const step = BigInt(epoch) * STEPS_PER_EPOCH;
  const loss = validationLoss;
  add(history, "step", { step, totalSteps: 100n, loss, etaSeconds: 1, charsPerSecond: 1 });
  add(history, "epoch", { epoch, step, trainLoss: loss, validationLoss, sample: "", best });
}

const epochs = (history) => history.epochs.map(({ epoch }) => epoch);

test("a rollback removes the epochs and steps after its checkpoint", () => {
  const history = accepted();
  addEpoch(history, 1, 3, true);
  addEpoch(history, 2, 2, true);
  addEpoch(history, 3, 1, true);
  add(history, "rolledBack", { step: 35n, checkpointStep: 25n, message: "the loss exploded" });
  assert.deepEqual(epochs(history), [1, 2]);
  assert.equal(history.best.epoch, 2, "the best of those that are left");
  const { x, step, validation, bestEpoch } = history.curves();
  assert.equal(bestEpoch, 2);
  assert.ok(x.every((at) => at <= 2.5), String(x));
  assert.deepEqual(validation.filter((loss) => loss !== null), [3, 2]);
  assert.deepEqual(step.filter((loss) => loss !== null), [3, 2]);
});

test("a resume keeps the epochs, which are not reported again", () => {
  const history = accepted();
  addEpoch(history, 1, 3, true);
  addEpoch(history, 2, 2, true);
  add(history, "finished", { state: 4 });
  add(history, "resumed", { step: 12n });
  assert.deepEqual(epochs(history), [1, 2]);
  assert.equal(history.finished, undefined);
  assert.deepEqual(history.curves().step.filter((loss) => loss !== null), [3]);
});

test("only the last epoch that was the best is the best", () => {
  const history = accepted();
  addEpoch(history, 1, 3, true);
  addEpoch(history, 2, 2, true);
  addEpoch(history, 3, 2.5, false);
  assert.equal(history.best.epoch, 2);
});
