//! Name resolution. A static glibc has no NSS, so that the resolver is a library of our own
//! process; it reads /etc/hosts and /etc/resolv.conf, and rereads the latter when it changes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

type Stamp = (Option<SystemTime>, Option<SystemTime>);

#[derive(Clone, Default)]
pub struct Resolver {
    present: Arc<Mutex<Option<(Stamp, TokioResolver)>>>,
}

impl Resolver {
    fn resolver(&self) -> Result<TokioResolver, Box<dyn std::error::Error + Send + Sync>> {
        let modified = |path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let stamp = (modified(RESOLV_CONF), modified(HOSTS));
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, resolver)) = &*present
            && *of == stamp
        {
            return Ok(resolver.clone());
        }
        let mut builder =
            TokioResolver::builder_tokio().map_err(|e| format!("reading {RESOLV_CONF}: {e}"))?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = builder.build()?;
        *present = Some((stamp, resolver.clone()));
        Ok(resolver)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let lookup = this.resolver()?.lookup_ip(name.as_str()).await?;
            let addresses: Vec<_> = lookup.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
