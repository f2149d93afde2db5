package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Listens in the pod's network namespace and sends back what comes.
func echoServer(s server, address string) (uint16, func(), error) {
	return listen(s, address, func(c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
}

func listen(s server, address string, serve func(net.Conn)) (uint16, func(), error) {
	listener, err := inNetns(s.netns(), func() (net.Listener, error) { return net.Listen("tcp", address) })
	if err != nil {
		return 0, nil, fmt.Errorf("listening in the pod: %w", err)
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return uint16(listener.Addr().(*net.TCPAddr).Port), func() { listener.Close() }, nil
}

// On a thread that ends with it.
func inNetns[T any](path string, work func() (T, error)) (T, error) {
	if path == "" {
		return work()
	}
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome)
	go func() {
		goruntime.LockOSThread()
		var o outcome
		file, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if o.err = err; err == nil {
			o.value, o.err = work()
		}
		done <- o
	}()
	o := <-done
	return o.value, o.err
}

type forwarder struct {
	local  []uint16
	errors *watched
	stop   func()
}

// Forwards local ports of its own choice.
func forward(s server, t transport, ports ...uint16) (*forwarder, error) {
	target, err := s.portForward(&cri.PortForwardRequest{PodSandboxId: *pod})
	if err != nil {
		return nil, err
	}
	dialer, err := t.dialer(target)
	if err != nil {
		return nil, err
	}
	var pairs []string
	for _, port := range ports {
		pairs = append(pairs, fmt.Sprintf("0:%d", port))
	}
	stop, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	errs := &watched{}
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, pairs, stop, ready, io.Discard, errs)
	if err != nil {
		return nil, err
	}
	go func() { failed <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		return nil, fmt.Errorf("the forwarder ended: %w", err)
	case <-time.After(30 * time.Second):
		return nil, fmt.Errorf("the forwarder is not ready")
	}
	forwarded, err := f.GetPorts()
	if err != nil {
		return nil, err
	}
	result := &forwarder{errors: errs, stop: func() { close(stop) }}
	for _, p := range forwarded {
		result.local = append(result.local, p.Local)
	}
	go func() {
		if err := <-failed; err != nil {
			fmt.Fprintln(errs, err)
		}
	}()
	return result, nil
}

func (t transport) dialer(target string) (httpstream.Dialer, error) {
	config := clientConfig()
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	if t == wsTransport {
		return portforward.NewSPDYOverWebsocketDialer(u, config)
	}
	wrapper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: wrapper}, "POST", u), nil
}

// A connection for streams of one's own making.
func dialForward(s server, t transport) (httpstream.Connection, error) {
	target, err := s.portForward(&cri.PortForwardRequest{PodSandboxId: *pod})
	if err != nil {
		return nil, err
	}
	dialer, err := t.dialer(target)
	if err != nil {
		return nil, err
	}
	conn, _, err := dialer.Dial("portforward.k8s.io")
	return conn, err
}

// The data and the error stream of one connection to a port.
func connectPort(conn httpstream.Connection, port uint16, request int) (data, told httpstream.Stream, err error) {
	headers := http.Header{}
	headers.Set("streamType", "error")
	headers.Set("port", fmt.Sprint(port))
	headers.Set("requestID", fmt.Sprint(request))
	if told, err = conn.CreateStream(headers); err != nil {
		return nil, nil, err
	}
	_ = told.Close()
	headers.Set("streamType", "data")
	data, err = conn.CreateStream(headers)
	return data, told, err
}
