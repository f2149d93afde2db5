//! Fuzz targets: what registries, archives and configuration files say.

use std::io::{BufReader, Read, Write};
use std::path::Path;

use super::inflate;
use super::manifest::Manifest;
use super::reference::{self, Query, Reference};
pub use super::registry::fuzz::*;
use super::unpack::{self, Limits};

/// What is accepted has a canonical form, which means the same.
pub fn reference(data: &[u8]) {
    if let Ok(parsed) = Reference::parse(data) {
        let shown = parsed.to_string();
        assert_eq!(Reference::parse(shown.as_bytes()), Ok(parsed), "{shown}");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (Query::parse(text), reference::is_short(text));
    }
}

pub fn manifest(data: &[u8]) {
    for kind in [
        "",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        if let Ok(Manifest::Image { layers, .. }) = Manifest::parse(data, kind) {
            layers.iter().for_each(|layer| drop(layer.check_layer()));
        }
    }
}

/// A DEFLATE stream, in pieces and blocks as its first bytes say, means what it means to zlib.
pub fn gunzip(data: &[u8]) {
    let Some((&[piece, size], deflate)) = data.split_first_chunk() else { return };
    let mut theirs = Vec::new();
    let mut decoder = flate2::bufread::DeflateDecoder::new(deflate);
    let read = decoder.read_to_end(&mut theirs);
    let used = usize::try_from(decoder.total_in()).unwrap_or(deflate.len());
    let deflate = if read.is_ok() { &deflate[..used] } else { deflate };
    let zipped = [b"\x1f\x8b\x08\0\0\0\0\0\0\xff", deflate, &[0; 8]].concat();
    let mut ours = Vec::new();
    let mut input = BufReader::with_capacity(1 + usize::from(piece) * 3, &zipped[..]);
    let result = inflate::gunzip(&mut input, 1 + usize::from(size) * 7, |block| {
        ours.extend_from_slice(block.fresh());
        Ok(block.bytes)
    });
    match (result, read) {
        (Ok(()), Ok(_)) => assert!(ours == theirs, "{} bytes and {} bytes differ", ours.len(), theirs.len()),
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!("we say {ours:?}, zlib says {theirs:?}"),
    }
}

/// A layer stays inside its directory, and within its limits.
pub fn tar_layer(data: &[u8]) {
    let data = sealed(data);
    let place = std::env::temp_dir().join(format!("podwright-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&place);
    let root = place.join("root");
    std::fs::create_dir_all(&root).expect("a directory");
    std::fs::write(place.join("canary"), "sings").expect("a file");
    let limits = Limits { bytes: 1 << 20, entries: 64, depth: 16 };
    if let Ok(applied) = unpack::apply(&data[..], &root, Some(&place.join("manifest")), limits) {
        assert!(applied.implied.len() <= 64 * 16);
        let faults = unpack::verify(&root, &place.join("manifest"), 10).expect("a manifest");
        assert!(faults.is_empty(), "{faults:?}");
    }
    assert!(depth(&root) <= limits.depth + 2, "{}", depth(&root));
    assert_eq!(names(&place), ["canary", "manifest", "root"]);
    assert_eq!(std::fs::read(place.join("canary")).ok().as_deref(), Some(&b"sings"[..]));
    let _ = std::fs::remove_dir_all(&place);
}

/// With the checksums that no change of a byte here and there could find.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut sealed = data.to_vec();
    for block in sealed.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        seal(block);
    }
    sealed
}

fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// How deep directories lie in each other.
fn depth(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    inner.map(|entry| 1 + depth(&entry.path())).max().unwrap_or(0)
}

fn names(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn reference_seeds() -> Vec<Vec<u8>> {
    let digest = format!("busybox@sha256:{}", "0f".repeat(32));
    texts(&["busybox", "docker.io/library/busybox:1.36", "[::1]:5000/a/b_c--d:x", "localhost/a", &digest])
}

pub fn manifest_seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "0f".repeat(32));
    let blob = format!(
        "{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{digest}\",\"size\":9}}"
    );
    let image = format!("{{\"schemaVersion\":2,\"config\":{blob},\"layers\":[{blob}]}}");
    let platform = "{\"architecture\":\"arm64\",\"os\":\"linux\",\"variant\":\"v8\"}";
    let entry = format!("{{\"digest\":\"{digest}\",\"size\":1,\"platform\":{platform}}}");
    texts(&[&image, &format!("{{\"schemaVersion\":2,\"manifests\":[{entry},{entry}]}}")])
}

/// A header of ustar and its content, padded.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, value) in [(100, 0o755), (108, 0), (116, 0), (124, content.len()), (136, 0)] {
        let width = if at < 124 { 7 } else { 11 };
        header[at..at + width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    }
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    let padding = content.len().next_multiple_of(512) - content.len();
    [&header[..], content, &vec![0; padding]].concat()
}

pub fn tar_seeds() -> Vec<Vec<u8>> {
    let plain = [
        entry("dir/", b'5', "", b""),
        entry("dir/file", b'0', "", b"content"),
        entry("dir/link", b'2', "../../../etc", b""),
        entry("dir/link/under", b'0', "", b"x"),
        entry("hard", b'1', "dir/file", b""),
        entry("dir/.wh.gone", b'0', "", b""),
        entry("dir/.wh..wh..opq", b'0', "", b""),
        vec![0; 1024],
    ];
    let extended = [
        entry("pax", b'x', "", b"16 path=../evil\n28 SCHILY.xattr.user.a=\xff\x00b\n"),
        entry("name", b'0', "", b""),
        entry("long", b'L', "", &[b'a'; 300]),
        entry("fifo", b'6', "", b""),
        entry("/absolute", b'0', "", b""),
    ];
    // Down through links: deeper than any of its names.
    let deep = [
        entry("a/b/c/d/e/f", b'5', "", b""),
        entry("x", b'2', "a/b/c/d/e/f", b""),
        entry("x/a/b/c/d/e/f", b'5', "", b""),
        entry("y", b'2', "x/a/b/c/d/e/f", b""),
        entry("y/a/b/c/d/e/f/g", b'5', "", b""),
    ];
    vec![plain.concat(), extended.concat(), deep.concat(), entry("../up", b'0', "", b"x")]
}

/// Stored, fixed and dynamic blocks; matches near and far; a stream that is cut off, and one with more
/// behind it.
pub fn gunzip_seeds() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..600_u32).flat_map(|n| format!("{} ", n * n % 97).into_bytes()).collect();
    let far = [&text[..], &vec![b'a'; 33_000], &text].concat();
    let deflate = |bytes: &[u8], level: u32| {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
        let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
        written.expect("memory has room")
    };
    let streams = [
        deflate(b"", 6),
        deflate(b"stored as it is", 0),
        deflate(b"fixed", 9),
        deflate(&text, 9),
        deflate(&far, 1),
        deflate(&text, 6)[..90].to_vec(),
        [deflate(&text, 6), b"more".to_vec()].concat(),
        // A fixed block whose first symbol is a match, and one of an unknown type.
        vec![0b011, 0b10],
        vec![7],
    ];
    let starts = [[0, 0], [1, 90], [255, 255]].into_iter().cycle();
    streams.iter().zip(starts).map(|(stream, start)| [&start[..], stream].concat()).collect()
}
