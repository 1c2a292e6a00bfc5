// Command pause keeps a pod's namespaces open while its containers come and go.
//
// It is the first process of the pod's process namespace where one is shared, so it must also collect whatever
// the containers leave behind.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			for {
				ended, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
				if err != nil || ended <= 0 {
					break
				}
			}
		}
	}()

	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}
