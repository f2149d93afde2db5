//! `podwright image …`, as a person types it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use podwright::cri::wire as cri;
use sha2::{Digest, Sha256};

use crate::harness::{Daemon, pod, script};

fn command(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podwright"));
    let socket = format!("unix://{}", daemon.dir.path().join("cri.sock").display());
    command.arg("image").args(arguments).env("CONTAINER_RUNTIME_ENDPOINT", socket);
    command
}

fn run(daemon: &Daemon, arguments: &[&str]) -> Output {
    command(daemon, arguments).output().unwrap()
}

/// What a command that succeeds prints.
fn said(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = run(daemon, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What `docker save` would write of an image with one file.
fn archive(name: &str, file: &str) -> Vec<u8> {
    let layer = tar(&[(file, file.as_bytes())]);
    let diff_id: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    });
    let manifest = serde_json::json!([{"Config": "c", "RepoTags": [name], "Layers": ["l"]}]);
    tar(&[
        ("l", &layer),
        ("c", config.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

fn import(daemon: &Daemon, name: &str, file: &str) {
    let path = daemon.dir.path().join("archive.tar");
    std::fs::write(&path, archive(name, file)).unwrap();
    assert_eq!(said(daemon, &["import", path.to_str().unwrap()]), format!("{name}\n"));
}

/// The layer that has `file`.
fn layer_with(daemon: &Daemon, file: &str) -> PathBuf {
    let layers = std::fs::read_dir(daemon.dir.path().join("root/image/layers")).unwrap();
    let mut layers = layers.map(|layer| layer.unwrap().path().join("fs"));
    layers.find(|layer| layer.join(file).is_file()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_imported_from_files_directories_and_pipes() {
    let daemon = Daemon::start().await;
    import(&daemon, "a.b/file:v1", "a-file");
    let layout = daemon.dir.path().join("layout");
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new).into_iter().find(|p| p.exists());
    crate::layout::write(&layout, busybox.expect("busybox-static is installed"));
    let names = said(&daemon, &["import", "--name", "a.b/directory:v1", layout.to_str().unwrap()]);
    assert_eq!(names, "a.b/directory:v1\n");
    let mut piped = command(&daemon, &["import", "-"]);
    let mut child = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let bytes = zstd::encode_all(&archive("a.b/piped:v1", "piped")[..], 1).unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.success(), &output.stdout[..]), (true, &b"a.b/piped:v1\n"[..]));
    let list = said(&daemon, &["ls"]);
    for name in ["a.b/file", "a.b/directory", "a.b/piped"] {
        assert!(list.contains(name), "{list}");
    }
    for (bytes, word) in [(b"nonsense".repeat(200), "archive"), (Vec::new(), "no image archive")] {
        let path = daemon.dir.path().join("bad.tar");
        std::fs::write(&path, bytes).unwrap();
        let output = run(&daemon, &["import", path.to_str().unwrap()]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(word), "{error}");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_is_told_and_withdrawn() {
    let daemon = Daemon::start().await;
    import(&daemon, "a.b/damaged:v1", "damaged");
    let whole = said(&daemon, &["check"]);
    assert!(whole.ends_with("; 0 faults\n"), "{whole}");
    std::fs::write(layer_with(&daemon, "damaged").join("damaged"), "DAMAGED").unwrap();
    for (arguments, words) in
        [(&["check"][..], "--repair would: withdraw it"), (&["check", "--repair"], "done: withdraw it")]
    {
        let output = run(&daemon, arguments);
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("\"damaged\" has other content") && told.contains(words), "{told}");
        assert!(told.contains("images: a.b/damaged:v1"), "{told}");
    }
    assert!(!said(&daemon, &["ls"]).contains("a.b/damaged"));
    import(&daemon, "a.b/damaged:v1", "damaged");
    assert!(said(&daemon, &["check"]).ends_with("; 0 faults\n"));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_run_or_have_as_volumes_is_not_collected() {
    let daemon = Daemon::start().await;
    import(&daemon, "a.b/volume:v1", "a-volume");
    import(&daemon, "a.b/unused:v1", "unused");
    let pod = daemon.run_pod(pod("collected")).await;
    let mut config = script("uses", "sleep 1000");
    let image = cri::ImageSpec { image: "a.b/volume:v1".into(), ..Default::default() };
    config.mounts = vec![cri::Mount {
        container_path: "/volume".into(),
        image: Some(image),
        readonly: true,
        ..Default::default()
    }];
    daemon.create(&pod, config).await.unwrap();
    let told = said(&daemon, &["gc", "--dry-run"]);
    let line = |name: &str| told.lines().find(|line| line.contains(name)).unwrap_or_default();
    assert!(
        line("busybox").starts_with("keep ") && line("busybox").ends_with("a container uses it"),
        "{told}"
    );
    assert!(line("a.b/volume").ends_with("a container uses it"), "{told}");
    assert!(
        line("a.b/unused").starts_with("remove ") && said(&daemon, &["ls"]).contains("a.b/unused"),
        "{told}"
    );
    assert!(said(&daemon, &["gc"]).contains(" freed"));
    let left = said(&daemon, &["ls"]);
    assert!(left.contains("a.b/volume") && !left.contains("a.b/unused"), "{left}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_seen_from_another_shell() {
    let daemon = Daemon::start().await;
    assert_eq!(said(&daemon, &["ls", "--pulling"]).lines().count(), 1, "the head alone");
    // It takes what it is asked, and never answers.
    let mut silent = daemon.command("busybox");
    silent.args(["nc", "-ll", "-p", "5999", "-e", "busybox", "dd", "of=/dev/null"]).stdin(Stdio::null());
    let mut silent = silent.spawn().unwrap();
    let name = "127.0.0.1:5999/a/b:v1";
    for _ in 0..200 {
        if daemon.in_netns("busybox", &["netstat", "-ltn"]).contains(":5999 ") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let mut images = daemon.images();
    let pull = tokio::spawn(async move {
        let image = Some(cri::ImageSpec { image: name.into(), ..Default::default() });
        images.pull_image(cri::PullImageRequest { image, ..Default::default() }).await
    });
    let mut seen = false;
    for _ in 0..200 {
        seen = said(&daemon, &["ls", "--pulling"]).lines().any(|line| line.contains(name));
        if seen {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    silent.kill().unwrap();
    silent.wait().unwrap();
    assert!(seen, "the pull is listed");
    pull.abort();
    daemon.finish().await;
}
