// Command covey runs an agent of the mesh and speaks to one.
package main

import (
	"context"
	"io"
	"os"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, os.Getenv)) }

// run is the whole command: arguments in, exit code out. It exits nothing
// itself, and writes only to the two writers, save what an agent logs.
func run(args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	a := &app{stdout: stdout, stderr: stderr, getenv: getenv}
	return a.run(context.Background(), args)
}

// app is what the commands share of the world around them.
type app struct {
	stdout, stderr io.Writer
	getenv         func(string) string
}
