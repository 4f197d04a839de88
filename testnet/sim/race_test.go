//go:build race

package sim

// raced says that the race detector watches, which makes everything take ten
// times as long: fewer nodes race as well as many.
const raced = true
