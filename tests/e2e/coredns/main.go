// Command coredns is CoreDNS with the plugins that the cluster and upstream's tests use.
//
// All of CoreDNS's would bring the libraries of several clouds, which take longer to build than the rest.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"
)

// A query meets the plugins in this order.
func init() {
	dnsserver.Directives = []string{
		"reload", "health", "ready", "errors", "log", "template", "hosts", "kubernetes", "forward",
	}
}

func main() {
	coremain.Run()
}
