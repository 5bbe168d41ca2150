// gogetter fetches one URL into one file as Packer does: by go-getter, with a checksum in the URL and what an earlier run
// has left in the file. minikube's go-getter (the first major version) has the same HTTP code, but needs half a cloud to build.
package main

import (
	"context"
	"fmt"
	"os"

	getter "github.com/hashicorp/go-getter/v2"
)

func main() {
	http := &getter.HttpGetter{Netrc: true, XTerraformGetDisabled: true}
	client := &getter.Client{Getters: []getter.Getter{http}, Decompressors: map[string]getter.Decompressor{}}
	request := &getter.Request{Src: os.Args[1], Dst: os.Args[2], GetMode: getter.ModeFile}
	if _, err := client.Get(context.Background(), request); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
