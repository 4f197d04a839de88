// Package origintest proves origin drivers and stands up what they talk to: the
// conformance [Suite] that every driver passes, a real S3 server ([StartS3],
// [RunS3]) and a proxy that breaks chosen answers of it ([Fault]).
//
// Programs may use RunS3 too; only Suite and StartS3 need package testing.
package origintest
