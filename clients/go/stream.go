package tokenwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "tokenwire/tokenwirepb"
)

// Stream is a running answer. Read it with [Stream.Deltas], [Stream.Recv] or [Stream.Collect], from one goroutine; Close
// may be called from any. It holds its place in the server until it was read to its end, closed, or its context ended.
type Stream struct {
	client *Client
	recv   func() (Event, error)
	cancel context.CancelFunc
	joiner Joiner
	// Called once, when the answer is complete.
	completed func(*pb.GenerateResponse)

	mutex  sync.Mutex
	closed bool
	// How it ended: io.EOF where the answer is complete. Nil while it runs.
	ended error
}

// open begins a stream and waits for its start.
func open[Request any, Message any, Pointer interface {
	*Message
	Event
}](
	ctx context.Context, c *Client,
	method func(context.Context, Request, ...grpc.CallOption) (grpc.ServerStreamingClient[Message], error),
	request Request, options []grpc.CallOption,
) (*Stream, error) {
	ctx, cancel := c.settings.outgoing(ctx)
	call, err := method(ctx, request, options...)
	if err != nil {
		cancel()
		return nil, c.errorFrom(err)
	}
	stream := &Stream{client: c, cancel: cancel, recv: func() (Event, error) {
		message, err := call.Recv()
		return Pointer(message), err
	}}
	if err := stream.read(); err != nil {
		return nil, stream.end(err)
	}
	if stream.joiner.start == nil {
		return nil, stream.end(fault("the stream did not begin with a start event"))
	}
	return stream, nil
}

func fault(message string) error {
	return newError(codes.Internal, message, nil, nil)
}

// Start is what the server is doing: request id, settings in force, prompt tokens, warnings.
func (s *Stream) Start() *pb.GenerationStart {
	return s.joiner.start
}

// Deltas are the pieces of the answer, each a pair of a delta and nil, then one of nil and an error if the stream failed.
// Leaving the loop early closes the stream.
func (s *Stream) Deltas() iter.Seq2[*pb.GenerationDelta, error] {
	return func(yield func(*pb.GenerationDelta, error) bool) {
		for {
			delta, err := s.Recv()
			if err == io.EOF {
				return
			}
			if !yield(delta, err) {
				s.Close()
				return
			}
			if err != nil {
				return
			}
		}
	}
}

// Recv is the next piece of the answer. The error is [io.EOF] once the answer is complete, and otherwise an [*Error].
func (s *Stream) Recv() (*pb.GenerationDelta, error) {
	for {
		if err := s.state(); err != nil {
			return nil, err
		}
		event, err := s.next()
		if err != nil {
			return nil, s.end(err)
		}
		if delta := event.GetDelta(); delta != nil {
			return delta, nil
		}
	}
}

// Collect reads to the end: the whole answer, as Generate would give it.
func (s *Stream) Collect() (*pb.GenerateResponse, error) {
	for {
		if _, err := s.Recv(); err == io.EOF {
			return s.joiner.Response(), nil
		} else if err != nil {
			return nil, err
		}
	}
}

// Text is what has come, of several sequences the first.
func (s *Stream) Text() string {
	return s.joiner.Text(0)
}

// Response is what has come, as Generate would give it; sequences that run have no finish.
func (s *Stream) Response() *pb.GenerateResponse {
	return s.joiner.Response()
}

// Close gives the answer up if it is not complete: the server stops its work before the next forward pass, and reading
// gives an [*Error] with Code Canceled. It does nothing the second time, and its error is always nil.
func (s *Stream) Close() error {
	s.mutex.Lock()
	s.closed = true
	s.mutex.Unlock()
	s.cancel()
	return nil
}

func (s *Stream) state() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.ended == nil && s.closed {
		// Messages that came before count no more: whoever closed does not want them.
		s.ended = newError(codes.Canceled, "the answer was given up", nil, nil)
	}
	return s.ended
}

// next reads and joins one event.
func (s *Stream) next() (Event, error) {
	event, err := s.recv()
	if err == nil {
		if err := s.joiner.Add(event); err != nil {
			return nil, fault(err.Error())
		}
		return event, nil
	}
	if errors.Is(err, io.EOF) {
		if s.joiner.start != nil && !s.joiner.Complete() {
			return nil, fault("the stream ended without a finish event for each sequence")
		}
		return nil, io.EOF
	}
	return nil, err
}

// read is next for the first event, which must not be the end.
func (s *Stream) read() error {
	_, err := s.next()
	if err == io.EOF {
		return fault("the stream ended without a start event")
	}
	return err
}

// end notes how the stream ended, frees what it held and returns what the caller is told.
func (s *Stream) end(err error) error {
	if err != io.EOF {
		err = s.client.errorFrom(err)
		var failed *Error
		if errors.As(err, &failed) && failed.NoAnswer && s.joiner.start != nil {
			failed.Message = fmt.Sprintf("the connection to %s broke during the answer (%s)", s.client.target, connectionProblem(failed.status.Message()))
		}
	}
	s.mutex.Lock()
	s.ended = err
	s.mutex.Unlock()
	s.cancel()
	if err == io.EOF && s.completed != nil {
		s.completed(s.joiner.Response())
	}
	return err
}
