//! Which of a port's addresses (GIDs) to use, and why. A wrong one is the usual reason for RoCE links that never come up, so
//! the choice explains itself.
//!
//! On Ethernet each address of the network device appears as a GID twice, for RoCE v1 and v2. Only v2 crosses routers, and
//! only one with an IPv4 address, or a global IPv6 one, is sure to be reachable by all peers. The best is the one that
//! is this node's own address, by which its peers reach it anyway.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The address that a GID's bytes stand for.
pub(crate) fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

/// GIDs looked at in a port's table, at most.
pub(crate) const MOST: usize = 256;

/// A GID as a port has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: usize,
    /// Its bytes.
    pub bytes: [u8; 16],
    /// What it is for.
    pub kind: GidKind,
    /// The network device that it belongs to, where the kernel tells.
    pub network_device: Option<String>,
}

/// What a GID is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GidKind {
    /// Frames of Ethernet, which no router passes on.
    RoceV1,
    /// Packets of UDP.
    RoceV2,
    /// InfiniBand, where the LID addresses a peer.
    InfiniBand,
    /// The kernel doesn't tell.
    Unknown,
}

impl GidKind {
    /// From the kernel's word for it, of a port on Ethernet or not.
    pub(crate) fn read(word: Option<&str>, ethernet: bool) -> Self {
        match word {
            Some("RoCE v2") => Self::RoceV2,
            Some("IB/RoCE v1") if ethernet => Self::RoceV1,
            Some("IB/RoCE v1") => Self::InfiniBand,
            _ => Self::Unknown,
        }
    }
}

impl Gid {
    /// The address that it stands for.
    pub fn address(&self) -> IpAddr {
        address(self.bytes)
    }

    /// How good a choice it is on Ethernet, and why. Zero is none.
    pub(crate) fn merit(&self, own: Option<IpAddr>) -> (u32, &'static str) {
        match (self.kind, self.address()) {
            _ if self.bytes == [0; 16] => (0, "empty"),
            (GidKind::RoceV1 | GidKind::InfiniBand, _) => (0, "RoCE v1, which no router passes on"),
            (_, address) if Some(address) == own => (5, "RoCE v2 with this node's own address"),
            (_, IpAddr::V4(_)) => (4, "RoCE v2 with an IPv4 address"),
            (_, IpAddr::V6(address)) if !address.is_unicast_link_local() => {
                (3, "RoCE v2 with a global address")
            }
            _ => (1, "RoCE v2 with a link-local address, which only peers on the same link reach"),
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GID {} {}", self.index, self.address())?;
        match &self.network_device {
            Some(device) => write!(f, " of {device}"),
            None => Ok(()),
        }
    }
}

/// A choice, with what speaks for it and against the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The index of the one to use, if any will do.
    pub index: Option<usize>,
    /// One line for each GID.
    pub reasons: Vec<String>,
}

/// Chooses among the GIDs of a port on Ethernet. `own` is the address by which peers reach this node.
pub fn choose(gids: &[Gid], own: Option<IpAddr>) -> Choice {
    let best = gids.iter().max_by_key(|gid| (gid.merit(own).0, std::cmp::Reverse(gid.index)));
    let index = best.filter(|gid| gid.merit(own).0 > 0).map(|gid| gid.index);
    let reasons = gids.iter().filter(|gid| gid.bytes != [0; 16]).map(|gid| {
        let taken = if Some(gid.index) == index { "taken" } else { "not taken" };
        format!("{gid}: {taken}, {}", gid.merit(own).1)
    });
    Choice { index, reasons: reasons.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: usize, address: &str, kind: GidKind) -> Gid {
        let address: IpAddr = address.parse().unwrap();
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Gid { index, bytes, kind, network_device: Some("eth0".to_owned()) }
    }

    #[test]
    fn ones_own_address_comes_first_then_ipv4_then_global_then_the_link() {
        let all = [
            gid(0, "fe80::1", GidKind::RoceV1),
            gid(1, "fe80::1", GidKind::RoceV2),
            gid(2, "2001:db8::1", GidKind::RoceV2),
            gid(3, "10.0.0.1", GidKind::RoceV1),
            gid(4, "10.0.0.1", GidKind::RoceV2),
            gid(5, "10.1.0.1", GidKind::RoceV2),
        ];
        assert_eq!(choose(&all, Some("10.1.0.1".parse().unwrap())).index, Some(5));
        assert_eq!(choose(&all, None).index, Some(4));
        assert_eq!(choose(&all[..4], None).index, Some(2));
        assert_eq!(choose(&all[..2], None).index, Some(1));
        assert_eq!(choose(&all[..1], None).index, None);
        assert_eq!(choose(&[], None).index, None);
    }

    #[test]
    fn the_choice_says_why() {
        let all = [gid(0, "10.0.0.1", GidKind::RoceV1), gid(1, "10.0.0.1", GidKind::RoceV2)];
        assert_eq!(
            choose(&all, None).reasons,
            [
                "GID 0 10.0.0.1 of eth0: not taken, RoCE v1, which no router passes on",
                "GID 1 10.0.0.1 of eth0: taken, RoCE v2 with an IPv4 address"
            ]
        );
    }
}
