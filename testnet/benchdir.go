package testnet

import (
	"errors"
	"fmt"
	"os"
)

// benchDir makes the working directory of a benchmark that mounts, below base or,
// for "", where temporary files go. remove takes it away and joins what fails to the
// benchmark's own error.
func benchDir(base, pattern string) (dir string, remove func(*error), err error) {
	if err := needFUSE(); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(base, pattern); err != nil {
		return "", nil, fmt.Errorf("make a working directory: %w", err)
	}
	return dir, func(result *error) { *result = errors.Join(*result, os.RemoveAll(dir)) }, nil
}
