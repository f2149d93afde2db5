//! HTTP proxies, by way of a small one of the tests' own. The registries are known to it alone: their names
//! have no address, and nobody but the proxy can resolve them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use podwright::error::Kind;
use podwright::image::{Auth, Proxy as Proxies, Settings};

use crate::support::{Registry, Setup, open_with};
use crate::tls::{Authority, push};

/// Names under which the proxy knows registries; the first speaks TLS.
pub const SECURE: &str = "secure.registry.test";
const PLAIN: &str = "plain.registry.test";
/// What the proxy wants to see, where it wants something: `proxy:sesame` in base64.
const PASSWORD: &str = "Basic cHJveHk6c2VzYW1l";

/// A proxy for CONNECT and for plain requests.
struct Proxy {
    port: u16,
    /// The head of each connection's first request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// `secure` and `plain` are the registries' ports.
    fn start(secure: u16, plain: u16, wants_password: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || serve(client, &noted, (secure, plain), wants_password));
            }
        });
        Self { port, seen }
    }

    fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    /// The first lines of what it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        let heads = std::mem::take(&mut *self.seen.lock().unwrap());
        heads.iter().map(|head| head.lines().next().unwrap_or_default().to_owned()).collect()
    }
}

fn serve(
    mut client: TcpStream,
    seen: &Mutex<Vec<String>>,
    (secure, plain): (u16, u16),
    wants_password: bool,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    let authorized = head.lines().any(|line| {
        line.split_once(": ").is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization") && value == PASSWORD
        })
    });
    if wants_password && !authorized {
        let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (port, first) = if target == format!("{SECURE}:443") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        (secure, String::new())
    } else if target.starts_with(&format!("http://{PLAIN}/")) {
        // One request on each connection; Go's servers take a whole URL.
        (plain, head.replacen("\r\n", "\r\nConnection: close\r\n", 1))
    } else {
        let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    server.write_all(first.as_bytes()).unwrap();
    let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let upwards = std::thread::spawn(move || {
        let _ = std::io::copy(&mut up, &mut server);
        let _ = server.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut down, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upwards.join();
}

/// A registry with TLS and one without, the same image in both, and the settings to reach them but for the
/// proxy.
struct Scene {
    secure: Registry,
    plain: Registry,
    certs: tempfile::TempDir,
    authority: Authority,
}

impl Scene {
    fn new() -> Option<Self> {
        let authority = Authority::new();
        let (certificate, key) = (authority.path("server.pem"), authority.path("server.key"));
        let secure = Registry::start_with(&Setup { tls: Some((&certificate, &key)), ..Setup::default() })?;
        let plain = Registry::start()?;
        for registry in [&secure, &plain] {
            push(registry, &[]);
        }
        Some(Self { secure, plain, certs: tempfile::tempdir().unwrap(), authority })
    }

    fn settings(&self, proxy: Option<Proxies>) -> Settings {
        let directory = self.certs.path().join(SECURE);
        std::fs::create_dir_all(&directory).unwrap();
        let ca = format!("ca = {:?}\n", self.authority.path("ca.pem"));
        std::fs::write(directory.join("hosts.toml"), ca).unwrap();
        Settings {
            certs_dirs: vec![self.certs.path().into()],
            insecure: vec![PLAIN.into()],
            proxy,
            ..Settings::default()
        }
    }
}

async fn pull(settings: Settings, name: &str) -> Result<(), podwright::Error> {
    let root = tempfile::tempdir().unwrap();
    let images = open_with(root.path(), settings).await;
    images.pull(name, Auth::default()).await?;
    let layers = images.status(name).unwrap().unwrap().layers;
    assert_eq!(std::fs::read(layers[0].join("etc/motd")).unwrap().len(), 200_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_behind_a_proxy_are_reached_by_the_configuration() {
    let Some(scene) = Scene::new() else { return };
    let proxy = Proxy::start(scene.secure.port, scene.plain.port, true);
    let by = |user: &str, except: &str| {
        let (http, https) = (proxy.url(user), proxy.url(user));
        Some(Proxies { http, https, except: except.into() })
    };
    let (secure, plain) = (format!("{SECURE}/a/b:v1"), format!("{PLAIN}/a/b:v1"));
    // TLS goes through a tunnel, of which the proxy sees the host and nothing else.
    pull(scene.settings(by("proxy:sesame@", "")), &secure).await.unwrap();
    let heads = proxy.seen.lock().unwrap().join("");
    assert!(!heads.contains("/v2/"), "{heads}");
    let asked = proxy.asked();
    let connect = format!("CONNECT {SECURE}:443 HTTP/1.1");
    assert!(!asked.is_empty() && asked.iter().all(|line| *line == connect), "{asked:?}");
    // A registry without TLS is asked by whole URLs, after TLS was tried.
    pull(scene.settings(by("proxy:sesame@", "")), &plain).await.unwrap();
    let asked = proxy.asked();
    assert!(asked.contains(&format!("CONNECT {PLAIN}:443 HTTP/1.1")), "{asked:?}");
    assert!(asked.contains(&format!("GET http://{PLAIN}/v2/a/b/manifests/v1 HTTP/1.1")), "{asked:?}");
    // A proxy that refuses is named as the cause, without the password.
    let error = pull(scene.settings(by("proxy:wrong-one@", "")), &secure).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert!(error.message.contains("proxy") && !error.message.contains("wrong-one"), "{error}");
    // Exceptions: as a name, as a domain. What is left is a name that nobody can resolve.
    proxy.asked();
    for except in [SECURE, ".registry.test", "10.0.0.0/8,registry.test"] {
        let error = pull(scene.settings(by("proxy:sesame@", except)), &secure).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable, "{error}");
    }
    // Loopback never goes through a proxy.
    pull(scene.settings(by("proxy:sesame@", "")), &scene.plain.reference("a/b:v1")).await.unwrap();
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

/// Runs itself again with other environments.
#[tokio::test(flavor = "multi_thread")]
async fn registries_behind_a_proxy_are_reached_by_the_environment() {
    let Some(scene) = Scene::new() else { return };
    let proxy = Proxy::start(scene.secure.port, scene.plain.port, false);
    let settings = scene.settings(None);
    let run = |variables: &[(&str, &str)], image: &str, fits: bool| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "proxy::with_an_environment", "--ignored"]);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.envs(variables.iter().copied());
        command.env("TEST_CERTS", &settings.certs_dirs[0]).env("TEST_IMAGE", image);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), fits, "{variables:?}: {said}");
        proxy.asked()
    };
    let url = proxy.url("");
    let (secure, plain) = (format!("{SECURE}/a/b:v1"), format!("{PLAIN}/a/b:v1"));
    for names in [["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"], ["https_proxy", "http_proxy", "no_proxy"]] {
        let [https, http, except] = names;
        let asked = run(&[(https, &url)], &secure, true);
        assert!(asked.iter().all(|line| line.starts_with("CONNECT ")) && !asked.is_empty(), "{asked:?}");
        let asked = run(&[(http, &url)], &plain, true);
        assert!(asked.iter().all(|line| line.starts_with("GET http://")) && !asked.is_empty(), "{asked:?}");
        assert!(run(&[(http, &url)], &secure, false).is_empty(), "that one is for plain HTTP");
        assert!(run(&[(https, &url), (except, "example.com,.registry.test")], &secure, false).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by registries_behind_a_proxy_are_reached_by_the_environment"]
async fn with_an_environment() {
    let (Some(certs), Ok(image)) = (std::env::var_os("TEST_CERTS"), std::env::var("TEST_IMAGE")) else {
        return;
    };
    let settings = Settings {
        certs_dirs: vec![Path::new(&certs).into()],
        insecure: vec![PLAIN.into()],
        ..Settings::default()
    };
    pull(settings, &image).await.unwrap();
}
