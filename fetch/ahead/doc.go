// Package ahead reads what training jobs have announced before they ask for it.
//
// A job's [Manifest] says which samples there are and a [Order] in which order
// each rank reads them; [Resolve] turns the manifest into a [Layout], which knows
// the blocks behind each sample. With that, every node of a job knows what every
// rank will read next, without asking anybody.
//
// A plan is advice. A wrong one costs speed, never correctness: everything here
// ends in the same fetches that a read would begin.
package ahead
