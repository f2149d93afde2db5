//! Debian's containernetworking-plugins for what plugins do, shell scripts for what they do wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::error::Kind;

/// bridge, host-local and portmap, with everything that they keep under `dir`.
pub fn conflist(dir: &Path) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "pwcni",
        "plugins": [
            {
                "type": "bridge", "bridge": "pwcni0", "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": dir.join("host-local"),
                    "ranges": [[{"subnet": "10.76.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

impl Host {
    pub fn cni() -> Self {
        Self::new(|c| c.mode = Some(Mode::Cni))
    }

    pub fn configure(&self, name: &str, text: &str) {
        let dir = self.dir.path().join("net.d");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    /// A host whose plugins are scripts: each notes how it was called, then does what `body` says.
    fn scripted(plugins: &[(&str, &str)], config: &Value) -> Self {
        let host = Self::new(|c| {
            c.mode = Some(Mode::Cni);
            let root = c.root.parent().unwrap().to_owned();
            c.cni_bin_dirs = vec![root.join("bin")];
        });
        let bin = host.dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for (name, body) in plugins {
            let log = host.dir.path().display();
            let text = format!(
                "#!/bin/sh\n\
                 if [ $CNI_COMMAND = VERSION ]; then echo '{{\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}}'; exit; fi\n\
                 cat >{log}/stdin.{name}.$CNI_COMMAND\n\
                 echo \"{name} $CNI_COMMAND $CNI_NETNS\" >>{log}/calls\n\
                 echo \"$CNI_ARGS $CNI_IFNAME $CNI_CONTAINERID $CNI_PATH\" >{log}/env\n{body}\n"
            );
            let path = bin.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        host.configure("10-scripts.conflist", &config.to_string());
        host
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        text.lines().map(|l| l.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    fn stdin(&self, plugin: &str, verb: &str) -> Value {
        let path = self.dir.path().join(format!("stdin.{plugin}.{verb}"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn records(&self) -> (Vec<String>, Vec<String>) {
        let dir = self.dir.path().join("root/network/cni");
        (files(&dir.join("pods")), files(&dir.join("results")))
    }

    fn set_deadline(&mut self, deadline: Duration) {
        Arc::get_mut(&mut self.network.inner).unwrap().cni.set_deadline(deadline);
    }
}

const GIVES_ADDRESS: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}],"x":1}'; exit 0"#;
const FAILS_TO_ADD: &str =
    r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":7,"msg":"no luck","details":"today"}'; exit 1; }; exit 0"#;

fn two_plugins() -> Value {
    json!({
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "scripts",
        "plugins": [{"type": "one"}, {"type": "two", "capabilities": {"portMappings": true}}],
    })
}

#[test]
fn debians_plugins_give_and_take_back() {
    in_a_namespace(|| {
        let host = Host::cni();
        host.configure("10-pw.conflist", &conflist(host.dir.path()));
        host.network.ready().unwrap();
        let (a, b) = (host.pod("a"), host.pod("b"));
        let (ip_a, ip_b) = (host.attach(&a), host.attach(&b));
        let in_b = b.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        assert_eq!(connect(&a, &in_b, ip_b), ip_a);
        assert_eq!(host.records().1.len(), 2);
        assert!(host.records().1.contains(&format!("pwcni-{}-eth0", a.network.pod_id)));

        for pod in [&a, &b, &a] {
            host.wait(host.network.detach(&pod.network)).unwrap();
        }
        assert_eq!(links(), ["pwcni0"]);
        assert_eq!(host.records(), (vec![], vec![]));
        let leases = files(&host.dir.path().join("host-local/pwcni"));
        assert!(leases.iter().all(|name| !name.starts_with("10.")), "{leases:?}");
    });
}

#[test]
fn a_chain_is_told_what_it_declares_and_what_came_before() {
    in_a_namespace(|| {
        let host = Host::scripted(&[("one", GIVES_ADDRESS), ("two", GIVES_ADDRESS)], &two_plugins());
        let mut pod = host.pod("a");
        pod.network.port_mappings = vec![crate::pod::spec::PortMapping {
            protocol: crate::pod::spec::Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: None,
        }];
        assert_eq!(host.attach(&pod), "10.1.2.3".parse::<IpAddr>().unwrap());
        let (one, two) = (host.stdin("one", "ADD"), host.stdin("two", "ADD"));
        assert_eq!(one["cniVersion"], "1.0.0", "the best that both sides speak");
        assert_eq!(
            (&one["name"], one.get("prevResult"), one.get("runtimeConfig")),
            (&json!("scripts"), None, None)
        );
        assert_eq!(two["prevResult"]["x"], 1);
        assert_eq!(two["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
        let env = fs::read_to_string(host.dir.path().join("env")).unwrap();
        let id = &pod.network.pod_id;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u eth0 {id} "
        );
        assert!(env.starts_with(&args), "{env}");

        // The configuration in use has changed since: DEL goes by the one of then.
        fs::remove_file(host.dir.path().join("net.d/10-scripts.conflist")).unwrap();
        assert!(host.network.ready().unwrap_err().contains("no CNI configuration"));
        host.wait(host.network.detach(&pod.network)).unwrap();
        assert_eq!(host.calls(), ["one ADD", "two ADD", "two DEL", "one DEL"]);
        for plugin in ["one", "two"] {
            assert_eq!(host.stdin(plugin, "DEL")["prevResult"]["x"], 1);
        }
        assert_eq!(host.records(), (vec![], vec![]));
    });
}

#[test]
fn a_failed_add_is_followed_by_del_of_all() {
    in_a_namespace(|| {
        let host = Host::scripted(&[("one", GIVES_ADDRESS), ("two", FAILS_TO_ADD)], &two_plugins());
        let pod = host.pod("a");
        let error = host.wait(host.network.attach(&pod.network)).unwrap_err();
        assert_eq!(
            error.message,
            "adding the pod to network scripts: CNI plugin two failed to ADD (code 7): no luck: today"
        );
        assert_eq!(host.calls(), ["one ADD", "two ADD", "two DEL", "one DEL"]);
        assert_eq!(host.records(), (vec![], vec![]));
    });
}

#[test]
fn a_del_that_fails_is_gone_past_and_tried_again() {
    in_a_namespace(|| {
        let fails_once = format!(
            "[ $CNI_COMMAND = DEL ] && [ ! -e $0.failed ] && {{ touch $0.failed; echo oh >&2; exit 3; }}\n{GIVES_ADDRESS}"
        );
        let host = Host::scripted(&[("one", GIVES_ADDRESS), ("two", &fails_once)], &two_plugins());
        let pod = host.pod("a");
        host.attach(&pod);
        let error = host.wait(host.network.detach(&pod.network)).unwrap_err();
        assert!(error.message.ends_with("CNI plugin two failed to DEL (exit status: 3): oh"), "{error}");
        assert_eq!(host.calls()[2..], ["two DEL", "one DEL"]);
        assert_eq!(host.records().0.len(), 1);
        host.wait(host.network.detach(&pod.network)).unwrap();
        assert_eq!(host.records(), (vec![], vec![]));
    });
}

#[test]
fn a_hung_plugin_is_killed_with_what_it_started() {
    in_a_namespace(|| {
        let hangs = "[ $CNI_COMMAND = ADD ] || exit 0\nsleep 1000 & echo $! >$(dirname $0)/../child\nwait";
        let mut host = Host::scripted(&[("one", GIVES_ADDRESS), ("two", hangs)], &two_plugins());
        host.set_deadline(Duration::from_secs(2));
        let pod = host.pod("a");
        let error = host.wait(host.network.attach(&pod.network)).unwrap_err();
        assert_eq!(error.kind, Kind::DeadlineExceeded);
        assert!(error.message.contains("plugin two did not end its ADD within 2 s"), "{error}");
        assert_eq!(host.calls()[2..], ["two DEL", "one DEL"]);
        assert_gone(&host);
    });
}

fn assert_gone(host: &Host) {
    let child = fs::read_to_string(host.dir.path().join("child")).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    eventually("the plugin's child dies", || {
        // A zombie is as good: whoever adopts it reaps it.
        fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "))
    });
}

#[test]
fn a_call_that_is_given_up_is_undone_by_detach_and_holds_up_nobody() {
    in_a_namespace(|| {
        let hangs = format!(
            "case $CNI_COMMAND$CNI_ARGS in ADD*K8S_POD_NAME=hung*) sleep 1000 & echo $! >$(dirname $0)/../child; wait;; esac\n{GIVES_ADDRESS}"
        );
        let host = Host::scripted(&[("one", &hangs), ("two", GIVES_ADDRESS)], &two_plugins());
        let (hung, other) = (host.pod("hung"), host.pod("other"));
        host.wait(async {
            let attach = host.network.attach(&hung.network);
            tokio::pin!(attach);
            let child = host.dir.path().join("child");
            while !child.exists() {
                tokio::select! {
                    _ = &mut attach => panic!("it hangs"),
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
            }
            tokio::select! {
                _ = &mut attach => panic!("it hangs"),
                attached = host.network.attach(&other.network) => assert!(attached.is_ok()),
            }
        });
        assert_gone(&host);
        assert_eq!(host.records().0.len(), 2);
        host.wait(host.network.detach(&hung.network)).unwrap();
        assert_eq!(host.calls().iter().filter(|c| *c == "one DEL").count(), 1);
        assert_eq!(host.records().0, std::slice::from_ref(&other.network.pod_id));
    });
}

/// BEHAVIOUR 13
#[test]
fn after_a_reboot_del_runs_with_an_empty_netns() {
    in_a_namespace(|| {
        let mut host = Host::cni();
        host.configure("10-pw.conflist", &conflist(host.dir.path()));
        let mut pod = host.pod("a");
        host.attach(&pod);
        drop(pod.netns.take());
        unpin(&pod.pin).unwrap();
        host.restart();
        pod.network.netns = PathBuf::new();
        host.wait(host.network.detach(&pod.network)).unwrap();
        let leases = files(&host.dir.path().join("host-local/pwcni"));
        assert!(leases.iter().all(|name| !name.starts_with("10.")), "{leases:?}");
    });
    in_a_namespace(|| {
        let host = Host::scripted(&[("one", GIVES_ADDRESS), ("two", GIVES_ADDRESS)], &two_plugins());
        let pod = host.pod("a");
        host.attach(&pod);
        unpin(&pod.pin).unwrap();
        host.wait(host.network.detach(&pod.network)).unwrap();
        let calls = fs::read_to_string(host.dir.path().join("calls")).unwrap();
        assert!(calls.ends_with("two DEL \none DEL \n"), "{calls:?}");
    });
}

#[test]
fn what_a_crash_left_is_released_unless_it_lives() {
    in_a_namespace(|| {
        let mut host = Host::cni();
        host.configure("10-pw.conflist", &conflist(host.dir.path()));
        let (a, b) = (host.pod("a"), host.pod("b"));
        host.attach(&a);
        host.attach(&b);
        host.restart();
        host.wait(host.network.reconcile(std::slice::from_ref(&a.network.pod_id))).unwrap();
        assert_eq!(host.records().0, std::slice::from_ref(&a.network.pod_id));
        assert!(a.pin.exists() && !b.pin.exists());
        host.wait(host.network.reconcile(&[])).unwrap();
        assert_eq!(host.records(), (vec![], vec![]));
        eventually("links go", || links() == ["pwcni0"]);
    });
}

/// BEHAVIOUR 31
#[test]
fn the_reason_for_not_being_ready_is_named_and_followed() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.mode = None);
        assert_eq!(host.network.mode(), Mode::Builtin, "where there is no configuration");
        let early = host.pod("early");
        let ip = host.attach(&early);
        host.configure("10-x.conflist", r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#);
        assert_eq!(host.network.mode(), Mode::Cni);
        let reason = host.network.ready().unwrap_err();
        assert!(reason.contains("10-x.conflist: \"plugins\" is empty"), "{reason}");
        let pod = host.pod("a");
        let error = host.wait(host.network.attach(&pod.network)).unwrap_err();
        assert_eq!((error.kind, error.message.contains("10-x.conflist")), (Kind::Unavailable, true));
        host.configure("10-x.conflist", r#"{"cniVersion":"1.0.0","name":"x","type":"no-such-plugin"}"#);
        let reason = host.network.ready().unwrap_err();
        assert!(reason.contains("no-such-plugin is not in /opt/cni/bin or /usr/lib/cni"), "{reason}");
        host.configure("10-x.conflist", &conflist(host.dir.path()));
        host.network.ready().unwrap();
        assert_ne!(host.attach(&pod), ip);
        for pod in [&early, &pod] {
            host.wait(host.network.detach(&pod.network)).unwrap();
        }
        assert_eq!((host.addresses().0, host.records().0.len()), (0, 0), "each by what it was attached by");
    });
}

#[test]
fn a_version_that_no_plugin_speaks_is_refused_before_anything_is_done() {
    in_a_namespace(|| {
        let mut config = two_plugins();
        config["cniVersions"] = json!(["1.1.0"]);
        let host = Host::scripted(&[("one", GIVES_ADDRESS), ("two", GIVES_ADDRESS)], &config);
        let pod = host.pod("a");
        let error = host.wait(host.network.attach(&pod.network)).unwrap_err();
        assert!(
            error.message.contains("wants CNI version 1.1.0, and plugin one speaks 0.4.0, 1.0.0"),
            "{error}"
        );
        assert_eq!((host.calls().len(), host.records().0.len()), (0, 0));
    });
}

#[test]
fn calls_can_move_between_workers() {
    fn is_send<T: Send>(_: T) {}
    let host = Host::cni();
    let pod = PodNetwork::default();
    is_send(host.network.attach(&pod));
    is_send(host.network.detach(&pod));
    is_send(host.network.reconcile(&[]));
}
