//! TLS for who exposes the server: a certificate from files, reread when they change, or one made at
//! the start and signed by itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::advertise::host_and_port;
use crate::config::{StreamingConfig, StreamingTls};
use crate::error::Step;
use crate::{Error, Result};

pub struct Tls(TlsAcceptor);

impl Tls {
    /// None: none is configured.
    pub fn open(config: &StreamingConfig, local: SocketAddr) -> Result<Option<Self>> {
        let resolver: Arc<dyn ResolvesServerCert> = match config.tls {
            StreamingTls::Off => return Ok(None),
            StreamingTls::SelfSigned => Arc::new(Fixed(Arc::new(self_signed(&config.advertise, local)?))),
            StreamingTls::Files => {
                Arc::new(Files::open(config.tls_certificate.clone(), config.tls_key.clone())?)
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::internal(format!("setting TLS up: {e}")))?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Self(TlsAcceptor::from(Arc::new(tls)))))
    }

    pub async fn accept(&self, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.0.accept(tcp).await
    }
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    written: Written,
    key: Arc<CertifiedKey>,
}

/// When the two files were last changed.
type Written = [Option<SystemTime>; 2];

impl Files {
    fn open(certificate: PathBuf, key: PathBuf) -> Result<Self> {
        let written = written(&certificate, &key);
        let read = Arc::new(read(&certificate, &key)?);
        Ok(Self { certificate, key, used: Mutex::new(Used { written, key: read }) })
    }
}

impl ResolvesServerCert for Files {
    /// What is there now, if it can be used; a pair that is being replaced is used when it is whole.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let written = written(&self.certificate, &self.key);
        if written != used.written {
            match read(&self.certificate, &self.key) {
                Ok(key) => *used = Used { written, key: Arc::new(key) },
                Err(error) => tracing::warn!(%error, "going on with the former streaming certificate"),
            }
        }
        Some(Arc::clone(&used.key))
    }
}

fn written(certificate: &PathBuf, key: &PathBuf) -> Written {
    [certificate, key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

fn read(certificate: &PathBuf, key: &PathBuf) -> Result<CertifiedKey> {
    let content = |path: &PathBuf| std::fs::read(path).step(|| format!("reading {}", path.display()));
    let bad = |path: &PathBuf, e: &dyn std::fmt::Display| Error::invalid(format!("{}: {e}", path.display()));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&content(certificate)?)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| bad(certificate, &e))?;
    if chain.is_empty() {
        return Err(bad(certificate, &"there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_slice(&content(key)?).map_err(|e| bad(key, &e))?;
    certified(chain, secret).map_err(|e| e.during(certificate.display()))
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey> {
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(|e| Error::invalid(format!("the certificate and its key: {e}")))
}

/// For the address that clients are told, and for loopback.
fn self_signed(advertise: &str, local: SocketAddr) -> Result<CertifiedKey> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !local.ip().is_unspecified() {
        names.push(local.ip().to_string());
    }
    if let Some((host, _)) = host_and_port(advertise) {
        names.push(host.to_owned());
    }
    names.sort();
    names.dedup();
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| {
        Error::invalid(format!("making a certificate for streaming.advertise ({advertise:?}): {e}"))
    })?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    certified(vec![made.cert.der().clone()], key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_reread_when_its_files_change() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let write = |age: u64| {
            let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
            let at = SystemTime::now() - std::time::Duration::from_secs(age);
            for (path, text) in [(&certificate, made.cert.pem()), (&key, made.signing_key.serialize_pem())] {
                std::fs::write(path, text).unwrap();
                std::fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
            }
            made.cert.der().clone()
        };
        let first = write(100);
        let files = Files::open(certificate.clone(), key.clone()).unwrap();
        let used = || {
            let (written, mut used) = (written(&certificate, &key), files.used.lock().unwrap());
            if written != used.written {
                *used = Used { written, key: Arc::new(read(&certificate, &key).unwrap()) };
            }
            used.key.cert[0].clone()
        };
        assert_eq!(used(), first);
        let second = write(50);
        assert_eq!(used(), second);
        std::fs::write(&key, "no key").unwrap();
        assert!(read(&certificate, &key).unwrap_err().message.contains("tls.key"));
    }

    #[test]
    fn self_signed_certificates_are_usable() {
        for advertise in ["", "node.lan", "node.lan:1", "[fd00::1]:70", "fd00::1", "10.0.0.1"] {
            self_signed(advertise, "127.0.0.1:5".parse().unwrap()).unwrap();
        }
    }
}
