package tokenwire

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "tokenwire/tokenwirepb"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// fake answers with what it was told, in deltas of one character.
type fake struct {
	pb.UnimplementedGenerationServiceServer

	mutex    sync.Mutex
	failures []error
	answer   string
	// The stream holds after so many deltas, until its context ends.
	hold     int
	requests []proto.Message
	metadata []metadata.MD
	// Gets a value for each stream whose context ended before it did.
	cancelled chan struct{}
	// Breaks all connections.
	stop func()
}

// serve starts a fake and a client of it.
func serve(t testing.TB, options ...Option) (*fake, *Client) {
	t.Helper()
	service := &fake{answer: "an answer", hold: -1, cancelled: make(chan struct{}, 16)}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	service.stop = server.Stop
	pb.RegisterGenerationServiceServer(server, service)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	dial := WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	}))
	client, err := New("passthrough:///bufconn", append(options, dial)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return service, client
}

// failing is a status with details.
func failing(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	with, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return with.Err()
}

func retryIn(delay time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)}
}

func (f *fake) receive(ctx context.Context, request proto.Message) error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.requests = append(f.requests, request)
	md, _ := metadata.FromIncomingContext(ctx)
	f.metadata = append(f.metadata, md)
	if len(f.failures) == 0 {
		return nil
	}
	failure := f.failures[0]
	f.failures = f.failures[1:]
	return failure
}

func (f *fake) calls() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return len(f.requests)
}

func start() *pb.GenerationStart {
	return &pb.GenerationStart{RequestId: "request-7", GenerationConfig: &pb.GenerationConfig{}}
}

func finish() *pb.GenerationFinish {
	return &pb.GenerationFinish{Reason: pb.FinishReason_FINISH_REASON_EOS}
}

func (f *fake) sequence() *pb.GeneratedSequence {
	sequence := &pb.GeneratedSequence{Text: f.answer, Finish: finish()}
	for index := range []rune(f.answer) {
		sequence.TokenIds = append(sequence.TokenIds, int32(index))
	}
	return sequence
}

func (f *fake) Generate(ctx context.Context, request *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	if err := f.receive(ctx, request); err != nil {
		return nil, err
	}
	if f.hold >= 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &pb.GenerateResponse{Start: start(), Sequences: []*pb.GeneratedSequence{f.sequence()}}, nil
}

func (f *fake) GenerateStream(request *pb.GenerateRequest, call grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	return f.stream(call.Context(), request, func(start *pb.GenerationStart, delta *pb.GenerationDelta, finish *pb.GenerationFinish) error {
		response := &pb.GenerateStreamResponse{}
		switch {
		case start != nil:
			response.Event = &pb.GenerateStreamResponse_Start{Start: start}
		case delta != nil:
			response.Event = &pb.GenerateStreamResponse_Delta{Delta: delta}
		default:
			response.Event = &pb.GenerateStreamResponse_Finish{Finish: finish}
		}
		return call.Send(response)
	})
}

func (f *fake) Chat(ctx context.Context, request *pb.ChatRequest) (*pb.ChatResponse, error) {
	if err := f.receive(ctx, request); err != nil {
		return nil, err
	}
	choice := &pb.ChatChoice{Message: Assistant(f.answer), Sequence: f.sequence()}
	return &pb.ChatResponse{Start: start(), Choices: []*pb.ChatChoice{choice}}, nil
}

func (f *fake) ChatStream(request *pb.ChatRequest, call grpc.ServerStreamingServer[pb.ChatStreamResponse]) error {
	return f.stream(call.Context(), request, func(start *pb.GenerationStart, delta *pb.GenerationDelta, finish *pb.GenerationFinish) error {
		response := &pb.ChatStreamResponse{}
		switch {
		case start != nil:
			response.Event = &pb.ChatStreamResponse_Start{Start: start}
		case delta != nil:
			response.Event = &pb.ChatStreamResponse_Delta{Delta: delta}
		default:
			response.Event = &pb.ChatStreamResponse_Finish{Finish: finish}
		}
		return call.Send(response)
	})
}

func (f *fake) stream(
	ctx context.Context, request proto.Message, send func(*pb.GenerationStart, *pb.GenerationDelta, *pb.GenerationFinish) error,
) error {
	if err := f.receive(ctx, request); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil {
			f.cancelled <- struct{}{}
		}
	}()
	if err := send(start(), nil, nil); err != nil {
		return err
	}
	for index, letter := range []rune(f.answer) {
		if index == f.hold {
			<-ctx.Done()
			return ctx.Err()
		}
		if err := send(nil, &pb.GenerationDelta{Text: string(letter), TokenIds: []int32{int32(index)}}, nil); err != nil {
			return err
		}
	}
	return send(nil, nil, finish())
}
