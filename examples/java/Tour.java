// Trains a model, generates in a session, reads the details of an error and cancels a
// call. docs/clients.md shows how to compile it. Usage:
//   java Tour 127.0.0.1:50051 book.txt MODEL
import charlstm.v1.Generation.GenerateRequest;
import charlstm.v1.Generation.GenerateResponse;
import charlstm.v1.GenerationServiceGrpc;
import charlstm.v1.TrainingOuterClass.TrainRequest;
import charlstm.v1.TrainingOuterClass.TrainResponse;
import charlstm.v1.TrainingOuterClass.TrainingSpec;
import charlstm.v1.TrainingServiceGrpc;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Iterator;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;

public final class Tour {
    private static final int CHUNK_BYTES = 64 * 1024;

    /** Sends the access token with each call. */
    private static final class BearerToken extends CallCredentials {
        private static final Metadata.Key<String> KEY =
                Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
        private final String token;

        BearerToken(String token) {
            this.token = token;
        }

        @Override
        public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier applier) {
            Metadata headers = new Metadata();
            headers.put(KEY, "Bearer " + token);
            applier.apply(headers);
        }

        @Override
        public void thisUsesUnstableApi() {}
    }

    /** Uses TLS if CHARLSTM_TLS_CA is set, which is the file of the certificate authority. */
    private static ChannelCredentials transport() throws Exception {
        String authority = System.getenv("CHARLSTM_TLS_CA");
        if (authority == null) {
            return InsecureChannelCredentials.create();
        }
        return TlsChannelCredentials.newBuilder().trustManager(new File(authority)).build();
    }

    /** Uploads the corpus, and prints the events of the training as they arrive. */
    private static void train(
            TrainingServiceGrpc.TrainingServiceStub trainings, Path corpus, String model)
            throws Exception {
        CompletableFuture<Void> ended = new CompletableFuture<>();
        StreamObserver<TrainRequest> upload =
                trainings.train(
                        new StreamObserver<TrainResponse>() {
                            @Override
                            public void onNext(TrainResponse event) {
                                if (event.hasEpoch()) {
                                    System.out.printf(
                                            "epoch %d: loss %.3f%n",
                                            event.getEpoch().getEpoch(),
                                            event.getEpoch().getTrainLoss());
                                } else if (event.hasFinished()) {
                                    System.out.printf(
                                            "trained %s@%d%n",
                                            event.getFinished().getModel(),
                                            event.getFinished().getVersion());
                                }
                            }

                            @Override
                            public void onError(Throwable error) {
                                ended.completeExceptionally(error);
                            }

                            @Override
                            public void onCompleted() {
                                ended.complete(null);
                            }
                        });
        TrainingSpec spec =
                TrainingSpec.newBuilder()
                        .setModel(model)
                        .setHiddenSize(16)
                        .setNumLayers(1)
                        .setBatchSize(4)
                        .setSequenceLength(16)
                        .setEpochs(2)
                        .build();
        upload.onNext(TrainRequest.newBuilder().setSpec(spec).build());
        try (InputStream text = Files.newInputStream(corpus)) {
            byte[] chunk;
            while ((chunk = text.readNBytes(CHUNK_BYTES)).length > 0) {
                ByteString bytes = ByteString.copyFrom(chunk);
                upload.onNext(TrainRequest.newBuilder().setCorpusChunk(bytes).build());
            }
        }
        upload.onCompleted();
        ended.get();
    }

    /** Returns the generated text. */
    private static String generate(
            GenerationServiceGrpc.GenerationServiceBlockingStub generations,
            GenerateRequest request) {
        StringBuilder text = new StringBuilder();
        generations.generate(request).forEachRemaining(it -> text.append(it.getText().getText()));
        return text.toString();
    }

    /** Makes a call that fails, and prints the details of the error. */
    private static void showError(GenerationServiceGrpc.GenerationServiceBlockingStub generations)
            throws Exception {
        try {
            generate(
                    generations,
                    GenerateRequest.newBuilder().setModel("unknown").setPrime("a").build());
        } catch (StatusRuntimeException error) {
            for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
                if (detail.is(ErrorInfo.class)) {
                    System.out.printf(
                            "error %s %s: %s%n",
                            error.getStatus().getCode(),
                            detail.unpack(ErrorInfo.class).getReason(),
                            error.getStatus().getDescription());
                }
            }
        }
    }

    /** Cancels a long generation after 20 characters. */
    private static void cancelEarly(
            GenerationServiceGrpc.GenerationServiceBlockingStub generations,
            String model,
            String prime) {
        GenerateRequest request =
                GenerateRequest.newBuilder()
                        .setModel(model)
                        .setPrime(prime)
                        .setMaxChars(1_000_000)
                        .build();
        try (Context.CancellableContext context = Context.current().withCancellation()) {
            context.run(
                    () -> {
                        int chars = 0;
                        try {
                            Iterator<GenerateResponse> responses = generations.generate(request);
                            while (responses.hasNext()) {
                                chars += responses.next().getText().getText().length();
                                if (chars >= 20) {
                                    context.cancel(null);
                                }
                            }
                        } catch (StatusRuntimeException error) {
                            Status.Code code = error.getStatus().getCode();
                            System.out.printf("stopped early with %s%n", code);
                        }
                    });
        }
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 3) {
            System.err.println("usage: Tour ADDRESS CORPUS MODEL");
            System.exit(2);
        }
        Path corpus = Path.of(arguments[1]);
        String model = arguments[2];
        ManagedChannel channel = Grpc.newChannelBuilder(arguments[0], transport()).build();
        TrainingServiceGrpc.TrainingServiceStub trainings = TrainingServiceGrpc.newStub(channel);
        GenerationServiceGrpc.GenerationServiceBlockingStub generations =
                GenerationServiceGrpc.newBlockingStub(channel);
        String tokenFile = System.getenv("CHARLSTM_TOKEN_FILE");
        if (tokenFile != null) {
            String token = Files.readString(Path.of(tokenFile)).trim();
            trainings = trainings.withCallCredentials(new BearerToken(token));
            generations = generations.withCallCredentials(new BearerToken(token));
        }

        train(trainings, corpus, model);
        String prime = Files.readString(corpus).substring(0, 10);
        GenerateRequest first =
                GenerateRequest.newBuilder()
                        .setModel(model)
                        .setPrime(prime)
                        .setMaxChars(40)
                        .setSessionId("java")
                        .build();
        String text = generate(generations, first);
        int chars = text.codePointCount(0, text.length());
        System.out.printf("generated %d characters: \"%s\"%n", chars, text.replace("\n", "\\n"));
        // Continues the session.
        GenerateRequest more =
                GenerateRequest.newBuilder().setSessionId("java").setMaxChars(10).build();
        text = generate(generations, more);
        System.out.printf("generated %d more%n", text.codePointCount(0, text.length()));
        showError(generations);
        cancelEarly(generations, model, prime);
        channel.shutdownNow();
    }
}
