//! An IPv4 subnet as pods use it: the first address is the gateway (the bridge), the last one the
//! broadcast address, those between are the pods'.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    pub prefix: u8,
}

impl Subnet {
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix)))
    }

    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network + 1)
    }

    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | !self.mask().to_bits())
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.network
    }

    /// How many pods can have an address.
    pub fn capacity(&self) -> u32 {
        self.broadcast().to_bits() - self.network - 2
    }

    /// The pods' addresses in turn, beginning after `last` and coming round to it.
    pub fn after(&self, last: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let (first, count) = (self.network + 2, self.capacity());
        let start = last.to_bits().wrapping_add(1).wrapping_sub(first);
        let start = if start < count { start } else { 0 };
        (0..count).map(move |i| Ipv4Addr::from_bits(first + (start + i) % count))
    }
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| Error::invalid(format!("subnet {text:?} {why}"));
        let (address, prefix) =
            text.trim().split_once('/').ok_or_else(|| refuse("has no prefix length, as in 10.88.0.0/16"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse("is not an IPv4 subnet"))?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse("has no valid prefix length"))?;
        if !(8..=29).contains(&prefix) {
            return Err(refuse("must have a prefix length from 8 to 29"));
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        Ok(Self { network: address.to_bits() & mask, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_subnet_has_a_gateway_and_ends() {
        let s: Subnet = "10.88.3.7/16".parse().unwrap();
        assert_eq!(s.to_string(), "10.88.0.0/16");
        assert_eq!((s.gateway(), s.broadcast()), ([10, 88, 0, 1].into(), [10, 88, 255, 255].into()));
        assert_eq!(s.capacity(), 65533);
        assert!(s.contains(s.broadcast()) && !s.contains([10, 89, 0, 0].into()));
        for bad in ["", "10.88.0.0", "10.88.0.0/30", "10.88.0.0/x", "fd00::/64", "10.88.0.0/0"] {
            let error = bad.parse::<Subnet>().unwrap_err();
            assert!(error.message.contains(&format!("{bad:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_address_comes_once(network: u32, prefix in 24u8..=29, last: u32) {
            let subnet: Subnet = format!("{}/{prefix}", Ipv4Addr::from_bits(network)).parse().unwrap();
            let inside = Ipv4Addr::from_bits(subnet.network + 2 + last % subnet.capacity());
            let all: Vec<_> = subnet.after(inside).collect();
            let mut sorted = all.clone();
            sorted.sort();
            sorted.dedup();
            prop_assert_eq!(sorted.len() as u32, subnet.capacity());
            prop_assert!(sorted[0] > subnet.gateway() && *sorted.last().unwrap() < subnet.broadcast());
            prop_assert_eq!(*all.last().unwrap(), inside);
        }
    }
}
