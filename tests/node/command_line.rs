//! The verbs as a person types them: real processes against a real daemon, their output and exit codes.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use podwright::cri::wire as cri;

use crate::harness::Daemon;

fn podwright(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podwright"));
    command.args(arguments).env_remove("CONTAINER_RUNTIME_ENDPOINT");
    command
}

/// A client verb: what it printed and its exit code.
fn run(daemon: &Daemon, arguments: &[&str]) -> Said {
    let socket = format!("unix://{}", daemon.dir.path().join("cri.sock").display());
    Said::of(podwright(arguments).env("CONTAINER_RUNTIME_ENDPOINT", socket).output().unwrap())
}

/// A verb for those who run the daemon, with its configuration.
fn tend(daemon: &Daemon, arguments: &[&str]) -> Said {
    let config = daemon.dir.path().join("config.toml");
    Said::of(podwright(arguments).arg("--config").arg(config).output().unwrap())
}

#[derive(Debug, PartialEq, Eq)]
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
    }

    /// What it printed, having succeeded without a word of complaint.
    fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// Its sentence, having failed without printing anything else.
    fn refused(self) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(1), ""), "{}", self.err);
        let sentence = self.err.strip_prefix("podwright: ").and_then(|text| text.strip_suffix('\n'));
        sentence.unwrap_or_else(|| panic!("{:?} is no sentence of ours", self.err)).to_owned()
    }
}

/// Waits until a verb prints what is wanted: a log is written a little after its container has spoken.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..2000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("what was waited for did not come");
}

async fn image(daemon: &Daemon) -> String {
    let images = daemon.images().list_images(cri::ListImagesRequest::default()).await.unwrap();
    images.into_inner().images[0].repo_tags[0].clone()
}

/// `name  value` of what `run` prints.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_run_to_rm() {
    let daemon = Daemon::start().await;
    let image = image(&daemon).await;
    let logs = daemon.dir.path().join("logs");
    let script = "echo one; echo two; echo wrong >&2; exec sleep 1000";
    let arguments = ["run", "--name", "web", "--log-dir", logs.to_str().unwrap(), &image, "sh", "-c", script];
    let printed = run(&daemon, &arguments).ok();
    let (pod, container) = (value(&printed, "pod"), value(&printed, "container"));

    let pods = run(&daemon, &["pods"]).ok();
    assert!(pods.starts_with("POD ") && pods.contains(&pod[..13]), "{pods}");
    assert!(pods.contains("web") && pods.contains("default") && pods.contains("ready"), "{pods}");
    assert_eq!(run(&daemon, &["pods", "-q"]).ok(), format!("{pod}\n"));
    let ps = run(&daemon, &["ps"]).ok();
    assert!(ps.contains(&container[..13]) && ps.contains("running") && ps.contains(&pod[..13]), "{ps}");
    assert_eq!(run(&daemon, &["ps", "-q"]).ok(), format!("{container}\n"));

    let said = run(&daemon, &["exec", "web", "sh", "-c", "echo to-out; echo to-err >&2; exit 9"]);
    let expected = Said { out: "to-out\n".into(), err: "to-err\n".into(), code: Some(9) };
    assert_eq!(said, expected);
    let logged = Said { out: "one\ntwo\n".into(), err: "wrong\n".into(), code: Some(0) };
    until(|| run(&daemon, &["logs", "web"]) == logged).await;
    assert_eq!(run(&daemon, &["logs", "--tail", "2", &container[..13]]).code, Some(0));

    assert_eq!(run(&daemon, &["rm", "-t", "0", &container[..13]]).ok(), format!("{container}\n"));
    assert_eq!(run(&daemon, &["ps", "-a", "-q"]).ok(), "");
    assert_eq!(run(&daemon, &["rm", "web"]).ok(), format!("{pod}\n"));
    assert_eq!(run(&daemon, &["pods", "-q"]).ok(), "");
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 0, "its logs went with it");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_rm_is_the_command_it_runs() {
    let daemon = Daemon::start().await;
    let image = image(&daemon).await;
    let data = daemon.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "content\n").unwrap();
    let volume = format!("{}:/data:ro", data.display());
    let logs = daemon.dir.path().join("logs");
    let options = ["run", "--rm", "--log-dir", logs.to_str().unwrap(), "-e", "A=b", "-v", &volume, &image];
    let command = |command: &[&str]| run(&daemon, &[&options[..], command].concat());

    let said = command(&["sh", "-c", "echo $A; cat /data/file; echo no >&2; exit 7"]);
    assert_eq!(said, Said { out: "b\ncontent\n".into(), err: "no\n".into(), code: Some(7) });
    // A signal, as a shell has it.
    assert_eq!(command(&["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]).code, Some(143));
    let sentence = command(&["/no/such/program"]).refused();
    assert!(sentence.contains("/no/such/program") && sentence.contains("no such file"), "{sentence}");
    assert_eq!(run(&daemon, &["pods", "-q"]).ok(), "", "nothing is left of any of them");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_with_exit_code_1() {
    let daemon = Daemon::start().await;
    for verb in [&["exec", "nope", "true"][..], &["logs", "nope"]] {
        assert_eq!(run(&daemon, verb).refused(), "no container is called nope");
    }
    assert_eq!(run(&daemon, &["rm", "nope"]).refused(), "nope: no pod and no container is called so");
    let sentence = run(&daemon, &["pull", "127.0.0.1:1/none:1"]).refused();
    assert!(sentence.starts_with("pulling 127.0.0.1:1/none:1: "), "{sentence}");
    let sentence = run(&daemon, &["run", "--rm", "127.0.0.1:1/none:1"]).refused();
    assert!(sentence.starts_with("pulling 127.0.0.1:1/none:1: "), "{sentence}");
    let sentence = Said::of(podwright(&["ps", "--endpoint", "/nonexistent/x.sock"]).output().unwrap());
    assert_eq!(
        sentence.refused(),
        "no runtime answers on unix:///nonexistent/x.sock: no such file or directory"
    );
    // What cannot be read as a command at all.
    assert_eq!(Said::of(podwright(&["exec", "web"]).output().unwrap()).code, Some(2));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_pull() {
    let daemon = Daemon::start().await;
    let before = image(&daemon).await;
    let listed = run(&daemon, &["images"]).ok();
    let (name, tag) = before.rsplit_once(':').unwrap();
    let row = listed.lines().nth(1).unwrap();
    assert!(listed.starts_with("IMAGE ") && row.starts_with(name) && row.contains(tag), "{listed}");
    let id = crate::seed::image_id();
    assert_eq!(run(&daemon, &["images", "-q"]).ok(), format!("{id}\n"));

    // A registry in the daemon's network.
    daemon.in_namespaces("ip", &["link", "set", "lo", "up"]);
    let port = crate::seed::free_port();
    let reference = format!("127.0.0.1:{port}/busybox:again");
    let dir = daemon.dir.path();
    let mut registry = crate::seed::start_registry_by(daemon.command("docker-registry"), dir, port);
    crate::layout::write(&dir.join("layout"), Path::new("/bin/busybox"));
    let (from, to) = (format!("oci:{}", dir.join("layout").display()), format!("docker://{reference}"));
    until(|| {
        let copy = ["copy", "--quiet", "--dest-tls-verify=false", &from, &to];
        daemon.command("skopeo").args(copy).output().unwrap().status.success()
    })
    .await;
    let pulled = run(&daemon, &["pull", &reference]);
    registry.kill().unwrap();
    registry.wait().unwrap();
    assert_eq!((pulled.code, pulled.out.starts_with("sha256:")), (Some(0), true), "{pulled:?}");
    let listed = run(&daemon, &["images"]).ok();
    assert!(listed.lines().any(|line| line.contains("/busybox") && line.contains("again")), "{listed}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_default_and_validate() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let path = file.to_str().unwrap();
    let validate = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Said::of(podwright(&["config", "validate", path]).output().unwrap())
    };
    let default = Said::of(podwright(&["config", "default"]).output().unwrap()).ok();
    assert_eq!(validate(&default).ok(), format!("{path}: ok\n"));
    let cases = [
        ("[cgroup]\ndrivr = 'systemd'\n", "2: unknown key \"drivr\"; did you mean \"driver\"?"),
        ("[network]\nsubnet = 7\n", "2: invalid type"),
        ("listen = \n", "1: "),
    ];
    for (text, expected) in cases {
        let sentence = validate(text).refused();
        assert!(sentence.contains(&format!("{path}:{expected}")), "{sentence}");
    }
    // A drop-in names itself, and the daemon takes no such configuration either.
    std::fs::create_dir(dir.path().join("config.toml.d")).unwrap();
    std::fs::write(dir.path().join("config.toml.d/10-x.toml"), "\nliste = '/x'\n").unwrap();
    for verb in
        [&["config", "validate", path][..], &["serve", "--config", path], &["check", "--config", path]]
    {
        std::fs::write(&file, "").unwrap();
        let sentence = Said::of(podwright(verb).output().unwrap()).refused();
        assert!(
            sentence.contains("10-x.toml:2: unknown key \"liste\"; did you mean \"listen\"?"),
            "{sentence}"
        );
    }
    let missing = Said::of(podwright(&["config", "validate", "/nonexistent/x.toml"]).output().unwrap());
    assert!(missing.refused().contains("/nonexistent/x.toml: no such file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_line_by_line_what_the_host_has() {
    let daemon = Daemon::start().await;
    let said = tend(&daemon, &["check"]);
    // Here pods run, as the other tests show.
    let text = said.ok();
    let (findings, summary) = text.trim_end().rsplit_once("\n\n").unwrap();
    for line in findings.lines() {
        assert!(line.starts_with("ok ") || line.starts_with("degraded "), "{line}");
    }
    assert!(findings.contains("cgroup driver"), "{findings}");
    assert!(summary.starts_with("Pods run here; "), "{summary}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeper_status_and_upgrade() {
    let daemon = Daemon::start().await;
    let image = image(&daemon).await;
    let logs = daemon.dir.path().join("logs");
    let arguments = ["run", "--name", "k", "--log-dir", logs.to_str().unwrap(), &image, "sleep", "1000"];
    let printed = run(&daemon, &arguments).ok();
    let container = value(&printed, "container");
    let status = tend(&daemon, &["keeper", "status"]).ok();
    let keeper = daemon.keeper_pid();
    assert!(status.starts_with("keeper ") && status.contains(&format!("pid {keeper}\n")), "{status}");
    assert!(status.contains("0 upgrades since") && status.contains("daemon     connected"), "{status}");
    let row = status.lines().find(|line| line.starts_with(&container[..13])).unwrap();
    assert!(row.contains("container") && row.contains("running") && row.contains("ok"), "{row}");

    let said = tend(&daemon, &["keeper", "upgrade"]).ok();
    assert_eq!(said, format!("the keeper (pid {keeper}) is {} now\n", env!("CARGO_PKG_VERSION")));
    assert!(tend(&daemon, &["keeper", "status"]).ok().contains("1 upgrades since"));
    assert_eq!(run(&daemon, &["exec", "k", "echo", "here"]).ok(), "here\n");

    let nobody = daemon.dir.path().join("nobody");
    std::fs::create_dir(&nobody).unwrap();
    let state = nobody.to_str().unwrap();
    let sentence = Said::of(podwright(&["keeper", "status", "--state", state]).output().unwrap()).refused();
    assert!(sentence.contains(&format!("asking the keeper at {state}")), "{sentence}");
    run(&daemon, &["rm", "-t", "0", "k"]).ok();
    daemon.finish().await;
}
