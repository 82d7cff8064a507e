//! CPUs: which there are for this process, what the kernel keeps off them, how fast they run and how deep they sleep; and NUMA nodes.

use serde::Serialize;

use super::files::{Files, count, last};

/// CPUs. Lists are as the kernel writes them: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cpus {
    /// Those that are on.
    pub online: Option<String>,
    /// Those that this process may run on.
    pub allowed: Option<String>,
    /// Those on which the kernel runs nothing by itself (`isolcpus`).
    pub isolated: Option<String>,
    /// Those without a clock tick while one thread runs (`nohz_full`).
    pub tickless: Option<String>,
    /// Two of them may share a core.
    pub share_cores: Option<bool>,
    /// How their frequency is chosen, where this machine chooses it; empty as well in most virtual machines.
    pub governors: Vec<Governor>,
    /// The longest that one takes to wake from an idle state that is enabled, in microseconds.
    pub idle_exit_us: Option<u64>,
}

/// A way to choose frequencies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Governor {
    /// Its name.
    pub name: String,
    /// How many CPUs have it.
    pub cpus: usize,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NumaNode {
    /// Its number.
    pub node: u64,
    /// Its CPUs.
    pub cpus: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
}

impl Cpus {
    /// How many this process may run on.
    pub fn count(&self) -> usize {
        self.usable().map_or(0, count)
    }

    /// The last that this process may run on.
    pub fn last(&self) -> Option<usize> {
        self.usable().and_then(last)
    }

    fn usable(&self) -> Option<&str> {
        self.allowed.as_deref().or(self.online.as_deref())
    }
}

pub(super) fn read(files: &Files<'_>) -> Cpus {
    const AT: &str = "sys/devices/system/cpu";
    let list = |name: &str| files.read(&format!("{AT}/{name}")).filter(|list| list != "(null)");
    let is_cpu =
        |name: &&String| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
    let mut governors: Vec<Governor> = Vec::new();
    let mut idle_exit_us = None;
    for cpu in files.names(AT).iter().filter(is_cpu) {
        if let Some(name) = files.read(&format!("{AT}/{cpu}/cpufreq/scaling_governor")) {
            match governors.iter_mut().find(|governor| governor.name == name) {
                Some(governor) => governor.cpus += 1,
                None => governors.push(Governor { name, cpus: 1 }),
            }
        }
        for state in files.names(&format!("{AT}/{cpu}/cpuidle")) {
            let number = |what| files.number(&format!("{AT}/{cpu}/cpuidle/{state}/{what}"));
            if number("disable").unwrap_or(0) == 0 {
                idle_exit_us = idle_exit_us.max(number("latency"));
            }
        }
    }
    Cpus {
        online: list("online"),
        allowed: files.field("proc/self/status", "Cpus_allowed_list:"),
        isolated: list("isolated"),
        tickless: list("nohz_full"),
        share_cores: files.number(&format!("{AT}/smt/active")).map(|active| active != 0),
        governors,
        idle_exit_us,
    }
}

pub(super) fn numa(files: &Files<'_>) -> Vec<NumaNode> {
    const AT: &str = "sys/devices/system/node";
    let node = |name: &String| {
        let number = name.strip_prefix("node")?.parse().ok()?;
        let total = files.field(&format!("{AT}/{name}/meminfo"), "MemTotal:");
        let kilobytes = total.and_then(|total| total.split_whitespace().next()?.parse::<u64>().ok());
        Some(NumaNode {
            node: number,
            cpus: files.read(&format!("{AT}/{name}/cpulist")).unwrap_or_default(),
            memory_bytes: kilobytes.unwrap_or(0) << 10,
        })
    };
    files.names(AT).iter().filter_map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn cpus_are_read() {
        let at = "sys/devices/system/cpu";
        let root = tree(&[
            (&format!("{at}/online"), "0-3"),
            (&format!("{at}/isolated"), "2-3"),
            (&format!("{at}/nohz_full"), "(null)"),
            (&format!("{at}/smt/active"), "1"),
            (&format!("{at}/cpu0/cpufreq/scaling_governor"), "powersave"),
            (&format!("{at}/cpu1/cpufreq/scaling_governor"), "performance"),
            (&format!("{at}/cpu2/cpufreq/scaling_governor"), "powersave"),
            (&format!("{at}/cpu0/cpuidle/state1/latency"), "2"),
            (&format!("{at}/cpu0/cpuidle/state3/latency"), "170"),
            (&format!("{at}/cpu0/cpuidle/state4/latency"), "900"),
            (&format!("{at}/cpu0/cpuidle/state4/disable"), "1"),
            (&format!("{at}/cpufreq/policy0"), ""),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-1\nMems_allowed_list:\t0"),
        ]);
        let cpus = read(&Files::new(root.path()));
        assert_eq!((cpus.online.as_deref(), cpus.allowed.as_deref()), (Some("0-3"), Some("0-1")));
        assert_eq!((cpus.isolated.as_deref(), cpus.tickless.as_deref()), (Some("2-3"), None));
        assert_eq!((cpus.share_cores, cpus.idle_exit_us, cpus.count()), (Some(true), Some(170), 2));
        let governors = [("powersave", 2), ("performance", 1)];
        assert!(cpus.governors.iter().map(|it| (it.name.as_str(), it.cpus)).eq(governors));
    }

    #[test]
    fn nodes_have_cpus_and_memory() {
        let at = "sys/devices/system/node";
        let root = tree(&[
            (&format!("{at}/node0/cpulist"), "0-15"),
            (&format!("{at}/node0/meminfo"), "Node 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB"),
            (&format!("{at}/node1/cpulist"), "16-31"),
            (&format!("{at}/has_cpu"), "0-1"),
        ]);
        let expected = [
            NumaNode { node: 0, cpus: "0-15".to_owned(), memory_bytes: 1 << 20 },
            NumaNode { node: 1, cpus: "16-31".to_owned(), memory_bytes: 0 },
        ];
        assert_eq!(numa(&Files::new(root.path())), expected);
    }
}
