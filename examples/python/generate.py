# Usage, in the root of the repository:
#   pip install grpcio grpcio-tools
#   python examples/python/generate.py 127.0.0.1:50051 MODEL "As a matter of fact,"
import sys
import grpc

sys.path.append("proto")  # folder of the .proto files; grpcio loads them without generated code
protos, services = grpc.protos_and_services("charlstm/v1/generation.proto")
if len(sys.argv) != 4:
    sys.exit("usage: generate.py ADDRESS MODEL PROMPT")
address, model, prompt = sys.argv[1:]
generation = services.GenerationServiceStub(grpc.insecure_channel(address))
request = protos.GenerateRequest(model=model, prime=prompt, max_chars=300, sampling={"top_k": 3})
for response in generation.Generate(request):
    print(response.text.text, end="", flush=True)
