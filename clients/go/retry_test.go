package tokenwire

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	pb "tokenwire/tokenwirepb"
)

func TestWhenACallIsSentAgain(t *testing.T) {
	for name, each := range map[string]struct {
		failed      error
		least, most time.Duration
		again       bool
	}{
		"a delay of the server":             {failing(codes.Unavailable, "", retryIn(time.Second)), time.Second, 1100 * time.Millisecond, true},
		"a full queue":                      {failing(codes.ResourceExhausted, "", retryIn(time.Second)), time.Second, 1100 * time.Millisecond, true},
		"no connection":                     {failing(codes.Unavailable, ""), 100 * time.Millisecond, 200 * time.Millisecond, true},
		"the longest delay":                 {failing(codes.Unavailable, "", retryIn(maxRetryDelay)), maxRetryDelay, 33 * time.Second, true},
		"a delay too long":                  {failing(codes.ResourceExhausted, "", retryIn(maxRetryDelay+1)), 0, 0, false},
		"a message too large":               {failing(codes.ResourceExhausted, ""), 0, 0, false},
		"a bad request":                     {failing(codes.InvalidArgument, ""), 0, 0, false},
		"a fault, whatever it says of time": {failing(codes.Internal, "", retryIn(0)), 0, 0, false},
	} {
		_, client := serve(t)
		var failed *Error
		errors.As(client.errorFrom(each.failed), &failed)
		for range 20 {
			pause, again := pauseBefore(failed, 0)
			if again != each.again || (again && (pause < each.least || pause > each.most)) {
				t.Errorf("%s: %v, %v", name, pause, again)
			}
		}
	}
}

func TestUnaryCallsAreSentAgain(t *testing.T) {
	unavailable := failing(codes.Unavailable, "loading", retryIn(0))
	for _, each := range []struct {
		retries, failures, calls int
		fails                    bool
	}{{2, 2, 3, false}, {2, 3, 3, true}, {0, 1, 1, true}} {
		service, client := serve(t, WithRetries(each.retries))
		for range each.failures {
			service.failures = append(service.failures, unavailable)
		}
		_, err := client.Chat(t.Context(), &pb.ChatRequest{})
		if (err != nil) != each.fails || service.calls() != each.calls {
			t.Errorf("%+v: %d calls, error %v", each, service.calls(), err)
		}
	}
}

func TestStreamsAreNot(t *testing.T) {
	service, client := serve(t)
	service.failures = []error{failing(codes.Unavailable, "loading", retryIn(0))}
	if _, err := client.GenerateStream(t.Context(), &pb.GenerateRequest{}); err == nil || service.calls() != 1 {
		t.Errorf("%d calls, error %v", service.calls(), err)
	}
}

func TestNoWaitGoesBeyondTheDeadline(t *testing.T) {
	service, client := serve(t)
	service.failures = []error{failing(codes.Unavailable, "loading", retryIn(25*time.Second))}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := client.Generate(ctx, &pb.GenerateRequest{})
	var failed *Error
	if !errors.As(err, &failed) || failed.Code != codes.Unavailable || service.calls() != 1 || ctx.Err() != nil {
		t.Errorf("%d calls, error %v", service.calls(), err)
	}
}

func TestACancelledWaitEndsAtOnce(t *testing.T) {
	service, client := serve(t)
	service.failures = []error{failing(codes.Unavailable, "loading", retryIn(25*time.Second))}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	began := time.Now()
	if _, err := client.Generate(ctx, &pb.GenerateRequest{}); !errors.Is(err, context.Canceled) || time.Since(began) > patience {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
