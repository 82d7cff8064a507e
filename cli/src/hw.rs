//! `consort hw`: what of this machine matters to latency, which fabrics can be used, and what to change. It changes nothing.

use std::fmt::Write as _;

use consort::machine::{Advice, Device, Lockable, Machine, RdmaPort, Usable, advise};
use serde::Serialize;

use crate::args::HwArgs;
use crate::failure::Failure;
use crate::text;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    fabrics: Vec<Usable>,
    advice: Vec<Advice>,
}

impl Report {
    fn new(machine: Machine) -> Self {
        let (fabrics, advice) = (machine.fabrics(), advise(&machine));
        Self { machine, fabrics, advice }
    }
}

/// Tells of this machine. What can't be read is no error, nor that there is no device.
///
/// # Errors
/// Standard output can't be written.
pub(crate) fn run(args: &HwArgs) -> Result<(), Failure> {
    text::print(&Report::new(Machine::here(args.address)), args.json, describe)
}

fn describe(report: &Report) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    for (what, found) in rows(&report.machine) {
        table.add_row([what, found]);
    }
    let mut told = format!("{table}\n\nFabrics:");
    for Usable { fabric, usable, why, .. } in &report.fabrics {
        // Writing to a string does not fail.
        let _ = write!(told, "\n  {fabric:<6}{} ({why})", if *usable { "usable" } else { "not usable" });
    }
    told.push_str(if report.advice.is_empty() { "\n\nNothing to change." } else { "\n\nWhat to change:" });
    for Advice { about, why, command, .. } in &report.advice {
        let _ = write!(told, "\n  {about}: {why}\n      {command}");
    }
    told
}

fn rows(machine: &Machine) -> Vec<(String, String)> {
    let unknown = || "can't be read".to_owned();
    let or_none = |list: &Option<String>| list.clone().unwrap_or_else(|| "none".to_owned());
    let mut rows = vec![("kernel".to_owned(), machine.kernel.clone().unwrap_or_else(unknown))];
    let mut row = |what: &str, found: String| rows.push((what.to_owned(), found));

    let cpus = &machine.cpus;
    let mut on = format!("{} on", cpus.online.clone().unwrap_or_else(unknown));
    if let Some(allowed) = cpus.allowed.as_ref().filter(|allowed| Some(*allowed) != cpus.online.as_ref()) {
        let _ = write!(on, ", {allowed} for this process");
    }
    if cpus.share_cores == Some(true) {
        on.push_str(", two to a core");
    }
    row("CPUs", on);
    row("isolated CPUs", format!("{}; without a tick: {}", or_none(&cpus.isolated), or_none(&cpus.tickless)));
    let governors: Vec<_> =
        cpus.governors.iter().map(|it| format!("{} ({} CPUs)", it.name, it.cpus)).collect();
    let not_here = "not this machine's to choose, as in most virtual ones";
    row("governor", if governors.is_empty() { not_here.to_owned() } else { governors.join(", ") });
    if let Some(exit) = cpus.idle_exit_us {
        row("idle states", format!("up to {exit} µs to wake"));
    }
    for node in &machine.numa {
        row(
            &format!("NUMA node {}", node.node),
            format!("CPUs {}, {}", node.cpus, text::bytes(node.memory_bytes)),
        );
    }

    let memory = &machine.memory;
    row(
        "locked memory",
        match memory.lockable {
            Some(Lockable::Bytes(bytes)) => format!("at most {}", text::bytes(bytes)),
            Some(Lockable::Unlimited) => "unlimited".to_owned(),
            Some(Lockable::Privileged) => "unlimited (this process may pass over its limit)".to_owned(),
            _ => unknown(),
        },
    );
    let (own, shared) = (or_none(&memory.transparent), or_none(&memory.transparent_shared));
    row("huge pages", format!("transparent: {own}; of shared memory: {shared}"));
    for pages in &memory.huge_pages {
        row("", format!("of {}: {} set aside, {} free", text::bytes(pages.bytes), pages.total, pages.free));
    }

    let ring = &machine.io_uring;
    let able = |what: &'static str, able: bool| if able { what } else { "" };
    let abilities = [
        able("deferred completions", ring.deferred),
        able("sends without a copy", ring.zero_copy),
        able("writes and flushes in one call", ring.writes_and_flushes),
    ];
    row(
        "io_uring",
        match &ring.denied {
            Some(denied) => format!("denied: {denied}"),
            None => abilities
                .into_iter()
                .filter(|it| !it.is_empty())
                .fold("usable".to_owned(), |all, it| all + ", " + it),
        },
    );

    let rdma = &machine.rdma;
    let library = rdma.library.clone().unwrap_or_else(|| "not here".to_owned());
    row("libibverbs", format!("{library}; this build {} verbs", if rdma.built { "has" } else { "has no" }));
    if rdma.devices.is_empty() {
        let found = if rdma.kernel { "no device" } else { "the kernel has none" };
        row("RDMA", found.to_owned());
    }
    for device in &rdma.devices {
        row(&format!("RDMA {}", device.name), describe_device(device));
        for port in &device.ports {
            row(&format!("  port {}", port.number), describe_port(port));
            for gid in &port.gids {
                let taken = if gid.taken { "taken" } else { "not taken" };
                row(&format!("    GID {}", gid.index), format!("{}: {taken}, {}", gid.address, gid.why));
            }
        }
    }
    rows
}

fn describe_device(device: &Device) -> String {
    let mut told = if device.software { "in software".to_owned() } else { "a card".to_owned() };
    let parts = [
        device.driver.as_ref().map(|driver| format!("driver {driver}")),
        device.firmware.as_ref().map(|firmware| format!("firmware {firmware}")),
        device.numa_node.map(|node| format!("NUMA node {node}")),
        Some(device.file.clone().unwrap_or_else(|| "no file in /dev/infiniband".to_owned())),
    ];
    for part in parts.into_iter().flatten() {
        told.push_str(", ");
        told.push_str(&part);
    }
    told
}

fn describe_port(port: &RdmaPort) -> String {
    let mut told =
        format!("{}, {}", port.state, if port.ethernet { "Ethernet (RoCE)" } else { "InfiniBand" });
    let parts = [
        port.rate.clone(),
        port.network_device.as_ref().map(|device| format!("over {device}")),
        port.network_mtu.map(|bytes| format!("frames of {bytes} bytes")),
        port.mtu.map(|bytes| format!("packets of {bytes}")),
    ];
    for part in parts.into_iter().flatten() {
        told.push_str(", ");
        told.push_str(&part);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_which_nothing_is_known_is_described_all_the_same() {
        let told = describe(&Report::new(Machine::default()));
        assert!(told.contains("can't be read") && told.contains("the kernel has none"), "{told}");
        assert!(told.contains("\n  verbs not usable") && told.contains("\n  shm   usable"), "{told}");
        assert!(told.contains("What to change:") && told.contains("modprobe rdma_rxe"), "{told}");
    }
}
