package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const (
	defaultRegion = "us-east-1"
	// dialTimeout is enough for one lost SYN (1 s) and its successor (2 s).
	dialTimeout = 4 * time.Second
	// readBuffer takes a 4 MiB body in 64 system calls rather than 1,024.
	readBuffer = 64 << 10
)

// newS3 builds the driver for a parsed location. It makes no request.
func newS3(ctx context.Context, loc location, opts Options) (*s3Bucket, error) {
	client, idle := httpClient(opts)
	b := &s3Bucket{name: loc.bucket, timeout: opts.Timeout, log: opts.Log, closeIdle: idle}
	cfg, err := awsConfig(ctx, loc, opts)
	if err != nil {
		return nil, err
	}
	b.credentials = &credentialSource{provider: cfg.Credentials}
	endpoint := loc.endpoint
	b.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		if endpoint == "" && o.BaseEndpoint != nil {
			// From AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile.
			endpoint, err = canonicalEndpoint(*o.BaseEndpoint)
		}
		endpoint = dropAWSEndpoint(endpoint)
		o.BaseEndpoint = nil
		if endpoint != "" {
			o.BaseEndpoint = aws.String(endpoint)
			// Few servers of one's own have a DNS name for each bucket.
			o.UsePathStyle = true
		}
		o.HTTPClient = client
		o.Credentials = b.credentials
		o.Retryer = aws.NopRetryer{} // WithRetry does it, and counts it
		// A checksum of the whole object says nothing of a range, and where one
		// comes it would cost a hash that the mesh computes anyway.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	if err != nil {
		return nil, fmt.Errorf("the endpoint of the environment: %w", err)
	}
	b.endpoint, b.region = endpoint, cfg.Region
	return b, nil
}

// awsConfig reads the standard chain: environment, profiles, workload identity.
func awsConfig(ctx context.Context, loc location, opts Options) (aws.Config, error) {
	load := []func(*config.LoadOptions) error{config.WithDefaultRegion(defaultRegion)}
	if loc.region != "" {
		load = append(load, config.WithRegion(loc.region))
	}
	if c := opts.Credentials; c != nil {
		load = append(load,
			config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, c.Token)),
			// With given credentials nothing is read of the machine's own.
			config.WithSharedConfigFiles([]string{os.DevNull}),
			config.WithSharedCredentialsFiles([]string{os.DevNull}))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("read the AWS configuration: %w", err)
	}
	return cfg, nil
}

// dropAWSEndpoint returns "" for AWS's own public endpoints, so that a peer that
// spells one out names the same storage as a peer that leaves it to the default.
func dropAWSEndpoint(endpoint string) string {
	host, ok := strings.CutPrefix(endpoint, "https://")
	if !ok {
		return endpoint
	}
	middle, ok := strings.CutSuffix(host, ".amazonaws.com")
	if ok && (middle == "s3" || (strings.HasPrefix(middle, "s3.") || strings.HasPrefix(middle, "s3-")) && regionForm.MatchString(middle[3:])) {
		return ""
	}
	return endpoint
}

// httpClient returns the client for requests and the function that closes its
// idle connections.
func httpClient(opts Options) (*http.Client, func()) {
	client := http.Client{}
	idle := func() {}
	if opts.HTTP != nil {
		client = *opts.HTTP // a copy; its idle connections are its owner's
	} else {
		transport := &http.Transport{
			// Storage is near, and a proxy variable meant for browsers would
			// send every byte of a training run through it.
			Proxy:               nil,
			DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			// No ResponseHeaderTimeout: the watch over each try does it, for
			// clients that are passed in too.
			//
			// As many as are ever in flight, or each burst would dial anew.
			MaxIdleConns:          opts.InFlight,
			MaxIdleConnsPerHost:   opts.InFlight,
			IdleConnTimeout:       90 * time.Second,
			ExpectContinueTimeout: time.Second,
			ReadBufferSize:        readBuffer,
			WriteBufferSize:       readBuffer,
			// A range of an object is exact bytes, never unpacked ones.
			DisableCompression: true,
		}
		client.Transport = transport
		idle = transport.CloseIdleConnections
	}
	// A redirect would carry the signed request to a host nobody configured.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client, idle
}

// errNoCredentials says that the chain came to its end without a key.
var errNoCredentials = errors.New("no credentials")

// credentialSource marks the errors of the chain, whose texts differ with each
// provider, and can have the chain asked anew.
type credentialSource struct{ provider aws.CredentialsProvider }

func (c *credentialSource) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if c.provider == nil {
		return aws.Credentials{}, errNoCredentials
	}
	creds, err := c.provider.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		return aws.Credentials{}, fmt.Errorf("%w: %w", errNoCredentials, err)
	}
	return creds, err
}

// forget drops cached credentials; the next request asks the chain again. It
// returns false when there is no cache and so no other credentials to be had.
func (c *credentialSource) forget() bool {
	cache, ok := c.provider.(*aws.CredentialsCache)
	if ok {
		cache.Invalidate()
	}
	return ok
}
