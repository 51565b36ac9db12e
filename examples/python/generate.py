# pip install grpcio grpcio-tools
# python generate.py 127.0.0.1:50051 MODEL "As a matter of fact,"     (in the root of the checkout)
import sys
import grpc

sys.path.append("proto")  # where the .proto files lie; no code needs to be generated first
protos, services = grpc.protos_and_services("charlstm/v1/generation.proto")
address, model, prime = sys.argv[1:]
generation = services.GenerationServiceStub(grpc.insecure_channel(address))
request = protos.GenerateRequest(model=model, prime=prime, max_chars=300, sampling={"top_k": 3})
for response in generation.Generate(request):
    print(response.text.text, end="", flush=True)
