package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How many sessions of a kind are held at once.
const idleSessions = 200

// Closes what a session holds open.
type closer func()

// KiB of the process at -pid for each session that says nothing, as JSON, by transport and kind. What one
// kind leaves free the next uses: a daemon that has just started tells most about one of them (-run).
func idle(s server) int {
	kinds := []struct {
		name string
		open func(server, transport) (closer, error)
	}{
		{"exec", idleExec},
		{"attach", idleAttach},
		{"port-forward with a connection", idleForward},
	}
	figures, code := map[string]float64{}, 0
	for _, k := range kinds {
		for _, t := range []transport{spdyTransport, wsTransport} {
			name := fmt.Sprintf("%s %s", t, k.name)
			if !strings.Contains(name, *only) {
				continue
			}
			kib, err := perSession(func() (closer, error) { return k.open(s, t) })
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
				code = 1
				continue
			}
			figures[name] = kib
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	_ = out.Encode(figures)
	return code
}

func perSession(open func() (closer, error)) (float64, error) {
	// The first ones load what all have in common.
	for range 5 {
		first, err := open()
		if err != nil {
			return 0, err
		}
		defer first()
	}
	before, err := settledPss()
	if err != nil {
		return 0, err
	}
	for range idleSessions {
		closed, err := open()
		if err != nil {
			return 0, err
		}
		defer closed()
	}
	after, err := settledPss()
	return float64(after-before) / idleSessions, err
}

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB$`)

// KiB, once what is given back after a while has been.
func settledPss() (int, error) {
	time.Sleep(3 * time.Second)
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", *pid))
	if err != nil {
		return 0, err
	}
	found := pssLine.FindSubmatch(rollup)
	if found == nil {
		return 0, errors.New("the process has no memory")
	}
	return strconv.Atoi(string(found[1]))
}

// Says what it is given, and closes a channel with the first byte.
type firstByte struct {
	once sync.Once
	came chan struct{}
}

func (f *firstByte) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.came) })
	return len(p), nil
}

// A session that has said something once, and then nothing more.
func idleRemote(run func(context.Context, remotecommand.StreamOptions) error) (closer, error) {
	ctx, cancel := context.WithCancel(context.Background())
	in, say := io.Pipe()
	out := &firstByte{came: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
		in.Close()
	}()
	closed := func() { cancel(); say.Close() }
	if _, err := io.WriteString(say, "hello\n"); err != nil {
		closed()
		return nil, fmt.Errorf("the session ended: %w", <-ended)
	}
	select {
	case <-out.came:
		return closed, nil
	case err := <-ended:
		closed()
		return nil, fmt.Errorf("the session ended: %w", err)
	}
}

func idleExec(s server, t transport) (closer, error) {
	return idleRemote(func(ctx context.Context, o remotecommand.StreamOptions) error {
		url, err := s.exec(&cri.ExecRequest{ContainerId: *container, Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			return err
		}
		executor, err := t.executor(url, true)
		if err != nil {
			return err
		}
		return executor.StreamWithContext(ctx, o)
	})
}

func idleAttach(s server, t transport) (closer, error) {
	if *attached == "" {
		return nil, errors.New("-attach is not given")
	}
	return idleRemote(func(ctx context.Context, o remotecommand.StreamOptions) error {
		return t.attach(ctx, s.(runtime), *attached, o)
	})
}

func idleForward(s server, t transport) (closer, error) {
	port, stop, err := echoServer(s, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f, err := forward(s, t, port)
	if err != nil {
		stop()
		return nil, err
	}
	closed := func() { f.stop(); stop() }
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.local[0]))
	if err != nil {
		closed()
		return nil, err
	}
	one := []byte{1}
	if _, err = conn.Write(one); err == nil {
		_, err = io.ReadFull(conn, one)
	}
	if err != nil {
		conn.Close()
		closed()
		return nil, err
	}
	return func() { conn.Close(); closed() }, nil
}
