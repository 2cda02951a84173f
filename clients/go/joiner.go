package tokenwire

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "tokenwire/tokenwirepb"
)

// Event is one message of a stream: a *pb.GenerateStreamResponse or a *pb.ChatStreamResponse.
type Event interface {
	GetStart() *pb.GenerationStart
	GetDelta() *pb.GenerationDelta
	GetFinish() *pb.GenerationFinish
}

// Joiner puts the events of a stream together to the answer that the unary call gives. [Stream] does so itself; a
// Joiner is for those who read the generated stubs. The zero value is ready to use.
type Joiner struct {
	start     *pb.GenerationStart
	sequences []*joined
}

type joined struct {
	text     strings.Builder
	sequence pb.GeneratedSequence
}

// Add notes an event. The error is one of the server: an event that nobody asked for.
func (j *Joiner) Add(event Event) error {
	switch {
	case event.GetStart() != nil:
		j.start = event.GetStart()
		j.sequences = nil
		for range max(1, j.start.GetGenerationConfig().GetNumReturnSequences()) {
			j.sequences = append(j.sequences, &joined{})
		}
	case event.GetDelta() != nil:
		delta := event.GetDelta()
		of, err := j.of(delta.SequenceIndex)
		if err != nil {
			return err
		}
		of.text.WriteString(delta.Text)
		sequence := &of.sequence
		sequence.TokenIds = append(sequence.TokenIds, delta.TokenIds...)
		sequence.Logprobs = append(sequence.Logprobs, delta.Logprobs...)
		sequence.Tokens = append(sequence.Tokens, delta.Tokens...)
		sequence.PromptLogprobs = append(sequence.PromptLogprobs, delta.PromptLogprobs...)
		sequence.Explanations = append(sequence.Explanations, delta.Explanations...)
	case event.GetFinish() != nil:
		of, err := j.of(event.GetFinish().SequenceIndex)
		if err != nil {
			return err
		}
		of.sequence.Finish = event.GetFinish()
	}
	// Another kind is one of a newer server.
	return nil
}

func (j *Joiner) of(index int32) (*joined, error) {
	if index < 0 || int(index) >= len(j.sequences) {
		return nil, fmt.Errorf("the stream has an event of sequence %d, which nobody asked for", index)
	}
	return j.sequences[index], nil
}

// Start is the first event, or nil before it.
func (j *Joiner) Start() *pb.GenerationStart {
	return j.start
}

// Text is what has come of a sequence, by its index from 0.
func (j *Joiner) Text(index int) string {
	if index < 0 || index >= len(j.sequences) {
		return ""
	}
	return j.sequences[index].text.String()
}

// Complete tells whether every sequence has its finish.
func (j *Joiner) Complete() bool {
	return j.start != nil && !slices.ContainsFunc(j.sequences, func(each *joined) bool { return each.sequence.Finish == nil })
}

// Response is the answer so far; where it is not [Joiner.Complete], sequences lack their finish.
func (j *Joiner) Response() *pb.GenerateResponse {
	response := &pb.GenerateResponse{Start: j.start}
	for _, each := range j.sequences {
		sequence := proto.CloneOf(&each.sequence)
		sequence.Text = each.text.String()
		response.Sequences = append(response.Sequences, sequence)
	}
	return response
}
