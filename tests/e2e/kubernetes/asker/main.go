// Command asker asks a name server the same question for ever, from one UDP socket, as resolvers that keep theirs do.
//
// It prints a line for each question: answered, silent or refused. A refusal ends the socket, as it does in a
// program that handles the error, and the next question takes a new one.
//
//	asker SERVER:PORT NAME
package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	patience = time.Second
	pause    = 20 * time.Millisecond
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: asker SERVER:PORT NAME")
		os.Exit(2)
	}
	var socket net.Conn
	for id := uint16(1); ; id++ {
		if socket == nil {
			var err error
			if socket, err = net.Dial("udp", os.Args[1]); err != nil {
				fmt.Println("refused", err)
				time.Sleep(pause)
				continue
			}
		}
		if err := ask(socket, id); err == nil {
			fmt.Println("answered")
		} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			fmt.Println("silent")
		} else {
			fmt.Println("refused", err)
			socket.Close()
			socket = nil
		}
		time.Sleep(pause)
	}
}

// ask sends one question and waits for its answer; late answers to earlier ones are passed over.
func ask(socket net.Conn, id uint16) error {
	name, err := dnsmessage.NewName(os.Args[2])
	if err != nil {
		return err
	}
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	packed, err := question.Pack()
	if err != nil {
		return err
	}
	if _, err := socket.Write(packed); err != nil {
		return err
	}
	if err := socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	for {
		length, err := socket.Read(buffer)
		if err != nil {
			return err
		}
		var answer dnsmessage.Message
		if answer.Unpack(buffer[:length]) == nil && answer.ID == id && len(answer.Answers) > 0 {
			return nil
		}
	}
}
