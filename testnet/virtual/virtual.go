// Package virtual runs a function in virtual time in a program that is no test.
//
// testing/synctest is the one place where Go has virtual time, and it wants a
// *testing.T. Package testing hands one out in any program that calls
// [testing.Main], as systems that simulate `go test` do. This package is the
// only one that does so outside of tests, so that importing a simulation adds no
// flags to a program and prints nothing of package testing's.
package virtual

import (
	"errors"
	"flag"
	"sync"
	"testing"
	"testing/synctest"
)

// once guards the start: package testing has flags and state of the process.
var once sync.Once

// errTwice is what the second call of Run gets.
var errTwice = errors.New("virtual time was started before in this process")

// Run calls f in a bubble of virtual time and returns what f returns, once every
// goroutine that f started has ended. It can be called once in a process, by a
// program; a test calls synctest.Test itself. A panic or a deadlock in the
// bubble ends the process with its stack, as anywhere.
//
// What package testing would print or do when its only "test" ends never
// happens: the goroutine that plays the test stays parked for the rest of the
// process, in the caller's favour.
func Run(f func() error) error {
	err := errTwice
	once.Do(func() { err = run(f) })
	return err
}

func run(f func() error) error {
	// The flags of package testing come into being here and not at import, and
	// from no command line: it is the program's. The set that flag.CommandLine
	// was is put back at once.
	program := flag.CommandLine
	flag.CommandLine = flag.NewFlagSet("virtual", flag.ContinueOnError)
	testing.Init()
	err := flag.CommandLine.Parse(nil)
	if err != nil {
		return err
	}
	done := make(chan error)
	go testing.Main(
		func(string, string) (bool, error) { return true, nil },
		[]testing.InternalTest{{Name: "virtual", F: func(t *testing.T) {
			var result error
			synctest.Test(t, func(*testing.T) { result = f() })
			flag.CommandLine = program
			done <- result
			select {}
		}}}, nil, nil)
	return <-done
}
