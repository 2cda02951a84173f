package tokenwire

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	pb "tokenwire/tokenwirepb"
)

const requestIDKey = "x-request-id"

// marshaling begins gRPC's message for a request that cannot be sent, which it calls INTERNAL.
const marshaling = "grpc: error while marshaling: "

// Error is how a call failed. Code says in which way:
//
//   - InvalidArgument: the request breaks rules, and Violations names each field.
//   - NotFound: a model that is not served.
//   - FailedPrecondition: what the served model cannot do, for example chat without a template.
//   - Unauthenticated, PermissionDenied: no or a bad credential; a good one that is not allowed this.
//   - ResourceExhausted: queue full, quota used up, message too large. With a [Error.RetryDelay] another attempt makes
//     sense.
//   - Unavailable: loading, draining, restarting; with NoAnswer, nobody or no tokenwire server answers there.
//   - DeadlineExceeded, Canceled: the context ended, and with it the model's work. [errors.Is] tells them by
//     [context.DeadlineExceeded] and [context.Canceled] as well.
//   - Internal: a fault of the server; report it with RequestID.
type Error struct {
	// Code is the gRPC status.
	Code codes.Code
	// Message is one or more sentences for a person.
	Message string
	// Reason is a stable UPPER_SNAKE_CASE identifier, or empty where the server gave none.
	Reason string
	// Violations are the fields of the request that break a rule.
	Violations []FieldViolation
	// Info has further facts by name, for example the limit that was passed.
	Info map[string]string
	// RequestID finds the call in the server's log; empty where the call never got there.
	RequestID string
	// NoAnswer is set where the connection failed, and not a server that said so.
	NoAnswer bool

	retryDelay *time.Duration
	status     *status.Status
}

// FieldViolation is a field of the request that breaks a rule.
type FieldViolation struct {
	// Field is its path in the request, for example generation_config.top_p.
	Field string
	// Description is the rule, and the value given.
	Description string
}

// String is the field and the rule.
func (v FieldViolation) String() string {
	return v.Field + ": " + v.Description
}

// Error is the message, behind the name of the code.
func (e *Error) Error() string {
	return fmt.Sprintf("tokenwire: %s: %s", e.Code, e.Message)
}

// GRPCStatus makes [status.FromError] find the status that gRPC gave.
func (e *Error) GRPCStatus() *status.Status {
	return e.status
}

// RetryDelay is how long the server asks to wait before another attempt, if it says so.
func (e *Error) RetryDelay() (delay time.Duration, named bool) {
	if e.retryDelay == nil {
		return 0, false
	}
	return *e.retryDelay, true
}

// Unwrap is the error of the context where that ended the call.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Canceled:
		return context.Canceled
	default:
		return nil
	}
}

// ItemError is the error of one item of a batch, or nil where it has a response.
func ItemError(item *pb.GenerateBatchItem) *Error {
	failed := item.GetError()
	if failed == nil {
		return nil
	}
	return newError(codes.Code(failed.Code), failed.Message, failed.Details, nil)
}

// errorFrom is the error for what gRPC returned, an Error already or nil included.
func (c *Client) errorFrom(err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	what := status.Convert(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		what = status.New(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		what = status.New(codes.Canceled, err.Error())
	case what.Code() == codes.Internal && strings.HasPrefix(what.Message(), marshaling):
		what = status.New(codes.InvalidArgument, "the request cannot be sent: "+strings.TrimPrefix(what.Message(), marshaling))
	}
	details := what.Proto().GetDetails()
	result := newError(what.Code(), what.Message(), details, what)
	// A tokenwire server sends details with every UNAVAILABLE; without them it was gRPC that found or kept no connection.
	if result.Code == codes.Unavailable && len(details) == 0 {
		result.NoAnswer = true
		result.Message = fmt.Sprintf("no tokenwire server answers at %s (%s)", c.target, connectionProblem(result.Message))
	}
	return result
}

// connectionProblem is the part of gRPC's message that says why.
func connectionProblem(message string) string {
	message = strings.TrimPrefix(message, "connection error: ")
	if why, quoted := strings.CutPrefix(message, `desc = "`); quoted {
		message = strings.TrimSuffix(why, `"`)
	}
	return strings.TrimPrefix(message, "transport: ")
}

func newError(code codes.Code, message string, details []*anypb.Any, what *status.Status) *Error {
	if code == codes.Unknown || code == codes.OK {
		code = codes.Internal
	}
	if message == "" {
		message = code.String()
	}
	if what == nil {
		what = status.New(code, message)
	}
	result := &Error{Code: code, Message: message, status: what}
	for _, packed := range details {
		detail, err := packed.UnmarshalNew()
		if err != nil {
			continue // of a kind that this version of the client does not know
		}
		result.take(detail)
	}
	return result
}

func (e *Error) take(detail proto.Message) {
	switch detail := detail.(type) {
	case *errdetails.BadRequest:
		for _, each := range detail.FieldViolations {
			e.Violations = append(e.Violations, FieldViolation{Field: each.Field, Description: each.Description})
		}
	case *errdetails.RetryInfo:
		delay := detail.RetryDelay.AsDuration()
		e.retryDelay = &delay
	case *errdetails.ErrorInfo:
		e.Reason = detail.Reason
		e.Info = detail.Metadata
		e.RequestID = detail.Metadata["request_id"]
	}
}
