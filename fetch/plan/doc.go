// Package plan says in which order a training job will read its samples, from a
// description of 40 bytes.
//
// A loader that shuffles with torch does not have to send its order: the order
// follows from the number of samples and the seed, because torch.randperm on a
// CPU is a Mersenne Twister and a Fisher-Yates shuffle, and DistributedSampler
// deals what it returns to the ranks like cards. [Spec] is what has to be said,
// [Order] is the order that it means, equal to torch's in every position; the
// files in testdata were made with torch itself. [Shard] and [Interleave] are
// the orders that tf.data reads files and records in.
//
// An order is advice. One that is wrong costs speed, and nothing here is ever
// asked whether a sample exists or what is in it.
package plan
