//! Writes an OCI image layout with busybox in it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/bin/false\n\
                      default-user:x:1000:1000::/home/default-user:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\nextra:x:50000:default-user\n";

pub fn write(directory: &Path, busybox: &Path) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| -> (String, usize) {
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let tar = layer(busybox);
    let diff_id: String = Sha256::digest(&tar).iter().map(|b| format!("{b:02x}")).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let (layer, layer_size) = put(&gzip.finish().unwrap());
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "StopSignal": "SIGTERM",
            "Volumes": {"/volume": {}, "/../../../../../../../../etc": {}, "/up/../../../../../usr": {}}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created_by": "the tests"}],
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size}],
    });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn layer(busybox: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in
        ["bin", "dev", "etc", "proc", "sys", "root", "tmp", "var", "var/www", "home", "home/default-user"]
    {
        let mut header =
            header(tar::EntryType::Directory, if directory == "tmp" { 0o1777 } else { 0o755 }, 0);
        tar.append_data(&mut header, directory, std::io::empty()).unwrap();
    }
    let program = fs::read(busybox).unwrap();
    let mut head = header(tar::EntryType::Regular, 0o755, program.len());
    tar.append_data(&mut head, "bin/busybox", program.as_slice()).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|a| *a != "busybox") {
        let mut head = header(tar::EntryType::Link, 0o755, 0);
        tar.append_link(&mut head, format!("bin/{applet}"), "bin/busybox").unwrap();
    }
    for (path, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        let mut head = header(tar::EntryType::Regular, 0o644, text.len());
        tar.append_data(&mut head, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header
}
