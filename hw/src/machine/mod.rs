//! What of a machine matters to Consort's latency, read and not changed; and what to change.
//!
//! | module | |
//! |---|---|
//! | `files` | the files in which the kernel tells of itself, below a root |
//! | `rdma` | devices, ports, addresses; which of them a node would take |
//! | `memory` | the limit of locked memory, huge pages |
//! | `cpus` | CPUs, what else runs on them, how they sleep; NUMA nodes |
//! | `ring` | io_uring: not read but tried |
//! | `advice` | what to change, with the command |
//!
//! Everything but the try of io_uring comes from files below a root, so that it can be told of machines that are not here: [`Machine::read`]
//! never fails, and what can't be read is absent. RDMA devices are read from there, too, and not asked of libibverbs: that
//! library need not be here to say what is missing.

mod files;
mod rdma;
mod memory;
mod cpus;
mod ring;
mod advice;

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use files::Files;

pub use advice::{Advice, advise};
pub use cpus::{Cpus, Governor, NumaNode};
pub use memory::{HugePages, Lockable, Memory};
pub use rdma::{Device, GidEntry, Outlet, Rdma, RdmaPort};
pub use ring::Ring;

/// A machine, as far as it matters here. What can't be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Machine {
    /// The kernel's release.
    pub kernel: Option<String>,
    /// RDMA devices.
    pub rdma: Rdma,
    /// Memory.
    pub memory: Memory,
    /// CPUs.
    pub cpus: Cpus,
    /// NUMA nodes that have CPUs or memory.
    pub numa: Vec<NumaNode>,
    /// io_uring.
    pub io_uring: Ring,
}

/// A fabric, and whether it can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usable {
    /// Its name, as the configuration has it.
    pub fabric: &'static str,
    /// It would start.
    pub usable: bool,
    /// How, or why not.
    pub why: String,
}

impl Machine {
    /// Reads from the files below `root`, which is `/` for this machine. `own` is the address by which peers reach the node, where that is
    /// known. io_uring is not tried: its place is empty.
    pub fn read(root: &Path, own: Option<IpAddr>) -> Self {
        let files = Files::new(root);
        Self {
            kernel: files.read("proc/sys/kernel/osrelease"),
            rdma: rdma::read(&files, own),
            memory: memory::read(&files),
            cpus: cpus::read(&files),
            numa: cpus::numa(&files),
            io_uring: Ring::default(),
        }
    }

    /// This machine, with a real try of io_uring.
    pub fn here(own: Option<IpAddr>) -> Self {
        Self { io_uring: ring::probe(), ..Self::read(Path::new("/"), own) }
    }

    /// Which fabrics can be used.
    pub fn fabrics(&self) -> Vec<Usable> {
        let usable = |fabric, usable, why: &str| Usable { fabric, usable, why: why.to_owned() };
        let (verbs, why) = match self.rdma.outlet() {
            Ok(outlet) => (true, outlet.to_string()),
            Err(why) => (false, why),
        };
        vec![
            usable("shm", true, "members on this machine"),
            usable("tcp", true, if self.io_uring.usable { "over io_uring" } else { "over epoll" }),
            usable("verbs", verbs, &why),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory tree with these files.
    pub(super) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    #[test]
    fn an_empty_tree_tells_nothing_and_is_no_failure() {
        let root = tree(&[]);
        let machine = Machine::read(root.path(), None);
        assert_eq!((machine.kernel.as_ref(), machine.rdma.devices.len(), machine.numa.len()), (None, 0, 0));
        let usable: Vec<_> = machine.fabrics().iter().map(|it| (it.fabric, it.usable)).collect();
        assert_eq!(usable, [("shm", true), ("tcp", true), ("verbs", false)]);
    }

    #[test]
    fn this_machine_is_read() {
        let machine = Machine::here(None);
        assert!(machine.kernel.is_some() && machine.cpus.online.is_some());
        assert!(machine.io_uring.usable || machine.io_uring.denied.is_some());
    }
}
