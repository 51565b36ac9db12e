// The events of a training, as the page shows them.

import type { WatchTrainingResponse } from "./gen/charlstm/v1/training_pb";
import { State, type TrainingAccepted, type TrainingFinished } from "./gen/charlstm/v1/training_pb";

/** Maximum number of step losses that are drawn. */
const MAX_STEPS = 4000;

export interface Epoch {
  epoch: number;
  trainLoss: number;
  validationLoss?: number;
  sample: string;
  /** Whether it was the best one when it ended. */
  wasBest: boolean;
  /** Optimizer steps taken at its end. */
  step: bigint;
}

/** Points of the chart: epochs passed, and the losses there. */
export interface Curves {
  x: number[];
  step: (number | null)[];
  train: (number | null)[];
  validation: (number | null)[];
  bestEpoch?: number;
}

export class LossHistory {
  accepted?: TrainingAccepted;
  finished?: TrainingFinished;
  epochs: Epoch[] = [];
  /** What happened besides losses, for people. */
  notes: string[] = [];
  progress = 0;
  etaSeconds = 0;
  charsPerSecond = 0;
  isRunning = false;
  nextSequence = 0n;
  private steps: { x: number; loss: number }[] = [];

  add(response: WatchTrainingResponse): void {
    this.nextSequence = response.sequence + 1n;
    const { event } = response;
    switch (event.case) {
      case "accepted":
        this.accepted = event.value;
        break;
      case "step": {
        const { step, totalSteps, loss, etaSeconds, charsPerSecond } = event.value;
        this.isRunning = true;
        this.progress = Number(step) / Math.max(1, Number(totalSteps));
        this.etaSeconds = etaSeconds;
        this.charsPerSecond = charsPerSecond;
        this.steps.push({ x: this.epochsAt(step), loss });
        if (this.steps.length > MAX_STEPS) {
          this.steps = this.steps.filter((_, index) => index % 2 === 1);
        }
        break;
      }
      case "epoch": {
        const { epoch, trainLoss, validationLoss, sample, best: wasBest, step } = event.value;
        this.epochs = this.epochs.filter((earlier) => earlier.epoch < epoch);
        this.epochs.push({ epoch, trainLoss, validationLoss, sample, wasBest, step });
        break;
      }
      case "rolledBack": {
        const { checkpointStep, message } = event.value;
        this.dropStepsAfter(checkpointStep);
        // They are trained and reported again.
        this.epochs = this.epochs.filter((epoch) => epoch.step <= checkpointStep);
        this.notes.push(`Rolled back to step ${checkpointStep}: ${message}`);
        break;
      }
      case "resumed":
        // Its epochs stay: those that are trained again are not reported again.
        this.dropStepsAfter(event.value.step);
        this.finished = undefined;
        this.isRunning = false;
        this.notes.push(`Resumed at step ${event.value.step}.`);
        if (event.value.message !== "") this.notes.push(event.value.message);
        break;
      case "checkpointFailed":
        this.notes.push(`A checkpoint could not be saved: ${event.value.message}`);
        break;
      case "finished":
        this.finished = event.value;
        this.isRunning = false;
        if (event.value.state === State.SUCCEEDED) this.progress = 1;
        break;
    }
  }

  /** The epoch whose weights a model would have. */
  get best(): Epoch | undefined {
    return this.epochs.filter((epoch) => epoch.wasBest).at(-1);
  }

  private dropStepsAfter(step: bigint): void {
    const x = this.epochsAt(step);
    this.steps = this.steps.filter((point) => point.x <= x);
  }

  private epochsAt(step: bigint): number {
    return Number(step) / Math.max(1, Number(this.accepted?.stepsPerEpoch ?? 1n));
  }

  curves(): Curves {
    const points = new Map<number, { step?: number; train?: number; validation?: number }>();
    const at = (x: number) => {
      const point = points.get(x) ?? {};
      points.set(x, point);
      return point;
    };
    for (const { x, loss } of this.steps) at(x).step = loss;
    for (const { epoch, trainLoss, validationLoss } of this.epochs) {
      // The mean of an epoch belongs to its middle, the validation to its end.
      at(epoch - 0.5).train = trainLoss;
      if (validationLoss !== undefined) at(epoch).validation = validationLoss;
    }
    const x = [...points.keys()].sort((a, b) => a - b);
    const column = (name: "step" | "train" | "validation") =>
      x.map((value) => points.get(value)?.[name] ?? null);
    return {
      x,
      step: column("step"),
      train: column("train"),
      validation: column("validation"),
      bestEpoch: this.best?.epoch,
    };
  }
}
