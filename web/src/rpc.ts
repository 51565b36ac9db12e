// The gRPC-Web clients of the server that served this page, and the access
// token, which is kept in memory only.

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { GenerationService } from "./gen/charlstm/v1/generation_pb";
import { ModelService } from "./gen/charlstm/v1/model_pb";
import { ServerService } from "./gen/charlstm/v1/server_pb";
import { SessionService } from "./gen/charlstm/v1/session_pb";
import { TrainingService } from "./gen/charlstm/v1/training_pb";

let token = "";
let requestToken: (rejected: boolean) => void = () => {};

/** Sets the token of all later calls. */
export function setToken(value: string): void {
  token = value.trim();
}

/** Sets what happens when the server asks for a token. */
export function onTokenNeeded(handler: (rejected: boolean) => void): void {
  requestToken = handler;
}

const authenticate: Interceptor = (next) => async (request) => {
  const sent = token;
  if (sent) request.header.set("authorization", `Bearer ${sent}`);
  try {
    return await next(request);
  } catch (error) {
    if (ConnectError.from(error).code === Code.Unauthenticated && sent === token) {
      requestToken(sent !== "");
    }
    throw error;
  }
};

const transport = createGrpcWebTransport({
  baseUrl: location.origin,
  interceptors: [authenticate],
});

export const generation = createClient(GenerationService, transport);
export const models = createClient(ModelService, transport);
export const server = createClient(ServerService, transport);
export const sessions = createClient(SessionService, transport);
export const trainings = createClient(TrainingService, transport);
