// The client side of Kubernetes' own libraries against a CRI runtime's streaming server.
//
//	stream-client -cri SOCKET -container ID -pod ID -netns PATH check    everything, byte for byte
//	stream-client -cri SOCKET -container ID -pod ID -netns PATH bench    figures beside the reference's, as JSON
//	stream-client -cri SOCKET -container ID -attach ID -pod ID -netns PATH -pid DAEMON idle   memory of idle sessions
//
// The container runs something with a shell, head, cat, sha256sum, stty and tar in it (busybox has
// all). Exit code 0: all is well.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	socket    = flag.String("cri", "/run/podwright/podwright.sock", "the CRI `socket`")
	container = flag.String("container", "", "`ID` of a running container")
	pod       = flag.String("pod", "", "`ID` of its pod")
	attached  = flag.String("attach", "", "`ID` of a container that answers each line of its stdin with \"got LINE\"")
	console   = flag.String("attach-tty", "", "`ID` of one that does so on a terminal, with the terminal's size behind it")
	podNetns  = flag.String("netns", "", "`path` of the pod's network namespace; empty: the node's")
	megabytes = flag.Int("mb", 64, "MiB for each bulk transfer")
	ca        = flag.String("ca", "", "`file` with the server's certificate; empty: any is taken")
	only      = flag.String("run", "", "only what has this in its `name`")
	rounds    = flag.Int("rounds", 5, "of bench")
	pid       = flag.Int("pid", 0, "of the daemon whose memory idle measures")
)

func main() {
	flag.Parse()
	switch flag.Arg(0) {
	case "check":
		os.Exit(check(target()))
	case "bench":
		other, stop := reference()
		code := bench(target(), other)
		stop()
		os.Exit(code)
	case "idle":
		os.Exit(idle(target()))
	case "serve-reference":
		serveReference()
	default:
		flag.Usage()
		os.Exit(2)
	}
}

// A server is asked for URLs.
type server interface {
	exec(r *cri.ExecRequest) (string, error)
	portForward(r *cri.PortForwardRequest) (string, error)
	// The network namespace whose ports it forwards; empty: the node's.
	netns() string
}

type runtime struct{ client cri.RuntimeServiceClient }

func target() server {
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	return runtime{cri.NewRuntimeServiceClient(conn)}
}

func (r runtime) exec(q *cri.ExecRequest) (string, error) {
	answer, err := r.client.Exec(context.Background(), q)
	return answer.GetUrl(), err
}

func (r runtime) portForward(q *cri.PortForwardRequest) (string, error) {
	answer, err := r.client.PortForward(context.Background(), q)
	return answer.GetUrl(), err
}

func (runtime) netns() string { return *podNetns }

// How a client speaks.
type transport string

const (
	spdyTransport transport = "SPDY"
	wsTransport   transport = "WebSocket"
)

// Attaches to a container's streams until it ends or the context does.
func (t transport) attach(ctx context.Context, r runtime, id string, o remotecommand.StreamOptions) error {
	answer, err := r.client.Attach(ctx, &cri.AttachRequest{
		ContainerId: id, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		return fmt.Errorf("asking for a URL: %w", err)
	}
	executor, err := t.executor(answer.GetUrl(), o.Stdin != nil)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, o)
}

// Runs a command with these streams, up to its status.
func (t transport) run(s server, argv []string, o remotecommand.StreamOptions) error {
	target, err := s.exec(&cri.ExecRequest{
		ContainerId: *container, Cmd: argv, Tty: o.Tty,
		Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		return fmt.Errorf("asking for a URL: %w", err)
	}
	executor, err := t.executor(target, o.Stdin != nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return executor.StreamWithContext(ctx, o)
}

func clientConfig() *restclient.Config {
	return &restclient.Config{TLSClientConfig: restclient.TLSClientConfig{Insecure: *ca == "", CAFile: *ca}}
}

func (t transport) executor(target string, stdin bool) (remotecommand.Executor, error) {
	config := clientConfig()
	if t == wsTransport {
		protocols := []string{"v5.channel.k8s.io"}
		if !stdin {
			// The reference speaks nothing newer. It has no way to end stdin.
			protocols = append(protocols, "v4.channel.k8s.io")
		}
		return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", target, protocols...)
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutor(config, "POST", u)
}
