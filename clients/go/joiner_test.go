package tokenwire

import (
	"testing"

	"google.golang.org/protobuf/proto"

	pb "tokenwire/tokenwirepb"
)

func delta(index int32, text string) *pb.GenerateStreamResponse {
	return &pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Delta{Delta: &pb.GenerationDelta{SequenceIndex: index, Text: text}}}
}

func TestSequencesAreKeptApart(t *testing.T) {
	config := &pb.GenerationConfig{NumReturnSequences: proto.Int32(2)}
	events := []Event{
		&pb.ChatStreamResponse{Event: &pb.ChatStreamResponse_Start{Start: &pb.GenerationStart{GenerationConfig: config}}},
		delta(0, "a"), delta(1, "x"), delta(0, "b"), delta(1, "y"),
		&pb.ChatStreamResponse{Event: &pb.ChatStreamResponse_Finish{Finish: &pb.GenerationFinish{SequenceIndex: 1}}},
		&pb.ChatStreamResponse{}, // of a kind that a newer server has
		&pb.ChatStreamResponse{Event: &pb.ChatStreamResponse_Finish{Finish: &pb.GenerationFinish{}}},
	}
	var joiner Joiner
	for index, event := range events {
		if joiner.Complete() {
			t.Errorf("complete before event %d", index)
		}
		if err := joiner.Add(event); err != nil {
			t.Fatal(err)
		}
	}
	answer := joiner.Response()
	if !joiner.Complete() || len(answer.Sequences) != 2 || answer.Sequences[0].Text != "ab" || answer.Sequences[1].Text != "xy" {
		t.Errorf("%v", answer)
	}
	if joiner.Text(1) != "xy" || joiner.Text(2) != "" {
		t.Error("texts")
	}
}

func TestEventsThatNobodyAskedForAreErrors(t *testing.T) {
	var joiner Joiner
	if joiner.Add(delta(0, "a")) == nil {
		t.Error("a delta before the start")
	}
	if err := joiner.Add(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Start{Start: start()}}); err != nil {
		t.Fatal(err)
	}
	for _, index := range []int32{-1, 1} {
		if joiner.Add(delta(index, "a")) == nil {
			t.Errorf("a delta of sequence %d", index)
		}
	}
}
