package main

import "testing"

// A mount's own options are found by its directory, whatever is in its name.
func TestConfigMountOptions(t *testing.T) {
	c, err := load(t, nil, "", "--mount", "/src=/a b", "--mount", "s3://bkt/p?region=x=/mnt/c", "--mount", "/src2=/d",
		"--mount-options", "/mnt/c=rw,uid=7", "--mount-options", "/a b=allow_other", "--staging", "3GiB", "--allow-other")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ro,allow_other", "rw,uid=7", "ro"} {
		if got := c.mounts[i].options.String(); got != want {
			t.Errorf("mount %d: %q, want %q", i, got, want)
		}
	}
	if c.staging != 3<<30 || !c.allowOther {
		t.Errorf("staging %d, allow other %v", c.staging, c.allowOther)
	}
	for _, args := range [][]string{
		{"--mount", "/s=/d", "--mount-options", "/e=rw"}, {"--mount", "/s=/d", "--mount-options", "/d"},
		{"--mount", "/s=/d", "--mount-options", "/d=rwx"}, {"--staging", "much"}, {"--staging", "0"}, {"--allow-other=maybe"},
	} {
		if _, err := load(t, nil, "", args...); err == nil {
			t.Errorf("%q: taken", args)
		}
	}
}
