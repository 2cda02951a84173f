// Command conformance runs the cases of clients/conformance.json against live servers with this client:
//
//	go run ./internal/conformance SERVERS CASES [RESULTS]
//
// SERVERS is the file that the harness writes, RESULTS one that gets the names of the cases that passed and failed.
// clients/CONFORMANCE.md says what all of them hold.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"tokenwire"
	pb "tokenwire/tokenwirepb"
)

// caseLimit ends a case that hangs.
const caseLimit = 120 * time.Second

type servers struct {
	Control  string
	Facts    map[string]any
	Profiles map[string]profile
}

type profile struct {
	Target            string
	APIKey            string `json:"api_key"`
	TLS               bool
	RootCertificates  string `json:"root_certificates"`
	ClientCertificate string `json:"client_certificate"`
	ClientKey         string `json:"client_key"`
}

type conformance struct {
	Matching [][3]any
	Cases    []testCase
}

type testCase struct {
	Name    string
	Profile string
	Connect struct {
		Retries   int
		TimeoutMS int `json:"timeout_ms"`
	}
	Steps []step
}

type step struct {
	ID         string
	Call       string
	Control    string
	Request    any
	RequestID  string `json:"request_id"`
	DeadlineMS int    `json:"deadline_ms"`
	After      *int
	Then       string
	Expect     any
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: conformance SERVERS CASES [RESULTS]")
		os.Exit(2)
	}
	var live servers
	var all conformance
	load(os.Args[1], &live)
	load(os.Args[2], &all)
	for _, each := range all.Matching {
		expected, actual := resolve(each[0], nil, nil), resolve(each[1], nil, nil)
		if wrong := mismatch(expected, actual, "value"); (wrong == "") != each[2].(bool) {
			fmt.Printf("FAILED matching %s: %s\n", shown(each), wrong)
			os.Exit(1)
		}
	}
	passed, failed := []string{}, []string{}
	for _, each := range all.Cases {
		if wrong := limited(each, live); wrong != nil {
			fmt.Printf("FAILED %s: %v\n", each.Name, wrong)
			failed = append(failed, each.Name)
		} else {
			passed = append(passed, each.Name)
		}
	}
	if len(os.Args) > 3 {
		text, _ := json.Marshal(map[string]any{"passed": passed, "failed": failed})
		if err := os.WriteFile(os.Args[3], text, 0o644); err != nil {
			panic(err)
		}
	}
	fmt.Printf("%d passed, %d failed\n", len(passed), len(failed))
	if len(failed) > 0 {
		os.Exit(1)
	}
}

func load(path string, into any) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
		os.Exit(2)
	}
}

func connect(to profile, with testCase) (*tokenwire.Client, error) {
	options := []tokenwire.Option{tokenwire.WithRetries(with.Connect.Retries)}
	if with.Connect.TimeoutMS > 0 {
		options = append(options, tokenwire.WithTimeout(time.Duration(with.Connect.TimeoutMS)*time.Millisecond))
	}
	if to.APIKey != "" {
		options = append(options, tokenwire.WithAPIKey(to.APIKey))
	}
	if to.TLS {
		options = append(options, tokenwire.WithTLS(nil))
	}
	if to.RootCertificates != "" {
		options = append(options, tokenwire.WithRootCertificates(to.RootCertificates))
	}
	if to.ClientCertificate != "" {
		options = append(options, tokenwire.WithClientCertificate(to.ClientCertificate, to.ClientKey))
	}
	return tokenwire.New(to.Target, options...)
}

// limited runs a case, and leaves it where it hangs.
func limited(each testCase, live servers) error {
	ended := make(chan error, 1)
	go func() { ended <- run(each, live) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(caseLimit):
		return errors.New("it hangs")
	}
}

func run(each testCase, live servers) (failure error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			failure = fmt.Errorf("panic: %v", panicked)
		}
	}()
	to, known := live.Profiles[each.Profile]
	if !known {
		return fmt.Errorf("there is no profile %q", each.Profile)
	}
	client, err := connect(to, each)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := context.Background()
	values := map[string]any{}
	for index, step := range each.Steps {
		var result outcome
		if step.Control != "" {
			if result, err = control(ctx, live.Control+step.Control); err != nil {
				return err
			}
		} else {
			request := resolve(step.Request, live.Facts, values)
			began := time.Now()
			result = call(ctx, client, step, request, live.Control)
			result["elapsed_ms"] = float64(time.Since(began).Milliseconds())
		}
		if step.ID != "" {
			values[step.ID] = map[string]any(result)
		}
		if step.Expect == nil {
			continue
		}
		expected := resolve(step.Expect, live.Facts, values)
		if wrong := mismatch(expected, map[string]any(result), fmt.Sprintf("step %d", index)); wrong != "" {
			return fmt.Errorf("%s (status %v, message %s)", wrong, result["status"], shown(result["message"]))
		}
	}
	return nil
}

func control(ctx context.Context, url string) (outcome, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	result := outcome{}
	return result, json.NewDecoder(answer.Body).Decode(&result)
}

// parse reads proto3 JSON.
func parse[Message proto.Message](value any, into Message) Message {
	text, err := json.Marshal(value)
	if err == nil {
		err = protojson.Unmarshal(text, into)
	}
	if err != nil {
		panic(err)
	}
	return into
}

func call(ctx context.Context, client *tokenwire.Client, step step, request any, controlAddress string) outcome {
	if step.DeadlineMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(step.DeadlineMS)*time.Millisecond)
		defer cancel()
	}
	if step.RequestID != "" {
		ctx = tokenwire.WithRequestID(ctx, step.RequestID)
	}
	result := outcome{}
	switch step.Call {
	case "Generate":
		unary(result, ctx, client.Generate, parse(request, &pb.GenerateRequest{}))
	case "GenerateBatch":
		unary(result, ctx, client.GenerateBatch, parse(request, &pb.GenerateBatchRequest{}))
	case "Chat":
		unary(result, ctx, client.Chat, parse(request, &pb.ChatRequest{}))
	case "Tokenize":
		unary(result, ctx, client.Tokenize, parse(request, &pb.TokenizeRequest{}))
	case "Detokenize":
		unary(result, ctx, client.Detokenize, parse(request, &pb.DetokenizeRequest{}))
	case "RenderChat":
		unary(result, ctx, client.RenderChat, parse(request, &pb.RenderChatRequest{}))
	case "GetModel":
		unary(result, ctx, client.GetModel, parse(request, &pb.GetModelRequest{}))
	case "GenerateStream":
		stream, err := client.GenerateStream(ctx, parse(request, &pb.GenerateRequest{}))
		result.stream(stream, err, step.After, step.Then, controlAddress)
	case "ChatStream":
		stream, err := client.ChatStream(ctx, parse(request, &pb.ChatRequest{}))
		result.stream(stream, err, step.After, step.Then, controlAddress)
	case "ChatSession":
		session(ctx, client, result, request.(map[string]any), controlAddress)
	case "WaitUntilReady":
		result.fail(client.WaitUntilReady(ctx))
	default:
		panic("this runner does not know the call " + step.Call)
	}
	return result
}

// stream reads a stream to its end, and does what is to be done on the way.
func (o outcome) stream(stream *tokenwire.Stream, err error, after *int, then, controlAddress string) {
	if err != nil {
		o.fail(err)
		return
	}
	defer stream.Close()
	deltas := []any{}
	act := func() {
		if after == nil || len(deltas) != *after {
			return
		}
		if then == "cancel" {
			stream.Close()
		} else if _, err := control(context.Background(), controlAddress+then); err != nil {
			panic(err)
		}
	}
	act()
	for {
		delta, err := stream.Recv()
		if err != nil {
			o.answer(stream.Response())
			if errors.Is(err, io.EOF) {
				err = nil
			}
			o.fail(err)
			o["deltas"] = deltas
			return
		}
		if delta.SequenceIndex == 0 {
			deltas = append(deltas, delta.Text)
			act()
		}
	}
}

func session(ctx context.Context, client *tokenwire.Client, result outcome, request map[string]any, controlAddress string) {
	chat := client.NewChat(parse(request["base"], &pb.ChatRequest{}))
	for _, each := range request["turns"].([]any) {
		turn := each.(map[string]any)
		text := turn["text"].(string)
		if turn["stream"] != true {
			answer, err := chat.Say(ctx, text)
			if err == nil {
				result.answer(answer)
			}
			result.fail(err)
			continue
		}
		stream, err := chat.Stream(ctx, text)
		var after *int
		then, _ := turn["then"].(string)
		if count, is := turn["after"].(float64); is {
			number := int(count)
			after = &number
		}
		result.stream(stream, err, after, then, controlAddress)
	}
	messages := []any{}
	for _, message := range chat.Messages() {
		messages = append(messages, asJSON(message))
	}
	result["response"] = map[string]any{"messages": messages}
}
