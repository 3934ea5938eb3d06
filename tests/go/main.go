// Command checker verifies a KALA audit log with Go's own transparency-log packages and nothing of KALA's.
//
//	checker mirror <url> <vkey>   mirrors the log over its tile API and verifies every entry of it
//	checker judge                 judges inclusion and consistency proofs, one JSON case per line of standard input
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "mirror" {
		if err := mirror(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "judge" {
		judge()
		return
	}
	fmt.Fprintln(os.Stderr, "usage: checker mirror <url> <vkey> | checker judge")
	os.Exit(2)
}

// A reader fetches tiles by the paths of c2sp.org/tlog-tiles, which name the level without Go's height.
type reader struct{ prefix string }

func (r reader) Height() int { return 8 }

func (r reader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r reader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		got, err := r.get("tile/" + strings.TrimPrefix(tile.Path(), "tile/8/"))
		if err != nil {
			return nil, err
		}
		data[i] = got
	}
	return data, nil
}

func (r reader) get(path string) ([]byte, error) {
	response, err := http.Get(r.prefix + "/" + path)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", path, response.Status, data)
	}
	return data, nil
}

// checkpoint opens the log's signed checkpoint and gives the tree that it names.
func (r reader) checkpoint(vkey string) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tlog.Tree{}, err
	}
	text, err := r.get("checkpoint")
	if err != nil {
		return tlog.Tree{}, err
	}
	signed, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		return tlog.Tree{}, fmt.Errorf("malformed checkpoint %q", signed.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return tlog.Tree{}, fmt.Errorf("malformed root %q", lines[2])
	}
	tree := tlog.Tree{N: size}
	copy(tree.Hash[:], root)
	return tree, nil
}

func mirror(prefix, vkey string) error {
	log := reader{strings.TrimSuffix(prefix, "/")}
	tree, err := log.checkpoint(vkey)
	if err != nil {
		return err
	}
	// Every hash that it gives is verified against the tree.
	hashes := tlog.TileHashReader(tree, log)
	entries := int64(0)
	for first := int64(0); first < tree.N; first += 256 {
		width := tree.N - first
		if width > 256 {
			width = 256
		}
		read, err := log.bundle(hashes, first, int(width))
		if err != nil {
			return err
		}
		entries += read
	}
	if err := prove(tree, hashes); err != nil {
		return err
	}
	fmt.Printf("{\"entries\": %d, \"root\": %q}\n", entries, tree.Hash.String())
	return nil
}

// bundle reads the entries from first on and compares the hash of each with the tree's.
func (r reader) bundle(hashes tlog.HashReader, first int64, width int) (int64, error) {
	path := tlog.Tile{H: 8, L: 0, N: first / 256, W: width}.Path()
	data, err := r.get("tile/entries/" + strings.TrimPrefix(path, "tile/8/0/"))
	if err != nil {
		return 0, err
	}
	places := make([]int64, width)
	for i := range places {
		places[i] = tlog.StoredHashIndex(0, first+int64(i))
	}
	expected, err := hashes.ReadHashes(places)
	if err != nil {
		return 0, err
	}
	for i, hash := range expected {
		if len(data) < 2 || len(data) < 2+int(data[0])<<8+int(data[1]) {
			return 0, fmt.Errorf("entry %d is cut", first+int64(i))
		}
		length := int(data[0])<<8 + int(data[1])
		if tlog.RecordHash(data[2:2+length]) != hash {
			return 0, fmt.Errorf("entry %d is not what was signed", first+int64(i))
		}
		data = data[2+length:]
	}
	if len(data) != 0 {
		return 0, fmt.Errorf("the bundle of entry %d holds more", first)
	}
	return int64(width), nil
}

// prove makes and checks proofs with Go's own code, from tiles alone.
func prove(tree tlog.Tree, hashes tlog.HashReader) error {
	for old := int64(1); old <= tree.N; old += 1 + tree.N/97 {
		root, err := tlog.TreeHash(old, hashes)
		if err != nil {
			return err
		}
		steps, err := tlog.ProveTree(tree.N, old, hashes)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(steps, tree.N, tree.Hash, old, root); err != nil {
			return err
		}
		path, err := tlog.ProveRecord(tree.N, old-1, hashes)
		if err != nil {
			return err
		}
		leaf, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, old-1)})
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(path, tree.N, tree.Hash, old-1, leaf[0]); err != nil {
			return err
		}
	}
	return nil
}

// A proof to judge: of inclusion when Kind is "inclusion", where A is the index and Hash the leaf's, else of consistency,
// where A is the old size and Hash its root.
type proof struct {
	Kind  string
	A     int64
	Size  int64
	Hash  string
	Root  string
	Proof []string
}

func judge() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		var given proof
		if err := json.Unmarshal(lines.Bytes(), &given); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		fmt.Fprintln(out, given.holds())
	}
}

func (p proof) holds() bool {
	hash, root := parse(p.Hash), parse(p.Root)
	steps := make([]tlog.Hash, len(p.Proof))
	for i, text := range p.Proof {
		steps[i] = parse(text)
	}
	if p.Kind == "inclusion" {
		return tlog.CheckRecord(steps, p.Size, root, p.A, hash) == nil
	}
	return tlog.CheckTree(steps, p.Size, root, p.A, hash) == nil
}

func parse(text string) tlog.Hash {
	hash, err := tlog.ParseHash(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return hash
}
