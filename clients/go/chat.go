package tokenwire

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "tokenwire/tokenwirepb"
)

// ChatSession is a conversation that remembers. A question and its answer join it when the answer is complete: a turn
// that fails or is given up leaves it as it was. One turn at a time; not for several goroutines.
type ChatSession struct {
	client *Client
	base   *pb.ChatRequest
}

// NewChat begins a conversation. base may be nil, or have what all turns share: settings, tools, earlier messages such
// as the system's. It is copied.
func (c *Client) NewChat(base *pb.ChatRequest) *ChatSession {
	request := &pb.ChatRequest{}
	if base != nil {
		request = proto.CloneOf(base)
	}
	if request.Conversation == nil {
		request.Conversation = &pb.Conversation{}
	}
	return &ChatSession{client: c, base: request}
}

// Messages is the conversation so far.
func (s *ChatSession) Messages() []*pb.ChatMessage {
	return slices.Clone(s.base.Conversation.Messages)
}

// Say sends a message of the user and waits for the answer.
func (s *ChatSession) Say(ctx context.Context, text string, options ...grpc.CallOption) (*pb.ChatResponse, error) {
	question := User(text)
	answer, err := s.client.Chat(ctx, s.request(question), options...)
	if err != nil {
		return nil, err
	}
	if len(answer.Choices) == 0 {
		return nil, fault("the answer has no choice")
	}
	s.remember(question, answer.Choices[0].Message)
	return answer, nil
}

// Stream sends a message of the user and reads the answer piece by piece.
func (s *ChatSession) Stream(ctx context.Context, text string, options ...grpc.CallOption) (*Stream, error) {
	question := User(text)
	stream, err := s.client.ChatStream(ctx, s.request(question), options...)
	if err != nil {
		return nil, err
	}
	stream.completed = func(answer *pb.GenerateResponse) {
		s.remember(question, Assistant(answer.Sequences[0].Text))
	}
	return stream, nil
}

func (s *ChatSession) request(question *pb.ChatMessage) *pb.ChatRequest {
	request := proto.CloneOf(s.base)
	request.Conversation.Messages = append(request.Conversation.Messages, question)
	return request
}

func (s *ChatSession) remember(messages ...*pb.ChatMessage) {
	s.base.Conversation.Messages = append(s.base.Conversation.Messages, messages...)
}
