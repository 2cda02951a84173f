package tokenwire

import (
	"context"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "tokenwire/tokenwirepb"
)

// DefaultTarget is where `tokenwire serve` listens unless it is told otherwise.
const DefaultTarget = "127.0.0.1:50051"

// Client calls one server. It may be used by many goroutines at the same time.
//
// A unary call that fails with UNAVAILABLE, or with RESOURCE_EXHAUSTED and a delay that the server names, is sent again
// up to two times ([WithRetries]): generating has no effect but its answer. It waits as long as the server asks, does
// not where that is more than 30 s or beyond the deadline, and without such a word 0.1 s and more. Streams are never
// sent again, since what was read cannot be taken back.
type Client struct {
	target     string
	settings   settings
	connection *grpc.ClientConn
	generation pb.GenerationServiceClient
	tokenizer  pb.TokenizerServiceClient
	model      pb.ModelServiceClient
	health     healthpb.HealthClient
}

// New makes a client of the server at target: host:port, or any other gRPC target. It connects at the first call, so an
// error is one of the options, for example of a file that cannot be read.
func New(target string, options ...Option) (*Client, error) {
	client := &Client{target: target, settings: settings{keepalive: defaultKeepalive, retries: defaultRetries}}
	for _, option := range options {
		if err := option(&client.settings); err != nil {
			return nil, err
		}
	}
	connection, err := grpc.NewClient(target, client.settings.dialOptions()...)
	if err != nil {
		return nil, err
	}
	client.connection = connection
	client.generation = pb.NewGenerationServiceClient(connection)
	client.tokenizer = pb.NewTokenizerServiceClient(connection)
	client.model = pb.NewModelServiceClient(connection)
	client.health = healthpb.NewHealthClient(connection)
	return client, nil
}

// Close ends running calls and closes the connection.
func (c *Client) Close() error {
	return c.connection.Close()
}

// Generate continues a prompt and answers when it is complete.
func (c *Client) Generate(ctx context.Context, request *pb.GenerateRequest, options ...grpc.CallOption) (*pb.GenerateResponse, error) {
	return unary(ctx, c, c.generation.Generate, request, options)
}

// GenerateStream continues a prompt piece by piece. It returns when the server has accepted the request; what it
// refused is the error.
func (c *Client) GenerateStream(ctx context.Context, request *pb.GenerateRequest, options ...grpc.CallOption) (*Stream, error) {
	return open(ctx, c, c.generation.GenerateStream, request, options)
}

// GenerateBatch continues many prompts. Each item of the answer has a response or an [ItemError].
func (c *Client) GenerateBatch(ctx context.Context, request *pb.GenerateBatchRequest, options ...grpc.CallOption) (*pb.GenerateBatchResponse, error) {
	return unary(ctx, c, c.generation.GenerateBatch, request, options)
}

// Chat answers a conversation when the answer is complete.
func (c *Client) Chat(ctx context.Context, request *pb.ChatRequest, options ...grpc.CallOption) (*pb.ChatResponse, error) {
	return unary(ctx, c, c.generation.Chat, request, options)
}

// ChatStream answers a conversation piece by piece. It returns when the server has accepted the request; what it
// refused is the error.
func (c *Client) ChatStream(ctx context.Context, request *pb.ChatRequest, options ...grpc.CallOption) (*Stream, error) {
	return open(ctx, c, c.generation.ChatStream, request, options)
}

// Tokenize splits a text into tokens.
func (c *Client) Tokenize(ctx context.Context, request *pb.TokenizeRequest, options ...grpc.CallOption) (*pb.TokenizeResponse, error) {
	return unary(ctx, c, c.tokenizer.Tokenize, request, options)
}

// Detokenize joins token ids to a text.
func (c *Client) Detokenize(ctx context.Context, request *pb.DetokenizeRequest, options ...grpc.CallOption) (*pb.DetokenizeResponse, error) {
	return unary(ctx, c, c.tokenizer.Detokenize, request, options)
}

// RenderChat renders a conversation to the prompt that Chat would use.
func (c *Client) RenderChat(ctx context.Context, request *pb.RenderChatRequest, options ...grpc.CallOption) (*pb.RenderChatResponse, error) {
	return unary(ctx, c, c.tokenizer.RenderChat, request, options)
}

// GetModel describes the served model: identity, how it runs, its defaults and limits.
func (c *Client) GetModel(ctx context.Context, request *pb.GetModelRequest, options ...grpc.CallOption) (*pb.GetModelResponse, error) {
	return unary(ctx, c, c.model.GetModel, request, options)
}
