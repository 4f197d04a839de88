package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/covey-cache/covey"
	"github.com/covey-cache/covey/dataset"
	"github.com/covey-cache/covey/fetch"
)

// A manifest is a text file: a first line that names the format, one JSON object a
// line for each object with the digests of its blocks, and a last line with the
// signature over the SHA-256 of all lines before it.
const (
	manifestHead   = "covey-manifest-1\n"
	manifestDomain = "covey/manifest/1\n"
	signaturePlain = "signature "
	// signerCluster is in the signature of an agent that has the cluster key; other
	// agents have "peer:" and their ID there.
	signerCluster = "cluster"
	signerPeer    = "peer:"
	// maxManifestLine bounds one line: a key, and 64 bytes of text for each block.
	// 256 GiB in blocks of 4 MiB are 4 MiB of it.
	maxManifestLine = 64 << 20
	// maxManifestBlocks bounds what is kept in memory: 64 TiB in blocks of 4 MiB, half a
	// gigabyte of digests.
	maxManifestBlocks = 16 << 20
)

// manifestLine is one object.
type manifestLine struct {
	Origin    string   `json:"origin"`
	Key       string   `json:"key"`
	Version   string   `json:"version"`
	Size      int64    `json:"size"`
	BlockSize int64    `json:"block_size"`
	Digests   []string `json:"digests"`
}

func (l manifestLine) object() covey.Object {
	return covey.Object{Origin: l.Origin, Key: l.Key, Version: l.Version, Size: l.Size, BlockSize: l.BlockSize}
}

// Manifest has the digests of blocks, by somebody whose signature was checked. It
// implements fetch.Manifest and does not change.
type Manifest struct {
	digests map[covey.ObjectID][]covey.Digest
	blocks  int
}

// Digest returns the digest of a block, false when the manifest does not list it.
func (m *Manifest) Digest(l covey.Locator) (covey.Digest, bool) {
	d := m.digests[l.Object.ID()]
	if l.Index < 0 || l.Index >= len(d) {
		return covey.Digest{}, false
	}
	return d[l.Index], true
}

// signature is the last line of a manifest.
type signature struct {
	signer string
	bytes  []byte
}

func parseSignature(line string) (signature, error) {
	signer, text, ok := strings.Cut(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), signaturePlain), " ")
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(b) != ed25519.SignatureSize {
		return signature{}, fmt.Errorf("malformed signature: %w", covey.ErrInvalid)
	}
	return signature{signer, b}, nil
}

// readManifest reads a manifest and checks its signature. Nothing is believed
// before the last line.
func readManifest(r io.Reader, verify func(sum []byte, s signature) error) (*Manifest, error) {
	m := &Manifest{digests: make(map[covey.ObjectID][]covey.Digest)}
	hash := sha256.New()
	lines := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("it ends without a signature: %w", covey.ErrInvalid)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if n > 1 && bytes.HasPrefix(line, []byte(signaturePlain)) {
			s, err := parseSignature(string(line))
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			if _, err := lines.ReadByte(); !errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("line %d: something follows the signature: %w", n, covey.ErrInvalid)
			}
			return m, verify(hash.Sum(nil), s)
		}
		hash.Write(line)
		switch {
		case n == 1 && string(line) != manifestHead:
			return nil, fmt.Errorf("it does not begin with %q: %w", strings.TrimSpace(manifestHead), covey.ErrInvalid)
		case n > 1:
			if err := m.add(line); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
}

// readLine reads a line with its end, however long up to the limit.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxManifestLine {
			return nil, fmt.Errorf("longer than %d bytes: %w", maxManifestLine, covey.ErrInvalid)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// add takes in the line of one object.
func (m *Manifest) add(line []byte) error {
	var l manifestLine
	if err := json.Unmarshal(line, &l); err != nil {
		return fmt.Errorf("not the JSON of an object: %w", covey.ErrInvalid)
	}
	o := l.object()
	if o.Blocks() > 0 {
		if err := o.Block(0).Validate(); err != nil {
			return err
		}
	}
	if l.Size < 0 || len(l.Digests) != o.Blocks() || m.blocks+len(l.Digests) > maxManifestBlocks {
		return fmt.Errorf("%d digests of an object of %d bytes: %w", len(l.Digests), l.Size, covey.ErrInvalid)
	}
	digests := make([]covey.Digest, len(l.Digests))
	for i, text := range l.Digests {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != len(digests[i]) {
			return fmt.Errorf("digest %d is none: %w", i, covey.ErrInvalid)
		}
		digests[i] = covey.Digest(b)
	}
	id := o.ID()
	if m.digests[id] != nil {
		return fmt.Errorf("an object that is listed twice: %w", covey.ErrInvalid)
	}
	m.digests[id] = digests
	m.blocks += len(digests)
	return nil
}

// manifest returns what the agent was told to hold everything against, nil when it
// was not.
func (a *Agent) manifest() (fetch.Manifest, error) {
	if a.opts.VerifyManifest == "" {
		return nil, nil
	}
	m, err := a.openManifest(a.opts.VerifyManifest)
	if err != nil {
		return nil, err
	}
	a.log.Info("reading only what the manifest lists", "objects", len(m.digests), "blocks", m.blocks)
	return m, nil
}

// openManifest reads the manifest that the agent is to hold everything against. It
// must be signed with the cluster's key, or by this agent itself.
func (a *Agent) openManifest(file string) (*Manifest, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	defer f.Close()
	m, err := readManifest(f, a.network.checkManifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", file, err)
	}
	return m, nil
}

// signManifest signs with the cluster's key, or the node's own if it does not have
// that.
func (n *Network) signManifest(sum []byte) (signature, error) {
	signed := append([]byte(manifestDomain), sum...)
	if n.opts.Key != nil {
		k, err := n.opts.Key.signer()
		if err != nil {
			return signature{}, err
		}
		return signature{signerCluster, ed25519.Sign(k, signed)}, nil
	}
	b, err := n.host.Peerstore().PrivKey(n.id).Sign(signed)
	if err != nil {
		return signature{}, fmt.Errorf("sign manifest: %w", err)
	}
	return signature{signerPeer + n.id.String(), b}, nil
}

// checkManifest fails with covey.ErrDenied for a signature that is neither the
// cluster's nor this node's.
func (n *Network) checkManifest(sum []byte, s signature) error {
	signed := append([]byte(manifestDomain), sum...)
	switch {
	case s.signer == signerCluster && n.signer != nil:
		if ed25519.Verify(n.signer.Public(), signed, s.bytes) {
			return nil
		}
	case s.signer == signerPeer+n.id.String():
		key, err := n.id.ExtractPublicKey()
		if err != nil {
			return fmt.Errorf("check manifest: %w", err)
		}
		if ok, err := key.Verify(signed, s.bytes); err == nil && ok {
			return nil
		}
	default:
		return fmt.Errorf("it is signed by %q, and only this cluster and this agent are trusted: %w", clip(s.signer), covey.ErrDenied)
	}
	return fmt.Errorf("its signature does not fit: it was changed, or is of another cluster: %w", covey.ErrDenied)
}

// writeManifest writes the digests of every file at or below rel, which have just
// been brought here, to a file of the agent's host. The file is there whole or not
// at all.
func (a *Agent) writeManifest(ctx context.Context, ds *dataset.Dataset, rel, file string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is the one to tell
			err = fmt.Errorf("write manifest %s: %w", file, err)
		}
	}()
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<16)
	hash := sha256.New()
	out := io.MultiWriter(w, hash)
	if _, err := io.WriteString(out, manifestHead); err != nil {
		return err
	}
	var failed error
	err = a.eachFile(ctx, ds, rel, func(path string, e dataset.Entry) {
		if failed == nil {
			failed = a.writeManifestLine(ctx, out, ds, path, e)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	s, err := a.network.signManifest(hash.Sum(nil))
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s%s %s\n", signaturePlain, s.signer, base64.StdEncoding.EncodeToString(s.bytes))
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func (a *Agent) writeManifestLine(ctx context.Context, w io.Writer, ds *dataset.Dataset, path string, e dataset.Entry) error {
	o := ds.Object(path, e)
	l := manifestLine{Origin: o.Origin, Key: o.Key, Version: o.Version, Size: o.Size, BlockSize: o.BlockSize, Digests: []string{}}
	for i := range o.Blocks() {
		extent, slot, err := ds.Extent(ctx, path, e, i)
		if err != nil {
			return err
		}
		h, err := a.fetcher.Get(ctx, extent, slot)
		if err != nil {
			return err
		}
		l.Digests = append(l.Digests, h.Digest().String())
		h.Release()
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
