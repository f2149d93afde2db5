package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// A median of each server, and the first over the second.
type figure struct {
	Ours      float64 `json:"ours,omitempty"`
	Reference float64 `json:"reference,omitempty"`
	Ratio     float64 `json:"ratio,omitempty"`
}

// Figures as JSON, by name: milliseconds, MB/s (10^6 bytes), microseconds. Both servers are measured
// in turn, round by round, since what a machine gives changes by the minute. What a server refuses
// has no figure.
func bench(ours, reference server) int {
	measures := []struct {
		name string
		run  func(server, transport) (float64, error)
	}{
		{"exec(true), p50, ms", execTrue},
		{"stdout, MB/s", stdoutRate},
		{"stdin, MB/s", stdinRate},
		{"port-forward, MB/s", forwardRate},
		{"port-forward, one byte, p50, us", forwardEcho},
	}
	figures, code := map[string]figure{}, 0
	for _, m := range measures {
		for _, t := range []transport{spdyTransport, wsTransport} {
			name := fmt.Sprintf("%s %s", t, m.name)
			if !strings.Contains(name, *only) {
				continue
			}
			f, errOurs, errReference := alternate(ours, reference, func(s server) (float64, error) { return m.run(s, t) })
			if errReference != nil {
				fmt.Fprintf(os.Stderr, "%s: the reference: %v\n", name, errReference)
			}
			if errOurs != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", name, errOurs)
				code = 1
				continue
			}
			figures[name] = f
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	_ = out.Encode(figures)
	return code
}

// Rounds of both, until one fails.
func alternate(ours, reference server, run func(server) (float64, error)) (f figure, errOurs, errReference error) {
	var our, theirs []float64
	for range *rounds {
		our, errOurs = again(our, errOurs, func() (float64, error) { return run(ours) })
		theirs, errReference = again(theirs, errReference, func() (float64, error) { return run(reference) })
	}
	f = figure{Ours: median(our), Reference: median(theirs)}
	if f.Reference != 0 {
		f.Ratio = f.Ours / f.Reference
	}
	return f, errOurs, errReference
}

// One more value, unless one has failed.
func again(values []float64, err error, run func() (float64, error)) ([]float64, error) {
	if err != nil {
		return values, err
	}
	value, err := run()
	if err != nil {
		return nil, err
	}
	return append(values, value), nil
}

// 0 of none.
func median[T cmp.Ordered](values []T) T {
	if len(values) == 0 {
		var none T
		return none
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func execTrue(s server, t transport) (float64, error) {
	var all []time.Duration
	for range 100 {
		begun := time.Now()
		if err := t.run(s, []string{"true"}, remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
			return 0, err
		}
		all = append(all, time.Since(begun))
	}
	return float64(median(all).Microseconds()) / 1000, nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func rate(bytes int64, begun time.Time) float64 {
	return float64(bytes) / 1e6 / time.Since(begun).Seconds()
}

func stdoutRate(s server, t transport) (float64, error) {
	size := int64(*megabytes) << 20
	var got counter
	begun := time.Now()
	argv := []string{"dd", "if=/dev/zero", "bs=64k", fmt.Sprintf("count=%d", size>>16)}
	if err := t.run(s, argv, remotecommand.StreamOptions{Stdout: &got}); err != nil {
		return 0, err
	}
	if int64(got) != size {
		return 0, fmt.Errorf("%d of %d bytes came", got, size)
	}
	return rate(size, begun), nil
}

func stdinRate(s server, t transport) (float64, error) {
	size := int64(*megabytes) << 20
	reader := io.LimitReader(&repeat{block: make([]byte, 1<<20)}, size)
	var out strings.Builder
	begun := time.Now()
	options := remotecommand.StreamOptions{Stdin: reader, Stdout: io.Discard, Stderr: &out}
	if err := t.run(s, []string{"dd", "of=/dev/null", "bs=64k"}, options); err != nil {
		return 0, err
	}
	took := rate(size, begun)
	if !strings.Contains(out.String(), fmt.Sprintf("%d bytes", size)) {
		return 0, fmt.Errorf("of %d bytes the container saw %q", size, out.String())
	}
	return took, nil
}

func forwardRate(s server, t transport) (float64, error) {
	size := int64(*megabytes) << 20
	source := func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, io.LimitReader(&repeat{block: make([]byte, 1<<20)}, size))
	}
	port, stop, err := listen(s, "127.0.0.1:0", source)
	if err != nil {
		return 0, err
	}
	defer stop()
	f, err := forward(s, t, port)
	if err != nil {
		return 0, err
	}
	defer f.stop()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.local[0]))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	begun := time.Now()
	var got counter
	if _, err := io.Copy(&got, conn); err != nil {
		return 0, err
	}
	if int64(got) != size {
		return 0, fmt.Errorf("%d of %d bytes came", got, size)
	}
	return rate(size, begun), nil
}

func forwardEcho(s server, t transport) (float64, error) {
	port, stop, err := echoServer(s, "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer stop()
	f, err := forward(s, t, port)
	if err != nil {
		return 0, err
	}
	defer f.stop()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.local[0]))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	var all []time.Duration
	byteBuffer := []byte{1}
	for range 2000 {
		begun := time.Now()
		if _, err := conn.Write(byteBuffer); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(conn, byteBuffer); err != nil {
			return 0, err
		}
		all = append(all, time.Since(begun))
	}
	return float64(median(all).Nanoseconds()) / 1000, nil
}
