package tokenwire

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	pb "tokenwire/tokenwirepb"
)

func said(messages []*pb.ChatMessage) []string {
	var texts []string
	for _, message := range messages {
		texts = append(texts, message.Role+": "+MessageText(message))
	}
	return texts
}

func TestASessionRemembers(t *testing.T) {
	service, client := serve(t)
	base := &pb.ChatRequest{Conversation: Conversation(System("Be brief."))}
	chat := client.NewChat(base)
	if _, err := chat.Say(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	stream, err := chat.Stream(t.Context(), "two")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is read to its end already joins once
		if _, err := stream.Collect(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"system: Be brief.", "user: one", "assistant: an answer", "user: two", "assistant: an answer"}
	if got := said(chat.Messages()); !slices.Equal(got, want) {
		t.Errorf("session: %q", got)
	}
	sent := service.requests[1].(*pb.ChatRequest).Conversation.Messages
	if got := said(sent); !slices.Equal(got, want[:4]) {
		t.Errorf("second request: %q", got)
	}
	if len(base.Conversation.Messages) != 1 {
		t.Error("the base is not copied")
	}
}

func TestASessionForgetsWhatWasNotAnswered(t *testing.T) {
	service, client := serve(t, WithRetries(0))
	chat := client.NewChat(nil)
	service.failures = []error{failing(codes.Unavailable, "loading"), failing(codes.Unavailable, "loading")}
	if _, err := chat.Say(t.Context(), "one"); err == nil {
		t.Error("no error")
	}
	if _, err := chat.Stream(t.Context(), "two"); err == nil {
		t.Error("no error")
	}
	stream, err := chat.Stream(t.Context(), "three")
	if err != nil {
		t.Fatal(err)
	}
	for range stream.Deltas() {
		break
	}
	if len(chat.Messages()) != 0 {
		t.Errorf("session: %q", said(chat.Messages()))
	}
}
