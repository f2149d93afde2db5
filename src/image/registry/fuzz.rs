//! Fuzz targets: what registries ask for, and what says which ones to ask.

use std::path::Path;

use super::{challenge, hosts_toml as hosts, registries_conf as registries};

pub fn www_authenticate(data: &[u8]) {
    for challenge in challenge::parse(data) {
        let _ = (challenge.param("realm"), challenge.param("service"));
        assert!(!challenge.scheme.is_empty());
    }
}

pub fn hosts_toml(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = hosts::parse(text, Path::new("/etc/certs.d/x"));
    }
}

pub fn registries_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(conf) = registries::parse(text) else { return };
    for name in ["docker.io/library/busybox", "localhost:5000/a/b", "x.example/y"] {
        let _ = conf.full_names(name);
        if let Some(rule) = conf.rule(name) {
            let _ = (rule.places(name, false), rule.places(name, true));
        }
    }
}

pub fn www_authenticate_seeds() -> Vec<Vec<u8>> {
    let bearer: &[u8] = b"Bearer realm=\"https://a/token\",service=\"a\",scope=\"repository:x:pull\"";
    vec![bearer.to_vec(), b"Basic realm=x, Negotiate YWJj==, Digest a = \"\\\"b\", c=d".to_vec()]
}

pub fn hosts_toml_seeds() -> Vec<Vec<u8>> {
    let text = "server = \"https://a\"\n[host.\"https://m:5000/v2/x\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
                ca = \"ca.crt\"\nclient = [[\"c.crt\", \"c.key\"]]\nskip_verify = true\noverride_path = true\n\
                [host.\"https://m:5000/v2/x\".header]\nx-a = [\"b\", \"c\"]\n";
    vec![
        text.as_bytes().to_vec(),
        b"[host.\"http://b\"]\nca = [\"a\", \"/b\"]\nclient = \"c.pem\"\n".to_vec(),
    ]
}

pub fn registries_conf_seeds() -> Vec<Vec<u8>> {
    let text = "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"permissive\"\n\
                [[registry]]\nprefix = \"*.example\"\nlocation = \"m.example/x\"\nblocked = false\n\
                [[registry.mirror]]\nlocation = \"n\"\ninsecure = true\npull-from-mirror = \"digest-only\"\n\
                [aliases]\n\"a\" = \"b.example/a\"\n";
    vec![text.as_bytes().to_vec(), b"[[registry]]\nlocation = \"docker.io\"\n".to_vec()]
}
