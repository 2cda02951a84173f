package tokenwire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

const (
	defaultKeepalive = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	defaultRetries   = 2
	// Log probabilities of a long prompt exceed gRPC's own 4 MiB.
	maxReceiveBytes = 64 << 20
)

// An Option of [New].
type Option func(*settings) error

type settings struct {
	tls       *tls.Config
	apiKey    string
	timeout   time.Duration
	keepalive time.Duration
	retries   int
	metadata  []string
	dial      []grpc.DialOption
}

func (s *settings) secure() *tls.Config {
	if s.tls == nil {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return s.tls
}

// WithTLS encrypts. A nil config trusts the system's certificate authorities.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) error {
		if config != nil {
			s.tls = config.Clone()
		}
		s.secure()
		return nil
	}
}

// WithRootCertificates encrypts and trusts the authorities in a PEM file, in place of the system's.
func WithRootCertificates(path string) Option {
	return func(s *settings) error {
		pem, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate in PEM form", path)
		}
		s.secure().RootCAs = pool
		return nil
	}
}

// WithClientCertificate encrypts and shows the server a certificate: PEM files of it and of its key.
func WithClientCertificate(certificate, key string) Option {
	return func(s *settings) error {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return err
		}
		s.secure().Certificates = []tls.Certificate{pair}
		return nil
	}
}

// WithAPIKey sends an API key, or a token, with every call. Without TLS it crosses the network in the clear.
func WithAPIKey(key string) Option {
	return func(s *settings) error {
		s.apiKey = key
		return nil
	}
}

// WithTimeout ends every call after so long whose context has no deadline, its retries included. Default: no limit.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) error {
		if timeout <= 0 {
			return fmt.Errorf("the timeout must be above 0, got %v", timeout)
		}
		s.timeout = timeout
		return nil
	}
}

// WithKeepalive pings the server so often while a call runs, so that one that died without a word is noticed. gRPC
// raises what is below 10 s. 0: never. Default: 30 s.
func WithKeepalive(interval time.Duration) Option {
	return func(s *settings) error {
		s.keepalive = interval
		return nil
	}
}

// WithRetries sets how often a unary call is sent again that failed for a reason that passes, see [Client]. Range: 0
// to 10. Default: 2.
func WithRetries(retries int) Option {
	return func(s *settings) error {
		if retries < 0 || retries > 10 {
			return fmt.Errorf("retries must be 0 to 10, got %d", retries)
		}
		s.retries = retries
		return nil
	}
}

// WithMetadata sends a key, in lower case, and its value with every call. That of one call comes from its context:
// [metadata.AppendToOutgoingContext].
func WithMetadata(key, value string) Option {
	return func(s *settings) error {
		s.metadata = append(s.metadata, key, value)
		return nil
	}
}

// WithDialOptions passes options to gRPC: interceptors, statistics, another dialer.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) error {
		s.dial = append(s.dial, options...)
		return nil
	}
}

func (s *settings) dialOptions() []grpc.DialOption {
	transport := insecure.NewCredentials()
	if s.tls != nil {
		transport = credentials.NewTLS(s.tls)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("tokenwire-go"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		// gRPC's own 1 s to 120 s between attempts would let a client sleep long after its server came up.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// What is sent again, and when, is decided in retry.go alone.
		grpc.WithDisableRetry(),
	}
	if s.keepalive > 0 {
		options = append(options, grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: s.keepalive, Timeout: keepaliveTimeout,
		}))
	}
	return append(options, s.dial...)
}

// outgoing is the context of a call: with the client's metadata and deadline.
func (s *settings) outgoing(ctx context.Context) (context.Context, context.CancelFunc) {
	pairs := s.metadata
	if s.apiKey != "" {
		pairs = append(pairs[:len(pairs):len(pairs)], "authorization", "Bearer "+s.apiKey)
	}
	if len(pairs) > 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, pairs...)
	}
	if _, has := ctx.Deadline(); !has && s.timeout > 0 {
		return context.WithTimeout(ctx, s.timeout)
	}
	return context.WithCancel(ctx)
}

// WithRequestID names the call of a context: 1 to 128 letters, digits and characters of "._~:/+=@-". The server's log
// and the start of the answer have the name.
func WithRequestID(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, requestIDKey, id)
}
