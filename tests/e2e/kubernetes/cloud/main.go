// Command cloud is what a cloud provider is to a cluster: it gives load-balancer addresses to Services and brings
// packets for them to the nodes.
//
// Which Services want one, and which nodes may be asked, is for upstream's own service controller to say. The load
// balancer is a router: each address is an equal-cost route over the nodes whose health check answers, in the
// network namespace this runs in. So packets reach a node with the client's address as source and the load
// balancer's as destination, as behind any balancer that leaves packets as they are. Connections spread over the
// nodes by their ports; those of a Service with session affinity all go to one node, which alone can keep it.
//
//	cloud KUBECONFIG PREFIX    # PREFIX: the first three numbers of the addresses, like 192.168.231
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	provider "k8s.io/cloud-provider"
	"k8s.io/cloud-provider/controllers/service"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/metrics/prometheus/controllers"
)

const (
	// The service proxy's own health, for Services that any node may serve.
	proxyPort  = 10256
	checkEvery = 500 * time.Millisecond
	// Addresses PREFIX.1 to PREFIX.250 are given out.
	addresses = 250
)

// frontend is one Service's address and who serves it.
type frontend struct {
	address string
	port    int32
	nodes   []string
	// Its clients stay where they were.
	sticky bool
	// Next hops of the route that is in force.
	hops string
}

// cloud implements the part of a cloud that the service controller uses.
type cloud struct {
	prefix string

	sync.Mutex
	last      int
	frontends map[types.UID]*frontend
}

func (c *cloud) ProviderName() string { return "cluster" }
func (c *cloud) HasClusterID() bool   { return true }

func (c *cloud) Initialize(provider.ControllerClientBuilder, <-chan struct{}) {}

func (c *cloud) LoadBalancer() (provider.LoadBalancer, bool) { return c, true }
func (c *cloud) Instances() (provider.Instances, bool)       { return nil, false }
func (c *cloud) InstancesV2() (provider.InstancesV2, bool)   { return nil, false }
func (c *cloud) Zones() (provider.Zones, bool)               { return nil, false }
func (c *cloud) Clusters() (provider.Clusters, bool)         { return nil, false }
func (c *cloud) Routes() (provider.Routes, bool)             { return nil, false }

func (c *cloud) GetLoadBalancerName(_ context.Context, _ string, service *core.Service) string {
	return string(service.UID)
}

func (c *cloud) GetLoadBalancer(_ context.Context, _ string, service *core.Service) (*core.LoadBalancerStatus, bool, error) {
	c.Lock()
	defer c.Unlock()
	found, ok := c.frontends[service.UID]
	if !ok {
		return nil, false, nil
	}
	return found.status(), true, nil
}

func (c *cloud) EnsureLoadBalancer(_ context.Context, _ string, service *core.Service, nodes []*core.Node) (*core.LoadBalancerStatus, error) {
	c.Lock()
	defer c.Unlock()
	wanted, ok := c.frontends[service.UID]
	if !ok {
		address, err := c.free()
		if err != nil {
			return nil, err
		}
		wanted = &frontend{address: address}
		c.frontends[service.UID] = wanted
	}
	wanted.follow(service, nodes)
	return wanted.status(), nil
}

func (c *cloud) UpdateLoadBalancer(_ context.Context, _ string, service *core.Service, nodes []*core.Node) error {
	c.Lock()
	defer c.Unlock()
	if known, ok := c.frontends[service.UID]; ok {
		known.follow(service, nodes)
	}
	return nil
}

func (c *cloud) EnsureLoadBalancerDeleted(_ context.Context, _ string, service *core.Service) error {
	c.Lock()
	defer c.Unlock()
	if known, ok := c.frontends[service.UID]; ok {
		known.route(nil)
		delete(c.frontends, service.UID)
	}
	return nil
}

// free is an address nobody has: the one after the last, so that a test never meets its predecessor's.
func (c *cloud) free() (string, error) {
	taken := make(map[string]bool, len(c.frontends))
	for _, known := range c.frontends {
		taken[known.address] = true
	}
	for range addresses {
		c.last = c.last%addresses + 1
		if address := fmt.Sprintf("%s.%d", c.prefix, c.last); !taken[address] {
			return address, nil
		}
	}
	return "", fmt.Errorf("all %d addresses of %s are taken", addresses, c.prefix)
}

func (f *frontend) status() *core.LoadBalancerStatus {
	return &core.LoadBalancerStatus{Ingress: []core.LoadBalancerIngress{{IP: f.address}}}
}

func (f *frontend) follow(service *core.Service, nodes []*core.Node) {
	f.port = proxyPort
	if port := service.Spec.HealthCheckNodePort; port != 0 {
		f.port = port
	}
	f.sticky = service.Spec.SessionAffinity == core.ServiceAffinityClientIP
	f.nodes = f.nodes[:0]
	for _, node := range nodes {
		for _, address := range node.Status.Addresses {
			ip := net.ParseIP(address.Address)
			if address.Type == core.NodeInternalIP && ip != nil && ip.To4() != nil {
				f.nodes = append(f.nodes, address.Address)
			}
		}
	}
	slices.Sort(f.nodes)
}

// route sends packets for the address to these nodes; to nobody if there are none.
func (f *frontend) route(nodes []string) {
	var hops []string
	for _, node := range nodes {
		hops = append(hops, "nexthop", "via", node)
	}
	wanted := strings.Join(hops, " ")
	if wanted == f.hops {
		return
	}
	arguments := append([]string{"route", "replace", f.address}, hops...)
	if wanted == "" {
		arguments = []string{"route", "delete", f.address}
	}
	if said, err := exec.Command("ip", arguments...).CombinedOutput(); err != nil {
		log.Printf("ip %s: %v: %s", strings.Join(arguments, " "), err, said)
		return
	}
	log.Printf("ip %s", strings.Join(arguments, " "))
	f.hops = wanted
}

// check asks every node that may serve something whether it does.
func (c *cloud) check(client *http.Client) {
	type question struct {
		node string
		port int32
	}
	c.Lock()
	answers := make(map[question]bool)
	for _, known := range c.frontends {
		for _, node := range known.nodes {
			answers[question{node, known.port}] = false
		}
	}
	c.Unlock()

	// Without the lock: a node may be slow to answer.
	for asked := range answers {
		response, err := client.Get(fmt.Sprintf("http://%s:%d/healthz", asked.node, asked.port))
		if err != nil {
			continue
		}
		response.Body.Close()
		answers[asked] = response.StatusCode == http.StatusOK
	}

	c.Lock()
	defer c.Unlock()
	for _, known := range c.frontends {
		var serving []string
		for _, node := range known.nodes {
			if answers[question{node, known.port}] {
				serving = append(serving, node)
			}
		}
		if known.sticky && len(serving) > 1 {
			serving = serving[:1]
		}
		known.route(serving)
	}
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: cloud KUBECONFIG PREFIX")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	shared := informers.NewSharedInformerFactory(client, 0)
	ours := &cloud{prefix: os.Args[2], frontends: map[types.UID]*frontend{}}
	controller, err := service.New(ours, client, shared.Core().V1().Services(), shared.Core().V1().Nodes(),
		"cluster", featuregate.NewFeatureGate())
	if err != nil {
		log.Fatal(err)
	}
	shared.Start(ctx.Done())
	go controller.Run(ctx, 4, controllers.NewControllerManagerMetrics("cluster"))

	asking := &http.Client{Timeout: time.Second}
	for ctx.Err() == nil {
		ours.check(asking)
		time.Sleep(checkEvery)
	}
}
