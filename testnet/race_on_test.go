//go:build race

package testnet_test

// raceFlags build the agents with the race detector when the tests have it. An
// agent that saw a race exits with an error when it is stopped, which fails the
// test.
var raceFlags = []string{"-race"}
