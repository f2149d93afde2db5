//! A registry that does what a test tells it, down to the bytes on the connection.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::image::digest::Digest;

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// After `cut` bytes keep the connection open until this is released.
    pub stall: Option<Arc<tokio::sync::Semaphore>>,
    /// Zeros follow the body for ever.
    pub endless: bool,
    /// The same, but one only now and then.
    pub trickle: bool,
    /// Answer only when this is released.
    pub gate: Option<Arc<tokio::sync::Semaphore>>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
            stall: None,
            endless: false,
            trickle: false,
            gate: None,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request, &Content) -> Option<Reply> + Send + Sync;

/// What the registry serves: path → media type and bytes.
pub type Content = HashMap<String, (String, Vec<u8>)>;

pub struct Fake {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    content: Arc<Mutex<Content>>,
}

impl Fake {
    /// Serves its content; `handler` may answer instead.
    pub async fn start(
        handler: impl Fn(&Request, &Content) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, content) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Content::new())));
        let (seen, served, handler) = (Arc::clone(&requests), Arc::clone(&content), Arc::new(handler));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, served, handler) = (Arc::clone(&seen), Arc::clone(&served), Arc::clone(&handler));
                tokio::spawn(async move { serve(stream, &seen, &served, &*handler).await });
            }
        });
        Self { address, requests, content }
    }

    pub async fn plain() -> Self {
        Self::start(|_, _| None).await
    }

    pub fn put(&self, path: &str, kind: &str, bytes: Vec<u8>) {
        self.content.lock().unwrap().insert(path.into(), (kind.into(), bytes));
    }

    pub fn take(&self, path: &str) {
        self.content.lock().unwrap().remove(path);
    }

    pub fn count(&self, part: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|r| r.path.contains(part)).count()
    }

    /// Of what was put under `path`.
    pub fn size(&self, path: &str) -> usize {
        self.content.lock().unwrap()[path].1.len()
    }

    pub fn bytes(&self, path: &str) -> Vec<u8> {
        self.content.lock().unwrap()[path].1.clone()
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn put_blob(&self, repository: &str, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.put(&format!("/v2/{repository}/blobs/{digest}"), "application/octet-stream", bytes);
        digest
    }

    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        kind: &str,
        manifest: &serde_json::Value,
    ) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        for version in [tag.to_owned(), digest.to_string()] {
            self.put(&format!("/v2/{repository}/manifests/{version}"), kind, bytes.clone());
        }
        digest
    }

    /// Puts an image of these layers (each compressed and plain); returns the config's and the
    /// manifest's digest.
    pub fn put_image(&self, repository: &str, tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> (Digest, Digest) {
        let diff_ids: Vec<_> = layers.iter().map(|(_, plain)| Digest::of(plain).to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"User": "7:8", "Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let config_size = config.len();
        let id = self.put_blob(repository, config);
        let layers: Vec<_> = layers
            .iter()
            .map(|(compressed, _)| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "size": compressed.len(),
                    "digest": self.put_blob(repository, compressed.clone()).to_string(),
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": id.to_string(), "size": config_size,
            },
        });
        (id, self.put_manifest(repository, tag, OCI_MANIFEST, &manifest))
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn serve(
    mut stream: tokio::net::TcpStream,
    seen: &Mutex<Vec<Request>>,
    content: &Mutex<Content>,
    handler: &Handler,
) {
    let Some(request) = read_request(&mut stream).await else { return };
    seen.lock().unwrap().push(request.clone());
    let content = content.lock().unwrap().clone();
    let reply = handler(&request, &content).unwrap_or_else(|| answer(&request, &content));
    if let Some(gate) = &reply.gate {
        gate.acquire().await.unwrap().forget();
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let framed = ["Content-Length", "Transfer-Encoding"];
    let framed = reply.headers.iter().any(|(name, _)| framed.contains(&name.as_str()));
    if !reply.endless && !reply.trickle && !framed {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    let _ = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await;
    while reply.trickle && stream.write_all(&[0]).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    while reply.endless && stream.write_all(&[0; 64 << 10]).await.is_ok() {}
    if let Some(stall) = &reply.stall {
        let _released = stall.acquire().await;
    }
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await.ok()? {
            0 => return None,
            len => bytes.extend_from_slice(&buffer[..len]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let len: usize = headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = bytes[end + 4..].to_vec();
    while body.len() < len {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await.ok()? {
            0 => return None,
            read => body.extend_from_slice(&buffer[..read]),
        }
    }
    Some(Request { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// What an honest registry answers.
pub fn answer(request: &Request, content: &Content) -> Reply {
    if request.path == "/v2/" {
        return Reply::new(200, "{}");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let Some((kind, bytes)) = content.get(path) else {
        let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
        return Reply::new(404, body.to_string());
    };
    let range = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
    match range.and_then(|from| from.parse::<usize>().ok()) {
        Some(from) => Reply::new(206, &bytes[from..])
            .header("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        None => Reply::new(200, bytes.clone()).header("Content-Type", kind),
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer with these files: compressed and plain.
pub fn layer(files: &[(&str, &[u8])]) -> (Vec<u8>, Vec<u8>) {
    let plain = tar_of(files);
    (gzip(&plain), plain)
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}
