//! Masquerading by nftables, over netlink: one table named after the bridge, replaced whole.
//!
//! ```text
//! table ip podwright0 {
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat
//!         ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 masquerade fully-random
//!     }
//! }
//! ```

use super::subnet::Subnet;
use crate::Result;
use crate::network::netlink::message::{Batch, NLM_F_APPEND, NLM_F_CREATE};
use crate::network::netlink::{self, Refusal, Socket};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NF_INET_POST_ROUTING: u32 = 4;
const NF_IP_PRI_NAT_SRC: u32 = 100;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFT_REG_1: u32 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFTA_MASQ_FLAGS: u16 = 1;
/// Ports by chance, so that two flows that begin at once do not fight over one.
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
/// Where the addresses stand in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

const CHAIN: &str = "postrouting";
const FAMILY_IPV4: u8 = 2;
const FAMILY_NONE: u8 = 0;

/// Makes what leaves the subnets carry the node's address. All or nothing, and repeatable.
///
/// # Errors
/// `Err(Ok(_))` when the kernel refused, for instance since it has no nf_tables.
pub fn replace(table: &str, subnets: &[Subnet]) -> Result<(), Result<Refusal>> {
    let mut batch = begin(table);
    let step = format!("making nftables table ip {table}");
    request(&mut batch, &step, NFT_MSG_NEWTABLE, NLM_F_CREATE).text(NFTA_TABLE_NAME, table);
    let step = format!("making nftables chain {table} {CHAIN}");
    request(&mut batch, &step, NFT_MSG_NEWCHAIN, NLM_F_CREATE)
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, CHAIN)
        .nest(NFTA_CHAIN_HOOK, |b| {
            b.number_be(NFTA_HOOK_HOOKNUM, NF_INET_POST_ROUTING)
                .number_be(NFTA_HOOK_PRIORITY, NF_IP_PRI_NAT_SRC);
        })
        .text(NFTA_CHAIN_TYPE, "nat");
    for subnet in subnets {
        let step = format!("making the nftables rule that masquerades {subnet}");
        request(&mut batch, &step, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, CHAIN)
            .nest(NFTA_RULE_EXPRESSIONS, |b| {
                compare(b, SOURCE, NFT_CMP_EQ, subnet);
                compare(b, DESTINATION, NFT_CMP_NEQ, subnet);
                expression(b, "masq", |b| {
                    b.number_be(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
                });
            });
    }
    commit(batch)
}

/// Takes the table away, if it is there.
pub fn remove(table: &str) -> Result<(), Result<Refusal>> {
    commit(begin(table))
}

/// A batch that begins by deleting the table. "If it is there" is: make it, if it is not; delete it.
fn begin(table: &str) -> Batch {
    let mut batch = Batch::new();
    batch.unacknowledged("replacing the nftables rules", NFNL_MSG_BATCH_BEGIN, 0, &subsystem());
    let step = format!("replacing nftables table ip {table}");
    request(&mut batch, &step, NFT_MSG_NEWTABLE, NLM_F_CREATE).text(NFTA_TABLE_NAME, table);
    request(&mut batch, &step, NFT_MSG_DELTABLE, 0).text(NFTA_TABLE_NAME, table);
    batch
}

fn commit(mut batch: Batch) -> Result<(), Result<Refusal>> {
    batch.unacknowledged("committing the nftables rules", NFNL_MSG_BATCH_END, 0, &subsystem());
    Socket::open(netlink::NETFILTER).map_err(Err)?.send(batch)
}

fn request<'a>(batch: &'a mut Batch, step: &str, kind: u16, flags: u16) -> &'a mut Batch {
    batch.request(step, (NFNL_SUBSYS_NFTABLES << 8) | kind, flags, &header(FAMILY_IPV4, 0))
}

/// struct nfgenmsg: the family, version 0, and a resource in network byte order.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn subsystem() -> [u8; 4] {
    header(FAMILY_NONE, NFNL_SUBSYS_NFTABLES)
}

/// The address at `offset`, as far as the subnet's mask goes, against the subnet.
fn compare(batch: &mut Batch, offset: u32, operator: u32, subnet: &Subnet) {
    expression(batch, "payload", |b| {
        b.number_be(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .number_be(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER)
            .number_be(NFTA_PAYLOAD_OFFSET, offset)
            .number_be(NFTA_PAYLOAD_LEN, 4);
    });
    expression(batch, "bitwise", |b| {
        b.number_be(NFTA_BITWISE_SREG, NFT_REG_1)
            .number_be(NFTA_BITWISE_DREG, NFT_REG_1)
            .number_be(NFTA_BITWISE_LEN, 4);
        value(b, NFTA_BITWISE_MASK, subnet.mask().octets());
        value(b, NFTA_BITWISE_XOR, [0; 4]);
    });
    expression(batch, "cmp", |b| {
        b.number_be(NFTA_CMP_SREG, NFT_REG_1).number_be(NFTA_CMP_OP, operator);
        value(b, NFTA_CMP_DATA, subnet.network().octets());
    });
}

fn expression(batch: &mut Batch, name: &str, fill: impl FnOnce(&mut Batch)) {
    batch.nest(NFTA_LIST_ELEM, |b| {
        b.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
    });
}

fn value(batch: &mut Batch, kind: u16, bytes: [u8; 4]) {
    batch.nest(kind, |b| {
        b.attribute(NFTA_DATA_VALUE, &bytes);
    });
}
