// Command chat talks with the model of a tokenwire server at the terminal.
//
//	go run ./examples/chat [-target HOST:PORT] [-ca FILE] [-system TEXT] [-max-new-tokens N] [MESSAGE]
//
// With a MESSAGE it prints one answer. Ctrl-C stops an answer, Ctrl-D leaves. TOKENWIRE_API_KEY is the API key.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"tokenwire"
	pb "tokenwire/tokenwirepb"
)

func main() {
	target := flag.String("target", tokenwire.DefaultTarget, "address of the server")
	ca := flag.String("ca", "", "PEM file of the certificate authorities to trust; encrypts")
	system := flag.String("system", "", "the system message")
	maxNewTokens := flag.Int("max-new-tokens", 256, "most tokens of an answer")
	flag.Parse()
	options := []tokenwire.Option{tokenwire.WithAPIKey(os.Getenv("TOKENWIRE_API_KEY"))}
	if *ca != "" {
		options = append(options, tokenwire.WithRootCertificates(*ca))
	}
	if err := run(*target, options, *system, int32(*maxNewTokens), strings.Join(flag.Args(), " ")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(target string, options []tokenwire.Option, system string, maxNewTokens int32, message string) error {
	client, err := tokenwire.New(target, options...)
	if err != nil {
		return err
	}
	defer client.Close()
	ready, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := client.WaitUntilReady(ready); err != nil {
		return err
	}
	base := &pb.ChatRequest{GenerationConfig: &pb.GenerationConfig{MaxNewTokens: proto.Int32(maxNewTokens)}}
	if system != "" {
		base.Conversation = tokenwire.Conversation(tokenwire.System(system))
	}
	chat := client.NewChat(base)
	if message != "" {
		return turn(chat, message)
	}
	lines := bufio.NewScanner(os.Stdin)
	for fmt.Print("> "); lines.Scan(); fmt.Print("> ") {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		if err := turn(chat, lines.Text()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	fmt.Println()
	return lines.Err()
}

// turn streams one answer to the terminal.
func turn(chat *tokenwire.ChatSession, message string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	stream, err := chat.Stream(ctx, message)
	if err != nil {
		return err
	}
	for delta, err := range stream.Deltas() {
		if errors.Is(err, context.Canceled) {
			fmt.Println(" [stopped]")
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Print(delta.Text)
	}
	fmt.Println()
	return nil
}
