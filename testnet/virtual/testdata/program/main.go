// Command program is an ordinary program that runs in virtual time, with flags
// and output of its own.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/covey-cache/covey/testnet/virtual"
)

func main() {
	n := flag.Int("n", 1, "how many hours")
	flag.Parse()
	began := time.Now()
	var slept time.Duration
	err := virtual.Run(func() error {
		now := time.Now()
		woke := make(chan struct{})
		go func() { time.Sleep(time.Duration(*n) * time.Hour); close(woke) }()
		<-woke
		slept = time.Since(now)
		return errors.New("as it should be")
	})
	flags := 0
	flag.VisitAll(func(*flag.Flag) { flags++ })
	fmt.Println(slept, err, time.Since(began) < time.Minute, flags, flag.Args())
	fmt.Println(virtual.Run(func() error { return nil }))
	os.Exit(3)
}
