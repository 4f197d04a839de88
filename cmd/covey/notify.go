package main

import (
	"fmt"
	"net"
)

// notify tells the service manager of a change of state ("READY=1"). Without
// NOTIFY_SOCKET nobody wants to know. A name with "@" in front is in the
// abstract name space, which package net spells the same way.
func notify(getenv func(string) string, state string) error {
	socket := getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", socket)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
