package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Kubernetes' own streaming server with nothing behind it, in a process of its own: what a server
// in Go and this client reach. It understands the commands that bench runs.
type nothing struct{}

func (nothing) Exec(_ context.Context, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	count := int64(-1)
	for _, argument := range cmd {
		if number, found := strings.CutPrefix(argument, "count="); found {
			count, _ = strconv.ParseInt(number, 10, 64)
		}
	}
	switch {
	case cmd[0] != "dd":
	case count >= 0:
		block := make([]byte, 64<<10)
		for range count {
			if _, err := out.Write(block); err != nil {
				return err
			}
		}
	default:
		n, err := io.Copy(io.Discard, in)
		if err != nil {
			return err
		}
		fmt.Fprintf(errs, "%d bytes", n)
	}
	for _, w := range []io.Closer{out, errs} {
		if w != nil && w != io.WriteCloser(nil) {
			w.Close()
		}
	}
	return nil
}

func (nothing) Attach(context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	return fmt.Errorf("no attach")
}

func (nothing) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

// Prints its address; answers /url/exec?… and /url/portforward with URLs for one use.
func serveReference() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	config := streaming.DefaultConfig
	config.Addr = listener.Addr().String()
	server, err := streaming.NewServer(config, nothing{})
	if err != nil {
		panic(err)
	}
	fmt.Println(config.Addr)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		switch r.URL.Path {
		case "/url/exec":
			answer, err := server.GetExec(&cri.ExecRequest{
				ContainerId: "c", Cmd: query["cmd"],
				Stdin: query.Has("stdin"), Stdout: query.Has("stdout"), Stderr: query.Has("stderr"),
			})
			reply(w, answer.GetUrl(), err)
		case "/url/portforward":
			answer, err := server.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
			reply(w, answer.GetUrl(), err)
		default:
			server.ServeHTTP(w, r)
		}
	})
	panic(http.Serve(listener, handler))
}

func reply(w http.ResponseWriter, url string, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, url)
}

// The reference server as a server of URLs, and what ends it.
type referenceServer struct{ address string }

func reference() (server, func()) {
	command := exec.Command("/proc/self/exe", "serve-reference")
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		panic(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		panic(err)
	}
	return referenceServer{strings.TrimSpace(line)}, func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}
}

func (referenceServer) netns() string { return "" }

func (r referenceServer) get(path string) (string, error) {
	answer, err := http.Get("http://" + r.address + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", body)
	}
	return string(body), err
}

func (r referenceServer) exec(q *cri.ExecRequest) (string, error) {
	var query []string
	for _, argument := range q.Cmd {
		query = append(query, "cmd="+argument)
	}
	for name, wanted := range map[string]bool{"stdin": q.Stdin, "stdout": q.Stdout, "stderr": q.Stderr} {
		if wanted {
			query = append(query, name)
		}
	}
	return r.get("/url/exec?" + strings.Join(query, "&"))
}

func (r referenceServer) portForward(*cri.PortForwardRequest) (string, error) {
	return r.get("/url/portforward")
}
