// What an error of a call means, and waiting between attempts.

import { Code, ConnectError } from "@connectrpc/connect";

/** Codes of a call that ended without a status of the server. */
const LOSS_CODES = [Code.Unknown, Code.Unavailable, Code.Internal, Code.Aborted, Code.Canceled];

/** Codes of rejections that may not happen again: the server stops, the session
 * is still busy with the previous call, or the server is at capacity. */
const TEMPORARY_CODES = [Code.Unavailable, Code.Aborted, Code.ResourceExhausted];

/** A call that has to be made again, for a reason that the page has found. */
export class NotReady extends Error {}

/** Returns the text of an error, for people. */
export function message(error: unknown): string {
  if (error instanceof NotReady) return error.message;
  return isConnectionLoss(error)
    ? "The server cannot be reached."
    : ConnectError.from(error).rawMessage;
}

/**
 * Whether a call ended without a status of the server, so that its outcome is
 * not known. A status of the server has the reason in its details.
 */
export function isConnectionLoss(error: unknown): boolean {
  const { code, details } = ConnectError.from(error);
  return details.length === 0 && LOSS_CODES.includes(code);
}

/** Whether a call that can be repeated safely is worth repeating. */
export function isWorthRepeating(error: unknown): boolean {
  return isConnectionLoss(error) || TEMPORARY_CODES.includes(ConnectError.from(error).code);
}

/** Waits; returns earlier if `signal` is aborted. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
