// Package scenario reads what a simulated mesh is to go through: how many nodes
// with which rates, what they read in which order, which faults strike when, and
// what must hold at the end.
//
// A scenario is a YAML file; [Shipped] are embedded. What a field may say is in
// the types below. A field that does not exist, a value that makes no sense or
// an expectation of something that is not measured is an error in one line with
// the place in the file.
package scenario

import "time"

// Scenario is one file: a base and the cases that vary it.
type Scenario struct {
	Name  string
	About string
	// Cases has at least one; a file without cases is one case without a name.
	Cases []Case
}

// Case is one run of a mesh.
type Case struct {
	// Name is "" where the file has no cases.
	Name string `yaml:"-"`
	// Seed decides inputs, topology and the fault schedule.
	Seed uint64 `yaml:"seed"`
	// Nodes are there from the start; a join fault brings more.
	Nodes int `yaml:"nodes"`
	// Zones and Racks are how many there are; racks are dealt to zones in turn,
	// nodes to racks in blocks.
	Zones int `yaml:"zones"`
	Racks int `yaml:"racks"`
	// Data is what is read.
	Data Data `yaml:"data"`
	// Cache is what each node may keep: a size, or a share of the data set that
	// all nodes together may keep ("80%"). Without it everything fits.
	Cache Amount `yaml:"cache"`
	// Epochs is how often the data set is read, with a barrier between, as
	// training has one.
	Epochs int `yaml:"epochs"`
	// Share says what a node reads in an epoch.
	Share Share `yaml:"share"`
	// Order says in which order.
	Order Order `yaml:"order"`
	// Readers is how many blocks a node reads at once, and Ahead how many blocks
	// of its order it announces to the prefetcher before it reads them.
	Readers int `yaml:"readers"`
	Ahead   int `yaml:"ahead"`
	// Compute is the time that a reader spends on a block before it reads the
	// next one.
	Compute Duration `yaml:"compute"`
	Rates   Rates    `yaml:"rates"`
	Origin  Origin   `yaml:"origin"`
	Faults  []Fault  `yaml:"faults"`
	Chaos   *Chaos   `yaml:"chaos"`
	// Limit ends the run, which has failed then, in virtual time.
	Limit Duration `yaml:"limit"`
	// Expect must hold at the end.
	Expect []Expectation `yaml:"expect"`
}

// Data is a data set: Objects of Size each, in blocks of Block.
type Data struct {
	Objects int   `yaml:"objects"`
	Size    Bytes `yaml:"size"`
	Block   Bytes `yaml:"block"`
}

// Share is what a node reads in an epoch.
type Share string

// The shares: Sharded deals a fresh shuffle of all blocks to the nodes, as a
// distributed sampler does; All gives every node everything.
const (
	Sharded Share = "sharded"
	All     Share = "all"
)

// Order is the order in which a node reads.
type Order string

// The orders: Sequential is that of the listing; Same a shuffle that all nodes
// have in common, fresh in each epoch; Shuffled one of each node's own.
const (
	Sequential Order = "sequential"
	Same       Order = "same"
	Shuffled   Order = "shuffled"
)

// Rates are those of the network.
type Rates struct {
	// NIC is each node's line rate in each direction.
	NIC Rate `yaml:"nic"`
	// SameRack, SameZone and Far are one-way latencies.
	SameRack Duration `yaml:"same-rack"`
	SameZone Duration `yaml:"same-zone"`
	Far      Duration `yaml:"far"`
}

// Origin is the under-storage.
type Origin struct {
	// Rate bounds all its answers together.
	Rate Rate `yaml:"rate"`
	// FirstByte is the median time to the first byte; one request in a hundred
	// takes five times that.
	FirstByte Duration `yaml:"first-byte"`
	// Requests is how many it serves at once; more are answered 503.
	Requests int `yaml:"requests"`
}

// Kind says what a fault does.
type Kind string

// The kinds of faults.
const (
	// Kill ends processes; For later they are back with their cache, except for
	// the last second of it. Without For they stay away.
	Kill Kind = "kill"
	// Wipe is Kill with the cache lost.
	Wipe Kind = "wipe"
	// Partition cuts the nodes off from the others, both ways, silently.
	Partition Kind = "partition"
	// OneWay lets the nodes send to the others and hear nothing of them.
	OneWay Kind = "one-way"
	// Slow makes the nodes' NICs Factor of what they are.
	Slow Kind = "slow"
	// Lie makes the nodes send wrong bytes.
	Lie Kind = "lie"
	// Claim makes the nodes announce every block and have none of what they
	// are asked for.
	Claim Kind = "claim"
	// Outage makes the origin refuse every request.
	Outage Kind = "outage"
	// Rack kills whole racks; For later they are back, with their caches lost
	// if Factor is 0.
	Rack Kind = "rack"
	// Join brings new nodes within Over.
	Join Kind = "join"
)

// Fault is what strikes at a time: Count nodes, or racks, chosen by the seed.
type Fault struct {
	At   Duration `yaml:"at"`
	Kind Kind     `yaml:"kind"`
	// Nodes is a number or a share of the nodes there are ("5%").
	Nodes Amount `yaml:"nodes"`
	// For is how long it lasts; zero is to the end.
	For Duration `yaml:"for"`
	// Every repeats it, on other nodes, Times times.
	Every Duration `yaml:"every"`
	Times int      `yaml:"times"`
	// Over spreads the nodes' turns evenly.
	Over   Duration `yaml:"over"`
	Factor float64  `yaml:"factor"`
}

// Chaos draws faults of all kinds from the seed, from the start until Until.
type Chaos struct {
	// Faults is how many.
	Faults int      `yaml:"faults"`
	Until  Duration `yaml:"until"`
	// Longest bounds how long one lasts.
	Longest Duration `yaml:"longest"`
}

// D is the duration as package time has it.
func (d Duration) D() time.Duration { return time.Duration(d) }
