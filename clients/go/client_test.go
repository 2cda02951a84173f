package tokenwire

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "tokenwire/tokenwirepb"
)

func TestAStreamGivesTheUnaryAnswer(t *testing.T) {
	service, client := serve(t)
	service.answer = "zwölf 🙂"
	unary, err := client.Generate(t.Context(), &pb.GenerateRequest{Prompt: Text("x")})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := client.GenerateStream(t.Context(), &pb.GenerateRequest{Prompt: Text("x")})
	if err != nil {
		t.Fatal(err)
	}
	if stream.Start().RequestId != "request-7" {
		t.Errorf("start: %v", stream.Start())
	}
	var pieces []string
	for delta, err := range stream.Deltas() {
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, delta.Text)
	}
	if strings.Join(pieces, "|") != "z|w|ö|l|f| |🙂" {
		t.Errorf("deltas %q", pieces)
	}
	joined, err := stream.Collect()
	if err != nil || !proto.Equal(joined, unary) {
		t.Errorf("joined %v, unary %v, error %v", joined, unary, err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
}

func TestLeavingTheLoopStopsTheServer(t *testing.T) {
	service, client := serve(t)
	service.hold = 2
	stream, err := client.ChatStream(t.Context(), &pb.ChatRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range stream.Deltas() {
		break
	}
	select {
	case <-service.cancelled:
	case <-time.After(patience):
		t.Fatal("the server goes on")
	}
	if _, err := stream.Recv(); !errors.Is(err, context.Canceled) {
		t.Errorf("behind the loop: %v", err)
	}
}

func TestTheEndOfTheContextIsTheEndOfTheStream(t *testing.T) {
	service, client := serve(t)
	service.hold = 1
	for _, each := range []struct {
		end  func(context.Context) (context.Context, context.CancelFunc)
		code codes.Code
		is   error
	}{
		{func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 100*time.Millisecond)
		}, codes.DeadlineExceeded, context.DeadlineExceeded},
		{func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(100*time.Millisecond, cancel)
			return ctx, cancel
		}, codes.Canceled, context.Canceled},
	} {
		ctx, cancel := each.end(t.Context())
		stream, err := client.GenerateStream(ctx, &pb.GenerateRequest{})
		if err == nil {
			_, err = stream.Collect()
		}
		cancel()
		var failed *Error
		if !errors.As(err, &failed) || failed.Code != each.code || !errors.Is(err, each.is) {
			t.Errorf("%v: got %v", each.code, err)
		}
	}
}

func TestAnErrorHasWhatTheServerSaid(t *testing.T) {
	service, client := serve(t)
	failure := failing(codes.InvalidArgument, "2 fields break rules",
		&errdetails.ErrorInfo{Reason: "INVALID_REQUEST", Metadata: map[string]string{"request_id": "r", "violation_count": "2"}},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "generation_config.top_p", Description: "must be at most 1, got 2"}, {Field: "prompt", Description: "is required"}}},
		retryIn(1500*time.Millisecond))
	service.failures = []error{failure, failure}
	_, unary := client.Generate(t.Context(), &pb.GenerateRequest{})
	_, stream := client.GenerateStream(t.Context(), &pb.GenerateRequest{})
	for _, err := range []error{unary, stream} {
		var failed *Error
		if !errors.As(err, &failed) {
			t.Fatalf("%v is no Error", err)
		}
		delay, named := failed.RetryDelay()
		if failed.Code != codes.InvalidArgument || failed.Reason != "INVALID_REQUEST" || failed.RequestID != "r" ||
			failed.Info["violation_count"] != "2" || delay != 1500*time.Millisecond || !named || failed.NoAnswer {
			t.Errorf("%+v", failed)
		}
		if len(failed.Violations) != 2 || failed.Violations[0].String() != "generation_config.top_p: must be at most 1, got 2" {
			t.Errorf("violations %v", failed.Violations)
		}
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "2 fields break rules") {
			t.Errorf("status %v, text %q", status.Code(err), err)
		}
	}
}

func TestAConnectionThatBreaksDuringTheAnswerSaysSo(t *testing.T) {
	service, client := serve(t)
	service.hold = 1
	stream, err := client.ChatStream(t.Context(), &pb.ChatRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	service.stop()
	_, err = stream.Recv()
	var failed *Error
	if !errors.As(err, &failed) || !failed.NoAnswer || !strings.Contains(failed.Message, "broke during the answer") {
		t.Errorf("got %v", err)
	}
}

func TestTextThatIsNoUnicodeIsABadRequest(t *testing.T) {
	service, client := serve(t)
	_, err := client.Generate(t.Context(), &pb.GenerateRequest{Prompt: Text("\xff")})
	var failed *Error
	if !errors.As(err, &failed) || failed.Code != codes.InvalidArgument || !strings.Contains(failed.Message, "UTF-8") {
		t.Errorf("got %v", err)
	}
	if service.calls() != 0 {
		t.Error("it was sent")
	}
}

func TestAnItemOfABatchHasItsError(t *testing.T) {
	item := &pb.GenerateBatchItem{Outcome: &pb.GenerateBatchItem_Error{Error: &pb.ItemStatus{Code: 3, Message: "bad"}}}
	if failed := ItemError(item); failed == nil || failed.Code != codes.InvalidArgument || failed.Message != "bad" {
		t.Errorf("got %v", failed)
	}
	if failed := ItemError(&pb.GenerateBatchItem{}); failed != nil {
		t.Errorf("got %v", failed)
	}
}

func TestNobodyThereSaysWhere(t *testing.T) {
	client, err := New("127.0.0.1:1", WithRetries(0))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.GetModel(t.Context(), &pb.GetModelRequest{})
	var failed *Error
	if !errors.As(err, &failed) || !failed.NoAnswer || failed.Code != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
	if !strings.HasPrefix(failed.Message, "no tokenwire server answers at 127.0.0.1:1 (") {
		t.Errorf("message %q", failed.Message)
	}
}

func TestMetadataGoesWithEveryCall(t *testing.T) {
	service, client := serve(t, WithAPIKey("tw_key"), WithMetadata("x-team", "search"))
	ctx := WithRequestID(t.Context(), "mine")
	if _, err := client.Generate(ctx, &pb.GenerateRequest{}); err != nil {
		t.Fatal(err)
	}
	stream, err := client.ChatStream(ctx, &pb.ChatRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream.Close()
	for _, md := range service.metadata {
		for key, value := range map[string]string{"authorization": "Bearer tw_key", "x-team": "search", "x-request-id": "mine"} {
			if got := md.Get(key); len(got) != 1 || got[0] != value {
				t.Errorf("%s is %q", key, got)
			}
		}
	}
}

func TestOptionsThatCannotWorkAreErrors(t *testing.T) {
	for name, option := range map[string]Option{
		"retries":     WithRetries(-1),
		"timeout":     WithTimeout(0),
		"roots":       WithRootCertificates("no such file"),
		"no PEM":      WithRootCertificates("go.mod"),
		"certificate": WithClientCertificate("no such file", "no such file"),
	} {
		if _, err := New("127.0.0.1:1", option); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTheTimeoutOfTheClientIsForCallsWithoutADeadline(t *testing.T) {
	service, client := serve(t, WithTimeout(100*time.Millisecond))
	service.hold = 0
	if _, err := client.Generate(context.Background(), &pb.GenerateRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
