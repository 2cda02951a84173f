// Package tokenwire calls a tokenwire server: a Hugging Face causal language model over gRPC.
//
//	client, err := tokenwire.New("127.0.0.1:50051")
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//
//	stream, err := client.ChatStream(ctx, &pb.ChatRequest{
//		Conversation:     tokenwire.Conversation(tokenwire.User("What is the capital of France?")),
//		GenerationConfig: &pb.GenerationConfig{MaxNewTokens: proto.Int32(60)},
//	})
//	if err != nil {
//		return err
//	}
//	for delta, err := range stream.Deltas() {
//		if err != nil {
//			return err
//		}
//		fmt.Print(delta.Text)
//	}
//
// Requests and answers are the messages of package tokenwirepb, whose comments say the meaning, unit, range and default
// of every field. Fields of GenerationConfig are pointers: nil means the model's default, zero is a value. Calls take
// the options of gRPC ([grpc.Header] and the like) and end with their context.
//
// Whatever fails is an [*Error], to be looked at with [errors.As].
package tokenwire

//go:generate ../../.venv/bin/buf generate ../.. --template buf.gen.yaml
