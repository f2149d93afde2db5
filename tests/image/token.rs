//! docker-registry behind a token server of the tests' own, which gives it what it wants: JSON web tokens
//! (RFC 7519) signed with ES256 (RFC 7518).

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use podwright::error::Kind;
use podwright::image::Auth;
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use serde_json::json;

use crate::support::{Registry, Setup, TOKEN_ISSUER, TOKEN_SERVICE, open};
use crate::tls::push;

/// What amy sends to have a token: her password, or the identity token that stands for it.
const IDENTITY: &str = "amys refresh/token+";

/// Everybody may pull what is `public/…`; amy may pull and push all.
struct Tokens {
    directory: tempfile::TempDir,
    port: u16,
    /// Method, scopes, and whether it was amy who asked.
    asked: Arc<Mutex<Vec<(String, String, bool)>>>,
}

impl Tokens {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["tokens".to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(directory.path().join("tokens.pem"), certificate.pem()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let der = certificate.der().to_vec();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                answer(client, &noted, &key, &der);
            }
        });
        Self { directory, port, asked }
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("tokens.pem")
    }

    fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    fn asked(&self) -> Vec<(String, String, bool)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer(mut client: TcpStream, asked: &Mutex<Vec<(String, String, bool)>>, key: &KeyPair, der: &[u8]) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let (head, body) = loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let len =
                |line: &str| line.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok();
            if body.len() >= head.lines().find_map(len).unwrap_or(0) {
                break (head.to_owned(), body.to_owned());
            }
        }
        match client.read(&mut buffer) {
            Ok(len) if len > 0 => request.extend_from_slice(&buffer[..len]),
            _ => return,
        }
    };
    let method = head.split(' ').next().unwrap_or_default().to_owned();
    let target = head.split(' ').nth(1).unwrap_or_default();
    let query = if method == "POST" { body } else { target.split_once('?').unwrap_or_default().1.to_owned() };
    let fields: Vec<(String, String)> = query
        .split('&')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    let all = |name: &str| {
        fields.iter().filter(|(field, _)| field == name).map(|(_, v)| v.clone()).collect::<Vec<_>>()
    };
    let basic = format!("Basic {}", BASE64_STANDARD.encode("amy:sesame"));
    let given = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
    });
    let amy = given.as_deref() == Some(&basic) || all("refresh_token") == [IDENTITY];
    let wrong = (given.is_some() || !all("refresh_token").is_empty()) && !amy;
    asked.lock().unwrap().push((method, all("scope").join(" "), amy));
    let (status, body) = if wrong || all("service") != [TOKEN_SERVICE] {
        ("401 Unauthorized", json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}))
    } else {
        let granted = all("scope").join(" ").split(' ').filter_map(|scope| granted(scope, amy)).collect();
        ("200 OK", json!({"access_token": token(key, der, granted), "expires_in": 60}))
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = client.write_all((head + &body).as_bytes());
}

/// Of a form: `%XX` and `+`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// `repository:NAME:ACTIONS` as the registry reads it in a token.
fn granted(scope: &str, amy: bool) -> Option<serde_json::Value> {
    let [kind, name, actions] = scope.split(':').collect::<Vec<_>>().try_into().ok()?;
    let actions: Vec<_> =
        actions.split(',').filter(|action| amy || *action == "pull" && name.starts_with("public/")).collect();
    (!actions.is_empty()).then(|| json!({"type": kind, "name": name, "actions": actions}))
}

fn token(key: &KeyPair, der: &[u8], access: Vec<serde_json::Value>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(der)]});
    let claims = json!({
        "iss": TOKEN_ISSUER, "sub": "x", "aud": TOKEN_SERVICE, "exp": now + 60, "nbf": now - 10, "iat": now,
        "jti": now.to_string(), "access": access,
    });
    let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = key.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(both_halves(&signature)))
}

/// JSON's form of a signature, 32 bytes each, from that of ASN.1: SEQUENCE { INTEGER, INTEGER }.
fn both_halves(signature: &[u8]) -> Vec<u8> {
    let mut halves = Vec::new();
    let mut rest = &signature[2..];
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        let number = &number[number.len().saturating_sub(32)..];
        halves.extend(std::iter::repeat_n(0, 32 - number.len()).chain(number.iter().copied()));
        rest = after;
    }
    halves
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_the_registry_to_whom_they_are_given() {
    let tokens = Tokens::start();
    let (realm, certificate) = (tokens.realm(), tokens.certificate());
    let setup = Setup { tokens: Some((&realm, &certificate)), ..Setup::default() };
    let Some(registry) = Registry::start_with(&setup) else { return };
    let archive = push(&registry, &["--dest-creds", "amy:sesame"]);
    registry.push(&archive, "public/tool:v1", &["--dest-creds", "amy:sesame"]);
    tokens.asked();
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let [public, private] = ["public/tool:v1", "a/b:v1"].map(|name| registry.reference(name));
    images.pull(&public, Auth::default()).await.unwrap();
    let anonymous = ("GET".to_owned(), "repository:public/tool:pull".to_owned(), false);
    assert_eq!(tokens.asked(), [anonymous], "one token for manifest, config and layer");
    // Nobody's token does not do, nor does it help that the layers are here already.
    let error = images.pull(&private, Auth::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
    assert!(error.message.contains("repository a/b"), "{error}");
    let amy = |password: &str| Auth { username: "amy".into(), password: password.into(), ..Auth::default() };
    let error = images.pull(&private, amy("wrong")).await.unwrap_err();
    assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
    assert!(error.message.contains("who are you") && !error.message.contains("wrong"), "{error}");
    tokens.asked();
    images.pull(&private, amy("sesame")).await.unwrap();
    assert_eq!(tokens.asked(), [("GET".to_owned(), "repository:a/b:pull".to_owned(), true)]);
    images.remove(&private).await.unwrap();
    let identity = Auth { identity_token: IDENTITY.into(), ..Auth::default() };
    images.pull(&private, identity).await.unwrap();
    assert_eq!(tokens.asked(), [("POST".to_owned(), "repository:a/b:pull".to_owned(), true)]);
}
