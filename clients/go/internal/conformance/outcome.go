package main

import (
	"encoding/json"
	"errors"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"tokenwire"
	pb "tokenwire/tokenwirepb"
)

// outcome is what a step gave, in the form of CONFORMANCE.md.
type outcome map[string]any

// asJSON is a message in proto3 JSON, with the proto's names.
func asJSON(message proto.Message) any {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		panic(err)
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		panic(err)
	}
	return value
}

// fail notes how a call failed; nil is OK.
func (o outcome) fail(err error) {
	if err == nil {
		o["status"] = "OK"
		return
	}
	var failed *tokenwire.Error
	if !errors.As(err, &failed) {
		o["status"] = "not an Error of the client: " + err.Error()
		return
	}
	o["status"] = upperSnake(failed.Code)
	o["message"] = failed.Message
	o["reason"] = failed.Reason
	o["request_id"] = failed.RequestID
	o["no_answer"] = failed.NoAnswer
	info := map[string]any{}
	for name, value := range failed.Info {
		info[name] = value
	}
	o["info"] = info
	violations := []any{}
	for _, each := range failed.Violations {
		violations = append(violations, map[string]any{"field": each.Field, "description": each.Description})
	}
	o["violations"] = violations
	if delay, named := failed.RetryDelay(); named {
		o["retry_after_ms"] = float64(delay.Milliseconds())
	}
}

// upperSnake is a code as gRPC's documents write it.
func upperSnake(code codes.Code) string {
	if code == codes.Canceled {
		return "CANCELLED"
	}
	var name strings.Builder
	for index, letter := range code.String() {
		if index > 0 && unicode.IsUpper(letter) {
			name.WriteByte('_')
		}
		name.WriteRune(unicode.ToUpper(letter))
	}
	return name.String()
}

// answer notes the message that came, and what the form has beside it.
func (o outcome) answer(message proto.Message) {
	o["response"] = asJSON(message)
	switch message := message.(type) {
	case *pb.GenerateResponse:
		o.generation(message.Start, message.Sequences)
	case *pb.ChatResponse:
		var sequences []*pb.GeneratedSequence
		for _, choice := range message.Choices {
			sequences = append(sequences, choice.Sequence)
		}
		o.generation(message.Start, sequences)
		if len(message.Choices) > 0 {
			o["text"] = tokenwire.MessageText(message.Choices[0].Message)
		}
	case *pb.GenerateBatchResponse:
		items := at(o["response"], "items").([]any)
		for index, item := range message.Items {
			if failed := tokenwire.ItemError(item); failed != nil {
				inner := outcome{}
				inner.fail(failed)
				items[index] = map[string]any{"error": map[string]any(inner)}
			}
		}
	}
}

func (o outcome) generation(start *pb.GenerationStart, sequences []*pb.GeneratedSequence) {
	o["request_id"] = start.GetRequestId()
	texts, warnings := []any{}, []any{}
	for _, warning := range start.GetWarnings() {
		warnings = append(warnings, warning.Code)
	}
	for _, sequence := range sequences {
		texts = append(texts, sequence.Text)
		for _, warning := range sequence.GetFinish().GetWarnings() {
			warnings = append(warnings, warning.Code)
		}
	}
	o["texts"], o["warnings"] = texts, warnings
	if len(texts) > 0 {
		o["text"] = texts[0]
	}
}
