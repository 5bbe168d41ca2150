// limadl downloads one URL through Lima's own downloader, as `limactl start` would: its cache, its lock, its digest
// check, its HEAD for a digest-less image. Prints what it did as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/lima-vm/lima/v2/pkg/downloader"
	"github.com/opencontainers/go-digest"
)

func main() {
	cache := flag.String("cache", "", "cache directory of this Lima")
	expected := flag.String("digest", "", "expected digest, ALG:HEX")
	out := flag.String("out", "", "where to put the file")
	flag.Parse()
	options := []downloader.Opt{downloader.WithCacheDir(*cache)}
	if *expected != "" {
		options = append(options, downloader.WithExpectedDigest(digest.Digest(*expected)))
	}
	downloader.HideProgress = true
	result, err := downloader.Download(context.Background(), *out, flag.Arg(0), options...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"status":        result.Status,
		"last_modified": result.LastModified,
		"content_type":  result.ContentType,
		"validated":     result.ValidatedDigest,
	})
}
