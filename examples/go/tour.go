// Trains a model, generates in a session, reads the details of an error and cancels a
// call. docs/clients.md shows how to generate the package charlstm/v1. Usage:
//
//	tour 127.0.0.1:50051 book.txt MODEL
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	charlstm "charlstm/v1"
)

const chunkBytes = 64 * 1024

// bearerToken sends the access token with each call.
type bearerToken string

func (token bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

func (bearerToken) RequireTransportSecurity() bool { return false }

// dial connects with TLS if CHARLSTM_TLS_CA is set, which is the file of the
// certificate authority, and with the access token in CHARLSTM_TOKEN_FILE.
func dial(address string) (*grpc.ClientConn, error) {
	// WithTransportCredentials(insecure.NewCredentials()), from version 1.41 on.
	options := []grpc.DialOption{grpc.WithInsecure()}
	if authority := os.Getenv("CHARLSTM_TLS_CA"); authority != "" {
		transport, err := credentials.NewClientTLSFromFile(authority, "")
		if err != nil {
			return nil, err
		}
		options = []grpc.DialOption{grpc.WithTransportCredentials(transport)}
	}
	if file := os.Getenv("CHARLSTM_TOKEN_FILE"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		bearer := bearerToken(strings.TrimSpace(string(token)))
		options = append(options, grpc.WithPerRPCCredentials(bearer))
	}
	// grpc.NewClient, from version 1.63 on; Debian 12 has 1.33.
	return grpc.Dial(address, options...)
}

// train uploads the corpus, and prints the events of the training as they arrive.
func train(ctx context.Context, client charlstm.TrainingServiceClient, path, model string) error {
	call, err := client.Train(ctx)
	if err != nil {
		return err
	}
	corpus, err := os.Open(path)
	if err != nil {
		return err
	}
	defer corpus.Close()
	spec := &charlstm.TrainingSpec{
		Model:          model,
		HiddenSize:     proto.Uint32(16),
		NumLayers:      proto.Uint32(1),
		BatchSize:      proto.Uint32(4),
		SequenceLength: proto.Uint32(16),
		Epochs:         proto.Uint32(2),
	}
	first := &charlstm.TrainRequest{Payload: &charlstm.TrainRequest_Spec{Spec: spec}}
	if err := call.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		chunk := make([]byte, chunkBytes)
		count, err := corpus.Read(chunk)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		payload := &charlstm.TrainRequest_CorpusChunk{CorpusChunk: chunk[:count]}
		// After io.EOF, Recv returns the error of the call.
		if err := call.Send(&charlstm.TrainRequest{Payload: payload}); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if err := call.CloseSend(); err != nil {
		return err
	}
	for {
		event, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if epoch := event.GetEpoch(); epoch != nil {
			fmt.Printf("epoch %d: loss %.3f\n", epoch.Epoch, epoch.TrainLoss)
		} else if finished := event.GetFinished(); finished != nil {
			fmt.Printf("trained %s@%d\n", finished.Model, finished.Version)
		}
	}
}

// generate returns the generated text.
func generate(
	ctx context.Context, client charlstm.GenerationServiceClient, request *charlstm.GenerateRequest,
) (string, error) {
	call, err := client.Generate(ctx, request)
	if err != nil {
		return "", err
	}
	text := ""
	for {
		response, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return text, nil
		} else if err != nil {
			return text, err
		}
		text += response.GetText().GetText()
	}
}

// showError makes a call that fails, and prints the details of the error.
func showError(ctx context.Context, client charlstm.GenerationServiceClient) {
	_, err := generate(ctx, client, &charlstm.GenerateRequest{Model: "unknown", Prime: "a"})
	converted := status.Convert(err)
	for _, detail := range converted.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			fmt.Printf("error %s %s: %s\n", converted.Code(), info.Reason, converted.Message())
		}
	}
}

// cancelEarly cancels a long generation after 20 characters.
func cancelEarly(ctx context.Context, client charlstm.GenerationServiceClient, model, prime string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &charlstm.GenerateRequest{
		Model: model, Prime: prime, MaxChars: proto.Uint32(1_000_000),
	}
	call, err := client.Generate(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	for chars := 0; ; {
		response, err := call.Recv()
		if err != nil {
			fmt.Printf("stopped early with %s\n", status.Code(err))
			return
		}
		chars += utf8.RuneCountInString(response.GetText().GetText())
		if chars >= 20 {
			cancel()
		}
	}
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: tour ADDRESS CORPUS MODEL")
		os.Exit(2)
	}
	address, path, model := os.Args[1], os.Args[2], os.Args[3]
	connection, err := dial(address)
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx := context.Background()
	generation := charlstm.NewGenerationServiceClient(connection)
	if err := train(ctx, charlstm.NewTrainingServiceClient(connection), path, model); err != nil {
		log.Fatal(err)
	}
	corpus, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	prime := string(corpus[:10])
	text, err := generate(ctx, generation, &charlstm.GenerateRequest{
		Model: model, Prime: prime, MaxChars: proto.Uint32(40), SessionId: proto.String("go"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("generated %d characters: %q\n", utf8.RuneCountInString(text), text)
	// Continues the session.
	more, err := generate(ctx, generation, &charlstm.GenerateRequest{
		MaxChars: proto.Uint32(10), SessionId: proto.String("go"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("generated %d more\n", utf8.RuneCountInString(more))
	showError(ctx, generation)
	cancelEarly(ctx, generation, model, prime)
}
