//go:build race

package blockstore

func init() { raceEnabled = true }
