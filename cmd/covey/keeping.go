package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// keeping is what gives way in the cache, and when.
type keeping struct {
	policy    string        // "" for the default
	idleAfter time.Duration // 0 for the default, negative for never
	sets      []datasetSpec
}

// datasetSpec is one item of "datasets" in the config file.
type datasetSpec struct {
	source, path, policy string
	ttl                  time.Duration
}

var cachePolicies = []string{"epoch", "lru", "lfu"}

func (k *keeping) parse(l layer, _ func(string) string) error {
	if v, ok := l["cache-policy"]; ok {
		if !slices.Contains(cachePolicies, v.words[0]) {
			return l.fault("cache-policy", fmt.Errorf("%q: want epoch, lru or lfu", v.words[0]))
		}
		k.policy = v.words[0]
	}
	if v, ok := l["idle-after"]; ok {
		d, err := time.ParseDuration(v.words[0])
		if v.words[0] == "never" {
			d, err = -1, nil
		} else if err == nil && d < time.Minute {
			err = fmt.Errorf("less than a minute")
		}
		if err != nil {
			return l.fault("idle-after", fmt.Errorf("%q: write a time of at least 1m, like 24h, or never", v.words[0]))
		}
		k.idleAfter = d
	}
	k.sets = l[datasetsKey].sets
	return nil
}

// datasetsKey is the key of the config file that has no flag: it is a list of
// mappings.
const datasetsKey = "datasets"

// addDatasets adds the key of data sets.
func (l layer) addDatasets(path string, key, val *yaml.Node) error {
	at := fmt.Sprintf("config %s: line %d", path, key.Line)
	if _, twice := l[datasetsKey]; twice {
		return misuse("%s: %s is given twice", at, datasetsKey)
	}
	if val.Kind != yaml.SequenceNode {
		return misuse("%s: %s wants a list of mappings, each with a source", at, datasetsKey)
	}
	v := value{from: at + ": " + datasetsKey}
	for _, item := range val.Content {
		s, err := parseDataset(item)
		if err == nil && slices.ContainsFunc(v.sets, func(o datasetSpec) bool { return o.source == s.source && o.path == s.path }) {
			err = fmt.Errorf("%s %s is given twice", s.source, s.path)
		}
		if err != nil {
			return misuse("config %s: line %d: %s: %w", path, item.Line, datasetsKey, err)
		}
		v.sets = append(v.sets, s)
	}
	l[datasetsKey] = v
	return nil
}

// parseDataset reads {source: URL, path: DIR, policy: NAME, ttl: TIME}.
func parseDataset(item *yaml.Node) (s datasetSpec, err error) {
	if item.Kind != yaml.MappingNode {
		return s, fmt.Errorf("want a mapping with source, path, policy and ttl")
	}
	var ttl string
	fields := map[string]*string{"source": &s.source, "path": &s.path, "policy": &s.policy, "ttl": &ttl}
	for i := 0; i < len(item.Content); i += 2 {
		name, val := item.Content[i].Value, item.Content[i+1]
		to := fields[name]
		switch {
		case to == nil:
			return s, fmt.Errorf("unknown key %q: want source, path, policy or ttl", name)
		case val.Kind != yaml.ScalarNode:
			return s, fmt.Errorf("%s has a value of the wrong kind", name)
		}
		*to = val.Value
	}
	if s.source == "" {
		return s, fmt.Errorf("the source is missing")
	}
	if s.source, err = absSource(s.source); err != nil {
		return s, err
	}
	s.path = strings.Trim(s.path, "/")
	if slices.Contains(strings.Split(s.path, "/"), "..") {
		return s, fmt.Errorf("path %q leads out of the source", s.path)
	}
	if s.policy != "ttl" && !slices.Contains(cachePolicies, s.policy) {
		return s, fmt.Errorf("policy %q: want epoch, lru, lfu or ttl", s.policy)
	}
	if (s.policy == "ttl") != (ttl != "") {
		return s, fmt.Errorf("policy %s with a ttl of %q: ttl goes with policy ttl, and only with that", s.policy, ttl)
	}
	if ttl != "" {
		if s.ttl, err = time.ParseDuration(ttl); err != nil || s.ttl < time.Minute {
			return s, fmt.Errorf("ttl %q: write a time of at least 1m, like 12h", ttl)
		}
	}
	return s, nil
}
