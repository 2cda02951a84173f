package tokenwire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// watchPause lies between a watch that broke and the next.
const watchPause = 100 * time.Millisecond

// WaitUntilReady waits until the server's health is SERVING: it is there and has loaded its model. Give the context a
// deadline; it is the only end of the wait for a server that never comes.
func (c *Client) WaitUntilReady(ctx context.Context) error {
	ctx, cancel := c.settings.outgoing(ctx)
	defer cancel()
	answered := false
	for {
		ready, err := c.watch(ctx, &answered)
		if ready {
			return nil
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			message := fmt.Sprintf("no tokenwire server answers at %s", c.target)
			if answered {
				message = fmt.Sprintf("the server at %s is still loading; look at its log", c.target)
			}
			return newError(codes.DeadlineExceeded, message, nil, nil)
		}
		if ended := ctx.Err(); ended != nil {
			return c.errorFrom(ended)
		}
		var failed *Error
		if errors.As(c.errorFrom(err), &failed) && failed.Code != codes.Unavailable {
			return failed
		}
		timer := time.NewTimer(watchPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// watch follows the server's health until it serves (true), or until the watch breaks.
func (c *Client) watch(ctx context.Context, answered *bool) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := c.health.Watch(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	for {
		answer, err := watch.Recv()
		if err != nil {
			return false, err
		}
		*answered = true
		if answer.Status == healthpb.HealthCheckResponse_SERVING {
			return true, nil
		}
	}
}
