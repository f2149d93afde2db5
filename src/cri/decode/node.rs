//! UpdateRuntimeConfig.

use std::net::IpAddr;

use crate::cri::wire;
use crate::error::{Error, Result};

/// The pods' subnets of this node, separated by commas; empty: unknown.
pub(in crate::cri) fn pod_cidr(request: wire::UpdateRuntimeConfigRequest) -> Result<String> {
    let config = request.runtime_config.unwrap_or_default().network_config.unwrap_or_default();
    let cidrs = config.pod_cidr;
    match cidrs.is_empty() || cidrs.split(',').all(is_cidr) {
        true => Ok(cidrs),
        false => Err(Error::invalid(format!("pod_cidr is no list of subnets: {cidrs:?}"))),
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    match (address.parse(), length.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(length)) => length <= 32,
        (Ok(IpAddr::V6(_)), Ok(length)) => length <= 128,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pod_cidr: &str) -> Result<String> {
        let network_config = Some(wire::NetworkConfig { pod_cidr: pod_cidr.into() });
        let runtime_config = Some(wire::RuntimeConfig { network_config });
        super::pod_cidr(wire::UpdateRuntimeConfigRequest { runtime_config })
    }

    #[test]
    fn subnets_are_subnets() {
        assert_eq!(decode("").unwrap(), "");
        assert_eq!(decode("10.1.0.0/24,fd00::/64").unwrap(), "10.1.0.0/24,fd00::/64");
        for wrong in ["10.1.0.0", "10.1.0.0/33", "10.1.0.0/24, fd00::/64", "x/8", ","] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
        assert_eq!(super::pod_cidr(Default::default()).unwrap(), "");
    }
}
