//! A client with the API as Kubernetes 1.32 had it, in a package of its own: `tests/older-client`.

use std::path::Path;
use std::process::Command;

use crate::harness::Daemon;
use crate::seed;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_kubernetes_1_32_drives_a_pod() {
    if Command::new("protoc").arg("--version").output().is_err() {
        eprintln!("skipped: the older client's build needs protoc");
        return;
    }
    let daemon = Daemon::start().await;
    let mut client = Command::new(env!("CARGO"));
    client
        .args(["run", "--quiet", "--locked", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/older-client/Cargo.toml"))
        // Below the target directory of this build, but not in it: its lock is held.
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("older-client"))
        .arg("--")
        .arg(daemon.dir.path().join("cri.sock"))
        .arg(seed::image_id());
    let output = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();
    let (said, problem) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{problem}", output.status);
    assert_eq!(said, "ok\n");
    daemon.finish().await;
}
