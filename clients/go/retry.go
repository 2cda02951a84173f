package tokenwire

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

const (
	firstPause = 200 * time.Millisecond
	maxPause   = 2 * time.Second
	// Of what the server asks for, so that no call sleeps unseen for a minute.
	maxRetryDelay = 30 * time.Second
)

// pauseBefore is how long to wait before the call is sent again after its attempt-th failure (from 0), or false where
// another attempt makes no sense.
func pauseBefore(failed *Error, attempt int) (time.Duration, bool) {
	delay, named := failed.RetryDelay()
	switch {
	case failed.Code != codes.Unavailable && failed.Code != codes.ResourceExhausted:
		return 0, false
	case named:
		// A little more, so that not all who were told the same come at once.
		return delay + time.Duration(rand.Float64()*0.1*float64(delay)), delay <= maxRetryDelay
	case failed.Code == codes.Unavailable:
		pause := min(firstPause<<attempt, maxPause)
		return pause/2 + rand.N(pause/2), true
	default:
		// A message that is too large stays too large.
		return 0, false
	}
}

// unary makes a call with one answer, and makes it again where that is safe.
func unary[Request, Answer any](
	ctx context.Context, c *Client, method func(context.Context, Request, ...grpc.CallOption) (Answer, error),
	request Request, options []grpc.CallOption,
) (Answer, error) {
	ctx, cancel := c.settings.outgoing(ctx)
	defer cancel()
	for attempt := 0; ; attempt++ {
		answer, err := method(ctx, request, options...)
		if err == nil {
			return answer, nil
		}
		var none Answer
		err = c.errorFrom(err)
		var failed *Error
		if attempt == c.settings.retries || !errors.As(err, &failed) {
			return none, err
		}
		pause, again := pauseBefore(failed, attempt)
		if deadline, has := ctx.Deadline(); has && time.Until(deadline) < pause {
			again = false
		}
		if !again {
			return none, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return none, c.errorFrom(ctx.Err())
		}
	}
}
