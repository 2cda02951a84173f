package tokenwire

import (
	"io"
	"strings"
	"testing"

	pb "tokenwire/tokenwirepb"
)

const numDeltas = 1000

// What reading a stream costs per message with the generated stub alone.
func BenchmarkStreamOfTheStub(b *testing.B) {
	client := serveMany(b)
	for b.Loop() {
		stream, err := client.generation.GenerateStream(b.Context(), &pb.GenerateRequest{})
		if err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := stream.Recv(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*numDeltas), "ns/message")
}

// The same with the client, which joins the deltas as well.
func BenchmarkStreamOfTheClient(b *testing.B) {
	client := serveMany(b)
	for b.Loop() {
		stream, err := client.GenerateStream(b.Context(), &pb.GenerateRequest{})
		if err != nil {
			b.Fatal(err)
		}
		for _, err := range stream.Deltas() {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*numDeltas), "ns/message")
}

func serveMany(b *testing.B) *Client {
	b.Helper()
	service, client := serve(b)
	service.answer = strings.Repeat("a", numDeltas)
	return client
}
