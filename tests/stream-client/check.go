package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
)

// Everything that both transports must do. Returns the process's exit code.
func check(s server) int {
	checks := []struct {
		name string
		run  func(server, transport) error
	}{
		{"exit codes", exitCodes},
		{"a missing binary is named", missingBinary},
		{"stdout and stderr are apart", apart},
		{"stdin to its end and back", echo},
		{"bulk to stdin and from stdout", bulk},
		{"a terminal has its size", terminal},
		{"parallel short commands", parallel},
		{"archives as kubectl cp makes them", archives},
		{"background children do not hold the session", background},
		{"attach and detach", attachAgain},
		{"attach to a terminal", attachTerminal},
		{"forwarded connections", forwarded},
		{"a refused port", refusedPort},
	}
	failed := 0
	for _, c := range checks {
		for _, t := range []transport{spdyTransport, wsTransport} {
			name := fmt.Sprintf("%s over %s", c.name, t)
			if !strings.Contains(name, *only) {
				continue
			}
			begun := time.Now()
			err := c.run(s, t)
			took := time.Since(begun).Round(time.Millisecond)
			if err != nil {
				failed++
				fmt.Printf("FAILED  %s (%v): %v\n", name, took, err)
				continue
			}
			fmt.Printf("ok      %s (%v)\n", name, took)
		}
	}
	if failed > 0 {
		fmt.Printf("%d failed\n", failed)
		return 1
	}
	return 0
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func exitCodes(s server, t transport) error {
	for code, script := range map[int]string{0: "true", 1: "exit 1", 137: "kill -9 $$"} {
		var out bytes.Buffer
		err := t.run(s, sh("echo said; "+script), remotecommand.StreamOptions{Stdout: &out})
		got := 0
		var exit clientexec.CodeExitError
		if errors.As(err, &exit) {
			got = exit.Code
		} else if err != nil {
			return err
		}
		if got != code || out.String() != "said\n" {
			return fmt.Errorf("%q ended with %d and said %q", script, got, out.String())
		}
	}
	return nil
}

func missingBinary(s server, t transport) error {
	var out bytes.Buffer
	err := t.run(s, []string{"/no/such/program"}, remotecommand.StreamOptions{Stdout: &out})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		return fmt.Errorf("the error is %v", err)
	}
	return nil
}

func apart(s server, t transport) error {
	var out, errs bytes.Buffer
	err := t.run(s, sh("echo out; echo err >&2"), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
	if err != nil || out.String() != "out\n" || errs.String() != "err\n" {
		return fmt.Errorf("%v, %q, %q", err, out.String(), errs.String())
	}
	return nil
}

func echo(s server, t transport) error {
	for _, size := range []int{0, 1, 100, 40_000, 300_000} {
		content := random(size)
		var out bytes.Buffer
		options := remotecommand.StreamOptions{Stdin: bytes.NewReader(content), Stdout: &out}
		if err := t.run(s, []string{"cat"}, options); err != nil {
			return err
		}
		if !bytes.Equal(out.Bytes(), content) {
			return fmt.Errorf("of %d bytes %d came back, or others", size, out.Len())
		}
	}
	return nil
}

func random(size int) []byte {
	content := make([]byte, size)
	rand.New(rand.NewSource(int64(size))).Read(content)
	return content
}

// A reader of so many bytes that cost nothing to make, and their digest.
func stream(size int64) (io.Reader, string) {
	block := random(1 << 20)
	reader := func() io.Reader { return io.LimitReader(&repeat{block: block}, size) }
	digest := sha256.New()
	_, _ = io.Copy(digest, reader())
	return reader(), hex.EncodeToString(digest.Sum(nil))
}

type repeat struct {
	block []byte
	at    int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

func bulk(s server, t transport) error {
	size := int64(*megabytes) << 20
	reader, digest := stream(size)
	var out bytes.Buffer
	err := t.run(s, []string{"sha256sum"}, remotecommand.StreamOptions{Stdin: reader, Stdout: &out})
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out.String(), digest) {
		return fmt.Errorf("stdin: the container saw %q, not %s", out.String(), digest)
	}
	reader, digest = stream(size)
	back := sha256.New()
	err = t.run(s, []string{"cat"}, remotecommand.StreamOptions{Stdin: reader, Stdout: back})
	if err != nil {
		return err
	}
	if hex.EncodeToString(back.Sum(nil)) != digest {
		return errors.New("stdout: other bytes came back")
	}
	return nil
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, more := <-s
	if !more {
		return nil
	}
	return &size
}

func terminal(s server, t transport) error {
	queue := make(sizes, 1)
	queue <- remotecommand.TerminalSize{Width: 123, Height: 45}
	reader, writer := io.Pipe()
	out := &watched{want: make(map[string]chan struct{})}
	small, large := out.expect("45 123"), out.expect("50 200")
	go func() {
		<-small
		queue <- remotecommand.TerminalSize{Width: 200, Height: 50}
		<-large
		_, _ = writer.Write([]byte("exit 7\n"))
		close(queue)
	}()
	script := "trap 'stty size' WINCH; tty; while true; do stty size; read -t 1 line && $line; done"
	err := t.run(s, sh(script), remotecommand.StreamOptions{
		Stdin: reader, Stdout: out, Tty: true, TerminalSizeQueue: queue,
	})
	var exit clientexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		return fmt.Errorf("it ended with %v after %q", err, out.text())
	}
	if !strings.Contains(out.text(), "/dev/pts/") {
		return fmt.Errorf("no terminal: %q", out.text())
	}
	return nil
}

// Output that is waited for.
type watched struct {
	mu   sync.Mutex
	seen []byte
	want map[string]chan struct{}
}

func (w *watched) expect(text string) <-chan struct{} {
	c := make(chan struct{})
	w.want[text] = c
	return c
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, p...)
	for text, c := range w.want {
		if bytes.Contains(w.seen, []byte(text)) {
			close(c)
			delete(w.want, text)
		}
	}
	return len(p), nil
}

func (w *watched) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.seen)
}

func parallel(s server, t transport) error {
	const count = 200
	errs := make(chan error, count)
	for i := range count {
		go func() {
			var out bytes.Buffer
			want := fmt.Sprintf("number %d\n", i)
			err := t.run(s, []string{"echo", "number", fmt.Sprint(i)}, remotecommand.StreamOptions{Stdout: &out})
			if err == nil && out.String() != want {
				err = fmt.Errorf("%q instead of %q", out.String(), want)
			}
			errs <- err
		}()
	}
	var all error
	for range count {
		all = errors.Join(all, <-errs)
	}
	return all
}

func archives(s server, t transport) error {
	files := map[string][]byte{"cp/empty": nil, "cp/small": []byte("text\n"), "cp/deep/large": random(3 << 20)}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	var errs bytes.Buffer
	err := t.run(s, []string{"tar", "-xmf", "-", "-C", "/tmp"}, remotecommand.StreamOptions{
		Stdin: &archive, Stdout: &errs, Stderr: &errs,
	})
	if err != nil {
		return fmt.Errorf("to the container: %w: %s", err, errs.String())
	}
	var back bytes.Buffer
	err = t.run(s, sh("tar cf - -C /tmp cp && rm -r /tmp/cp"), remotecommand.StreamOptions{Stdout: &back, Stderr: &errs})
	if err != nil {
		return fmt.Errorf("from the container: %w: %s", err, errs.String())
	}
	found := 0
	for r := tar.NewReader(&back); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		want, known := files[header.Name]
		if known && !bytes.Equal(content, want) {
			return fmt.Errorf("%s came back otherwise", header.Name)
		} else if known {
			found++
		}
	}
	if found != len(files) {
		return fmt.Errorf("%d of %d files came back", found, len(files))
	}
	return nil
}

func background(s server, t transport) error {
	// Two: the client copies to both at once.
	var out, diagnostics bytes.Buffer
	begun := time.Now()
	options := remotecommand.StreamOptions{Stdout: &out, Stderr: &diagnostics}
	err := t.run(s, sh("sleep 300 & echo on"), options)
	if err != nil || out.String() != "on\n" || diagnostics.Len() > 0 {
		return fmt.Errorf("%v, %q, %q", err, out.String(), diagnostics.String())
	}
	if time.Since(begun) > time.Minute {
		return errors.New("the session waited for a background child")
	}
	return nil
}

func forwarded(s server, t transport) error {
	const connections = 50
	port, stop, err := echoServer(s, "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer stop()
	port6, stop6, err := echoServer(s, "[::1]:0")
	if err != nil {
		return err
	}
	defer stop6()
	f, err := forward(s, t, port, port6)
	if err != nil {
		return err
	}
	defer f.stop()
	size := int64(*megabytes) << 20 / connections
	errs := make(chan error, connections+1)
	for range connections {
		go func() { errs <- roundTrip(f.local[0], size) }()
	}
	go func() { errs <- roundTrip(f.local[1], 1<<20) }()
	var all error
	for range connections + 1 {
		all = errors.Join(all, <-errs)
	}
	return all
}

// Sends so many bytes, closes its half, and reads them all back.
func roundTrip(port uint16, size int64) error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	reader, digest := stream(size)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, reader)
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	back := sha256.New()
	n, err := io.Copy(back, conn)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if got := hex.EncodeToString(back.Sum(nil)); got != digest {
		return fmt.Errorf("of %d bytes %d came back, or others", size, n)
	}
	return nil
}

// On one connection: a port that nobody listens on, then one that somebody does.
func refusedPort(s server, t transport) error {
	port, stop, err := echoServer(s, "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer stop()
	conn, err := dialForward(s, t)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, told, err := connectPort(conn, 1, 1)
	if err != nil {
		return err
	}
	if text, err := io.ReadAll(told); err != nil || !strings.Contains(string(text), "refused") {
		return fmt.Errorf("the error stream says %q, %v", text, err)
	}
	data, told, err := connectPort(conn, port, 2)
	if err != nil {
		return err
	}
	content := random(100_000)
	go func() {
		_, _ = data.Write(content)
		_ = data.Close()
	}()
	back, err := io.ReadAll(data)
	if err != nil || !bytes.Equal(back, content) {
		return fmt.Errorf("after a refused port %d of %d bytes came back, %v", len(back), len(content), err)
	}
	if text, err := io.ReadAll(told); err != nil || len(text) > 0 {
		return fmt.Errorf("the second error stream says %q, %v", text, err)
	}
	return nil
}
