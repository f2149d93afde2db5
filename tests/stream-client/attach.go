package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// What a session has said so far.
type transcript struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.text.String()
}

func (t *transcript) until(what string) error {
	for range 3000 {
		if strings.Contains(t.String(), what) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%q is not in %q", what, t.String())
}

// The size of a terminal that never changes.
type sizeOnce struct{ sent bool }

func (s *sizeOnce) Next() *remotecommand.TerminalSize {
	if s.sent {
		return nil
	}
	s.sent = true
	return &remotecommand.TerminalSize{Width: 132, Height: 43}
}

// Says a line, hears the answer, and goes; the container stays for the next.
func converse(s server, t transport, id, line, answer string, o remotecommand.StreamOptions) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	in, say := io.Pipe()
	defer say.Close()
	out := &transcript{}
	o.Stdin, o.Stdout = in, out
	ended := make(chan error, 1)
	go func() {
		err := t.attach(ctx, s.(runtime), id, o)
		// Nobody reads what is still to be said.
		in.CloseWithError(fmt.Errorf("the session ended: %v", err))
		ended <- err
	}()
	if _, err := io.WriteString(say, line+"\n"); err != nil {
		return err
	}
	if err := out.until(answer); err != nil {
		return err
	}
	cancel()
	<-ended
	return nil
}

func attachAgain(s server, t transport) error {
	if *attached == "" {
		return fmt.Errorf("-attach is not given")
	}
	for _, word := range []string{"one", "two", "three"} {
		line := fmt.Sprintf("%s-%s", word, t)
		if err := converse(s, t, *attached, line, "got "+line, remotecommand.StreamOptions{Stderr: io.Discard}); err != nil {
			return err
		}
	}
	return nil
}

func attachTerminal(s server, t transport) error {
	if *console == "" {
		return fmt.Errorf("-attach-tty is not given")
	}
	options := remotecommand.StreamOptions{Tty: true, TerminalSizeQueue: &sizeOnce{}}
	// The size may come after the first line.
	return converse(s, t, *console, "size\nsize\nsize", "43 132", options)
}
