//! The list of the peers: what each is called, promises and is set beside, and how it is run.

use crate::consensus::{Library, run};
use crate::consort;
use crate::corosync;
use crate::failure::Failure;
use crate::figures::Figures;
use crate::plan::Plan;
use crate::promise::{Against, Aim, Promise};
use crate::servers::{etcd, nats, version};

/// A system that is run beside Consort.
pub(crate) struct Peer {
    /// As `--peers` takes it. Names with the same beginning up to a hyphen can be asked for together.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// Its own version, or why it can't be run here.
    pub(crate) version: fn() -> Result<String, Failure>,
    pub(crate) promise: Promise,
    pub(crate) against: Against,
    pub(crate) aim: Aim,
    /// Runs it once.
    pub(crate) measure: fn(&Plan) -> Result<Figures, Failure>,
}

/// With a leader's process as the client, which is the best for a system with a leader.
const CONSENSUS: Promise = Promise {
    order: "total, by the leader",
    done: "applied at the leader: 2 of 3 have it; the client is in the leader's process",
    durability: "memory of a majority",
    fabric: "TCP, loopback",
};

pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "consort-one",
        title: "Consort, one sender",
        version: || Ok(String::new()), // that of the row above it
        promise: consort::ONE_SENDER,
        against: Against::Volatile,
        aim: Aim { latency: None, throughput: None },
        measure: consort::one_sender,
    },
    Peer {
        name: "omnipaxos",
        title: "OmniPaxos",
        version: || Ok("0.2".to_owned()),
        promise: CONSENSUS,
        against: Against::Volatile,
        aim: Aim { latency: Some(1.0), throughput: Some(1.5) },
        measure: |plan| run::measure(Library::Omnipaxos, plan),
    },
    Peer {
        name: "raft-rs",
        title: "raft-rs",
        version: || Ok("0.7".to_owned()),
        promise: CONSENSUS,
        against: Against::Volatile,
        aim: Aim { latency: Some(1.0), throughput: Some(1.5) },
        measure: |plan| run::measure(Library::Raft, plan),
    },
    Peer {
        name: "nats-memory",
        title: "NATS JetStream R3, memory",
        version: || version("nats-server", "--version"),
        promise: Promise {
            order: "total, by the stream's leader",
            done: "acknowledged: 2 of 3 servers have it; no subscriber; the client is a process of its own",
            durability: "memory of a majority",
            fabric: "TCP, loopback",
        },
        against: Against::Volatile,
        aim: Aim { latency: None, throughput: Some(100.0) },
        measure: nats::in_memory,
    },
    Peer {
        name: "nats-file",
        title: "NATS JetStream R3, file",
        version: || version("nats-server", "--version"),
        promise: Promise {
            order: "total, by the stream's leader",
            done: "acknowledged: 2 of 3 servers have written it; no subscriber; the client is a process of its own",
            durability: "in files of a majority, flushed every 2 minutes: less than the durable group's",
            fabric: "TCP, loopback; files on one disk",
        },
        against: Against::Durable,
        aim: Aim { latency: None, throughput: Some(5.0) },
        measure: nats::in_files,
    },
    Peer {
        name: "etcd-memory",
        title: "etcd, tmpfs",
        version: || version("etcd", "--version"),
        promise: Promise {
            order: "total, by the leader; a key-value store",
            done: "put answered: 2 of 3 have it, applied at the leader; no watcher; the client is a process of its own",
            durability: "memory of a majority",
            fabric: "gRPC, loopback",
        },
        against: Against::Volatile,
        aim: Aim { latency: None, throughput: None },
        measure: etcd::in_memory,
    },
    Peer {
        name: "etcd-disk",
        title: "etcd",
        version: || version("etcd", "--version"),
        promise: Promise {
            order: "total, by the leader; a key-value store",
            done: "put answered: 2 of 3 have flushed it, applied at the leader; no watcher; the client is a process of its own",
            durability: "fdatasync at a majority",
            fabric: "gRPC, loopback; logs on one disk",
        },
        against: Against::Durable,
        aim: Aim { latency: None, throughput: Some(5.0) },
        measure: etcd::on_disk,
    },
    Peer {
        name: "corosync-knet",
        title: "Corosync CPG, knet",
        measure: |plan| corosync::measure(corosync::KNET, plan),
        ..COROSYNC
    },
    Peer {
        name: "corosync-knet-tuned",
        title: "Corosync CPG, knet, tuned",
        measure: |plan| corosync::measure(corosync::KNET_TUNED, plan),
        ..COROSYNC
    },
    Peer {
        name: "corosync-udpu",
        title: "Corosync CPG, udpu",
        measure: |plan| corosync::measure(corosync::UDPU, plan),
        ..COROSYNC
    },
    Peer {
        name: "corosync-udpu-tuned",
        title: "Corosync CPG, udpu, tuned",
        measure: |plan| corosync::measure(corosync::UDPU_TUNED, plan),
        ..COROSYNC
    },
];

/// What all settings of Corosync have in common.
const COROSYNC: Peer = Peer {
    name: "",
    title: "",
    version: corosync::version,
    promise: Promise {
        order: "total, of all members' messages (agreed)",
        done: "delivered at its sender; others may not have it; latency with 1 sender, throughput with 3, each a client of its host",
        durability: "memory of some members",
        fabric: "UDP, veth and a bridge between network namespaces",
    },
    against: Against::Volatile,
    aim: Aim { latency: Some(15.0), throughput: Some(50.0) },
    measure: |plan| corosync::measure(corosync::KNET, plan),
};

/// The peers of these names, or all if there are none.
///
/// # Errors
/// There is no such peer.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static Peer>, Failure> {
    if let Some(unknown) = names.iter().find(|name| !PEERS.iter().any(|peer| peer.is(name))) {
        let known: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
        return Err(Failure::usage(
            format!("there is no peer `{unknown}`"),
            format!("give some of {}, or a part before a hyphen", known.join(", ")),
        ));
    }
    // A whole name is that peer alone, even if others' names begin with it.
    let whole = |name: &String| PEERS.iter().any(|peer| peer.name == name);
    let asked =
        |peer: &&Peer| names.iter().any(|name| if whole(name) { peer.name == name } else { peer.is(name) });
    Ok(PEERS.iter().filter(|peer| names.is_empty() || asked(peer)).collect())
}

impl Peer {
    fn is(&self, name: &str) -> bool {
        self.name == name || self.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_found_by_name_and_by_beginning() {
        let names = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|it| (*it).to_owned()).collect();
            chosen(&asked).map(|peers| peers.iter().map(|peer| peer.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), PEERS.len());
        assert_eq!(names(&["raft-rs", "omnipaxos"]).unwrap(), ["omnipaxos", "raft-rs"]);
        assert_eq!(names(&["consort"]).unwrap(), ["consort-one"]);
        assert_eq!(names(&["corosync-udpu"]).unwrap(), ["corosync-udpu"]);
        assert_eq!(names(&["corosync"]).unwrap().len(), 4);
        assert!(matches!(names(&["raf"]), Err(Failure::Usage { .. })));
    }
}
