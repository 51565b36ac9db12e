#!/usr/bin/env python3
"""Receives traces and prints them, to show what --otlp-endpoint exports.

    python3 scripts/show_traces.py [HOST:PORT]

Listens on 127.0.0.1:4317. Requires the packages grpcio and opentelemetry-proto.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

SHOWN = ("charlstm.model", "charlstm.session", "charlstm.training", "charlstm.principal",
         "charlstm.chars", "charlstm.epoch", "charlstm.request_id")


class Printer(services.TraceServiceServicer):
    """Prints each span under its parent, with its duration."""

    def Export(self, request, context):
        spans = [span for resource in request.resource_spans for scope in resource.scope_spans
                 for span in scope.spans]
        ids = {span.span_id for span in spans}
        for span in spans:
            if span.parent_span_id not in ids:
                self.show(span, spans, 0)
        return messages.ExportTraceServiceResponse()

    def show(self, span, spans, depth):
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        values = {attribute.key: attribute.value for attribute in span.attributes}
        shown = [f"{key.removeprefix('charlstm.')}="
                 f"{values[key].string_value or values[key].int_value}"
                 for key in SHOWN if key in values]
        print(f"{'  ' * depth}{span.name:{50 - 2 * depth}} {milliseconds:10.1f} ms  {' '.join(shown)}",
              flush=True)
        children = (child for child in spans if child.parent_span_id == span.span_id)
        for child in sorted(children, key=lambda child: child.start_time_unix_nano):
            self.show(child, spans, depth + 1)


def main():
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:4317"
    server = grpc.server(ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(Printer(), server)
    server.add_insecure_port(address)
    server.start()
    print(f"waiting for traces on {address}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
