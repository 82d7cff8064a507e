//! What to change for lower latency, and so that fabrics can be used at all, with the command that does it. Commands hold until the next start of
//! the machine, unless they say otherwise; they want root.

use serde::Serialize;

use super::memory::Lockable;
use super::{Device, Machine, RdmaPort};

/// Waking from an idle state may take so long, in microseconds, before it is worth a word: a message takes a few.
const IDLE_EXIT: u64 = 10;

/// So many CPUs are enough to set some apart.
const CPUS_TO_SHARE: usize = 4;

/// Frames of so many bytes hold the largest RDMA packet, with some room, as is usual.
const FRAME: u64 = 4200;

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// What it is about, in a word or two.
    pub about: &'static str,
    /// What was found, and why it matters.
    pub why: String,
    /// What changes it.
    pub command: String,
}

fn advice(about: &'static str, why: impl Into<String>, command: impl Into<String>) -> Advice {
    Advice { about, why: why.into(), command: command.into() }
}

/// What to change on a machine; first what is about RDMA, then the rest.
pub fn advise(machine: &Machine) -> Vec<Advice> {
    let mut all = Vec::new();
    rdma(machine, &mut all);
    memory(machine, &mut all);
    ring(machine, &mut all);
    cpus(machine, &mut all);
    all
}

fn rdma(machine: &Machine, all: &mut Vec<Advice>) {
    let rdma = &machine.rdma;
    // Without a device there is nothing to gain from what follows, and no fault in its absence.
    if rdma.devices.is_empty() {
        all.push(advice(
            "RDMA",
            "no device; with a card, load its driver, else RDMA in software serves to try the fabric (its times say nothing of a card's)",
            "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev DEVICE",
        ));
        return;
    }
    if !rdma.built {
        all.push(advice(
            "verbs",
            "this build can't use the RDMA devices that are here",
            "apt-get install libibverbs-dev librdmacm-dev libclang-dev pkg-config && \
             cargo build --release -p consort-cli --features verbs",
        ));
    }
    if rdma.library.is_none() || !rdma.providers {
        let why = "the library for RDMA, or its drivers for devices, is not here";
        all.push(advice("verbs", why, "apt-get install libibverbs1 ibverbs-providers"));
    }
    for device in &rdma.devices {
        if device.file.is_none() {
            let why = format!("programs can't use {}: it has no file in /dev/infiniband", device.name);
            all.push(advice("RDMA", why, "modprobe ib_uverbs"));
        }
        for port in &device.ports {
            self::port(device, port, all);
        }
        let node = device.numa_node.and_then(|number| machine.numa.iter().find(|node| node.node == number));
        if let Some(node) = node
            && machine.numa.len() > 1
        {
            all.push(advice(
                "NUMA",
                format!(
                    "{} is attached to node {}: each access from another crosses over",
                    device.name, node.node
                ),
                format!("numactl --cpunodebind={0} --membind={0} consort node …", node.node),
            ));
        }
    }
}

fn port(device: &Device, port: &RdmaPort, all: &mut Vec<Advice>) {
    let name = format!("port {} of {}", port.number, device.name);
    let below = port.network_device.as_deref().unwrap_or("DEVICE");
    if !port.is_active() {
        let command =
            if port.ethernet { format!("ip link set dev {below} up") } else { "opensm -B".to_owned() };
        all.push(advice("port", format!("{name} carries no traffic ({})", port.state), command));
    } else if port.ethernet && port.taken().is_none() {
        let why = format!("{name} has no address (GID) that will do");
        all.push(advice("GID", why, format!("ip addr add ADDRESS/PREFIX dev {below}")));
    } else if let (Some(frame), Some(mtu)) = (port.network_mtu, port.mtu)
        && mtu < 4096
    {
        all.push(advice(
            "MTU",
            format!(
                "{name} sends packets of {mtu} bytes, for {below} takes frames of {frame}; the same is needed at all ports and switches"
            ),
            format!("ip link set dev {below} mtu {FRAME}"),
        ));
    }
}

fn memory(machine: &Machine, all: &mut Vec<Advice>) {
    let memory = &machine.memory;
    if let Some(Lockable::Bytes(bytes)) = memory.lockable
        && !machine.rdma.devices.is_empty()
    {
        let may = memory.lockable_hard.is_none_or(|hard| hard > bytes);
        let command = if may {
            "ulimit -l unlimited"
        } else {
            "echo '* - memlock unlimited' >> /etc/security/limits.conf   # and log in anew; in a service: LimitMEMLOCK=infinity"
        };
        all.push(advice(
            "locked memory",
            format!("at most {bytes} bytes; over RDMA a node pins its segment and a mirror of each peer"),
            command,
        ));
    }
    let huge = "/sys/kernel/mm/transparent_hugepage";
    match memory.transparent.as_deref() {
        Some("always") => all.push(advice(
            "huge pages",
            "all memory of all processes gets them, and the kernel stops threads to make them; Consort asks for them where they help",
            format!("echo madvise > {huge}/enabled"),
        )),
        Some("never") => all.push(advice(
            "huge pages",
            "there are none to be had; large rings in pages of 4 KiB miss the TLB",
            format!("echo madvise > {huge}/enabled"),
        )),
        _ => {}
    }
    if matches!(memory.transparent_shared.as_deref(), Some("never" | "deny")) {
        all.push(advice(
            "huge pages",
            "shared memory, which the fabric shm is made of, gets none",
            format!("echo advise > {huge}/shmem_enabled"),
        ));
    }
}

fn ring(machine: &Machine, all: &mut Vec<Advice>) {
    let ring = &machine.io_uring;
    if let Some(denied) = &ring.denied {
        let logs = if ring.writes_and_flushes { "" } else { ", logs are written by plain calls" };
        let remedy = ring.remedy.clone().unwrap_or_else(|| "see the reason".to_owned());
        all.push(advice("io_uring", format!("denied ({denied}): TCP runs on epoll{logs}"), remedy));
    }
}

fn cpus(machine: &Machine, all: &mut Vec<Advice>) {
    let cpus = &machine.cpus;
    let slow: usize = cpus.governors.iter().filter(|it| it.name != "performance").map(|it| it.cpus).sum();
    if slow > 0 {
        all.push(advice(
            "governor",
            format!("{slow} CPUs run slower than they could until they were busy for a while"),
            "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done",
        ));
    }
    if let Some(exit) = cpus.idle_exit_us.filter(|exit| *exit > IDLE_EXIT) {
        all.push(advice(
            "idle states",
            format!("a CPU that idles takes up to {exit} µs to wake"),
            format!("cpupower idle-set -D {IDLE_EXIT}   # or the kernel parameter: intel_idle.max_cstate=1"),
        ));
    }
    if cpus.isolated.is_none()
        && cpus.count() >= CPUS_TO_SHARE
        && let Some(last) = cpus.last()
    {
        all.push(advice(
            "isolated CPUs",
            "none: anything may run on the CPU of a node that polls",
            format!(
                "add to the kernel's command line: isolcpus=managed_irq,domain,{last} nohz_full={last} rcu_nocbs={last}   # then: \
                 taskset -c {last} consort node --wait spin …"
            ),
        ));
    }
    if cpus.count() == 1 {
        all.push(advice(
            "CPUs",
            "there is one: members that poll wait for each other's time slices",
            "consort node --wait block …",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::rdma::tests::machine as card;
    use super::super::{Cpus, Governor, Memory, NumaNode, Ring};
    use super::*;

    fn commands(machine: &Machine) -> Vec<String> {
        advise(machine).into_iter().map(|advice| advice.command).collect()
    }

    #[test]
    fn a_machine_without_rdma_is_told_how_to_try_it_and_no_more() {
        let all = advise(&Machine::default());
        assert_eq!(all.iter().map(|it| it.about).collect::<Vec<_>>(), ["RDMA"]);
    }

    #[test]
    fn a_card_that_is_not_set_up_is_told_what_to_change() {
        let root = card();
        let mut machine = Machine::read(root.path(), None);
        machine.rdma.built = true;
        machine.memory.lockable = Some(Lockable::Bytes(8 << 20));
        let node = |node| NumaNode { node, cpus: String::new(), memory_bytes: 0 };
        machine.numa = vec![node(0), node(1)];
        let found = commands(&machine);
        let expected = [
            "ip link set dev ens1 mtu 4200",
            "numactl --cpunodebind=1 --membind=1 consort node …",
            "modprobe ib_uverbs",
            "ip link set dev DEVICE up",
            "ulimit -l unlimited",
        ];
        assert_eq!(found, expected);
        machine.memory.lockable_hard = Some(8 << 20);
        machine.rdma.built = false;
        machine.rdma.library = None;
        let found = commands(&machine).join("\n");
        for part in ["--features verbs", "ibverbs-providers", "limits.conf"] {
            assert!(found.contains(part), "{part} in {found}");
        }
    }

    #[test]
    fn what_makes_any_fabric_slow_is_told() {
        let machine = Machine {
            memory: Memory {
                lockable: Some(Lockable::Bytes(1)),
                transparent: Some("always".to_owned()),
                transparent_shared: Some("never".to_owned()),
                ..Memory::default()
            },
            cpus: Cpus {
                online: Some("0-15".to_owned()),
                allowed: Some("4-11".to_owned()),
                governors: vec![Governor { name: "powersave".to_owned(), cpus: 8 }],
                idle_exit_us: Some(170),
                ..Cpus::default()
            },
            io_uring: Ring { denied: Some("not permitted".to_owned()), ..Ring::default() },
            ..Machine::default()
        };
        let isolated = commands(&machine).pop().unwrap();
        assert!(isolated.contains("taskset -c 11 "), "one that it may run on: {isolated}");
        let about: Vec<_> = advise(&machine).iter().map(|it| it.about).collect();
        let expected =
            ["RDMA", "huge pages", "huge pages", "io_uring", "governor", "idle states", "isolated CPUs"];
        assert_eq!(about, expected, "and nothing of locked memory, which only RDMA needs");
    }

    #[test]
    fn a_machine_that_is_set_up_is_left_alone() {
        let root = card();
        std::fs::write(root.path().join("sys/class/net/ens1/mtu"), "9000").unwrap();
        let mut machine = Machine::read(root.path(), None);
        machine.rdma.built = true;
        machine.rdma.devices.truncate(1);
        machine.memory.lockable = Some(Lockable::Unlimited);
        machine.memory.transparent = Some("madvise".to_owned());
        machine.memory.transparent_shared = Some("advise".to_owned());
        machine.cpus.online = Some("0-7".to_owned());
        machine.cpus.isolated = Some("6-7".to_owned());
        machine.cpus.governors = vec![Governor { name: "performance".to_owned(), cpus: 8 }];
        assert_eq!(advise(&machine), []);
    }
}
