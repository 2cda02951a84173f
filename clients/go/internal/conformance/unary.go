package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// unary makes a call with one answer and notes it.
func unary[Request any, Answer proto.Message](
	result outcome, ctx context.Context, method func(context.Context, Request, ...grpc.CallOption) (Answer, error), request Request,
) {
	answer, err := method(ctx, request)
	if err == nil {
		result.answer(answer)
	}
	result.fail(err)
}
