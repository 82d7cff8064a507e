//! RDMA devices, their ports and addresses, as the kernel's files tell of them; and which of them the fabric `verbs` would take.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::Serialize;

use crate::gid::{self, Gid, GidKind};

use super::files::Files;

const DEVICES: &str = "sys/class/infiniband";

/// Where distributions put libraries.
const LIBRARIES: &[&str] = &["usr/lib", "usr/lib64", "lib", "lib64", "usr/local/lib"];

/// What a packet has of headers beside its payload, as the kernel reckons.
const HEADERS: u64 = 96;

/// RDMA on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Rdma {
    /// This build has the fabric `verbs`.
    pub built: bool,
    /// Where libibverbs is.
    pub library: Option<String>,
    /// The library has drivers for devices: files in `/etc/libibverbs.d`.
    pub providers: bool,
    /// The kernel has RDMA.
    pub kernel: bool,
    /// The devices.
    pub devices: Vec<Device>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Device {
    /// Its name.
    pub name: String,
    /// RDMA in software, over any network device.
    pub software: bool,
    /// Its driver in the kernel.
    pub driver: Option<String>,
    /// Its firmware.
    pub firmware: Option<String>,
    /// The NUMA node that it is attached to.
    pub numa_node: Option<u64>,
    /// The file through which programs use it, if it is there.
    pub file: Option<String>,
    /// Its ports.
    pub ports: Vec<RdmaPort>,
}

/// A port of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RdmaPort {
    /// Its number.
    pub number: u8,
    /// `ACTIVE`, `DOWN` and so on.
    pub state: String,
    /// Ethernet below (RoCE), else InfiniBand.
    pub ethernet: bool,
    /// Its speed, in the kernel's words.
    pub rate: Option<String>,
    /// The network device below it, on Ethernet.
    pub network_device: Option<String>,
    /// What that takes in a frame, in bytes.
    pub network_mtu: Option<u64>,
    /// Payload of an RDMA packet over it, in bytes; on Ethernet it follows from the network device's.
    pub mtu: Option<u64>,
    /// Its addresses, the empty left out.
    pub gids: Vec<GidEntry>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GidEntry {
    /// Its place in the table: `gid_index`.
    pub index: usize,
    /// What it stands for.
    pub address: IpAddr,
    /// That is this node's own address, by which peers reach it.
    pub own: bool,
    /// Its network device.
    pub network_device: Option<String>,
    /// A node would take it, if it took this port.
    pub taken: bool,
    /// Why, or why not.
    pub why: &'static str,
}

/// What a node would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Outlet<'a> {
    /// The device.
    pub device: &'a str,
    /// Its port.
    pub port: u8,
    /// Its address, on Ethernet.
    pub gid: Option<&'a GidEntry>,
}

impl fmt::Display for Outlet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.device, self.port)?;
        match self.gid {
            Some(gid) => write!(f, ", GID {} ({}): {}", gid.index, gid.address, gid.why),
            None => Ok(()),
        }
    }
}

impl RdmaPort {
    /// It carries traffic.
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }

    /// The address that a node would take.
    pub fn taken(&self) -> Option<&GidEntry> {
        self.gids.iter().find(|gid| gid.taken)
    }

    fn will_do(&self) -> bool {
        self.is_active() && (!self.ethernet || self.taken().is_some())
    }
}

impl Rdma {
    /// The device, port and address that a node would take: the first that carries traffic and has this node's own address, else
    /// the first that carries traffic.
    ///
    /// # Errors
    /// Why the fabric `verbs` would not start, in words.
    pub fn outlet(&self) -> Result<Outlet<'_>, String> {
        let missing = if !self.built {
            "this build has no verbs: build with --features verbs"
        } else if self.library.is_none() {
            "libibverbs is not here"
        } else if !self.kernel {
            "the kernel has no RDMA"
        } else if self.devices.is_empty() {
            "there is no RDMA device"
        } else {
            ""
        };
        if !missing.is_empty() {
            return Err(missing.to_owned());
        }
        let ports = || {
            self.devices.iter().filter_map(|device| {
                // As the fabric does it: of a device the first port that carries traffic, and no other.
                let port = device.ports.iter().find(|port| port.is_active())?;
                (port.will_do() && device.file.is_some()).then(|| Outlet {
                    device: &device.name,
                    port: port.number,
                    gid: port.taken(),
                })
            })
        };
        let own = |outlet: &Outlet<'_>| outlet.gid.is_some_and(|gid| gid.own);
        ports().find(own).or_else(|| ports().next()).ok_or_else(|| self.fault())
    }

    /// What is wrong with devices of which none will do.
    fn fault(&self) -> String {
        let faults = self.devices.iter().map(|device| {
            let name = &device.name;
            match device.ports.iter().find(|port| port.is_active()) {
                None => format!("no port of {name} carries traffic"),
                Some(_) if device.file.is_none() => format!("{name} has no file in /dev/infiniband"),
                Some(port) => format!("port {} of {name} has no address (GID) that will do", port.number),
            }
        });
        faults.collect::<Vec<_>>().join("; ")
    }
}

pub(super) fn read(files: &Files<'_>, own: Option<IpAddr>) -> Rdma {
    Rdma {
        built: cfg!(feature = "verbs"),
        library: library(files),
        providers: !files.names("etc/libibverbs.d").is_empty(),
        kernel: files.path(DEVICES).is_dir(),
        devices: files.names(DEVICES).iter().map(|name| device(files, name, own)).collect(),
    }
}

fn library(files: &Files<'_>) -> Option<String> {
    const NAME: &str = "libibverbs.so.1";
    let within = |place: &str| {
        let path = format!("{place}/{NAME}");
        files.path(&path).exists().then(|| format!("/{path}"))
    };
    LIBRARIES.iter().find_map(|place| {
        // Debian and its kin have a directory for each architecture.
        let architectures = || files.names(place).into_iter().filter(|name| name.ends_with("-linux-gnu"));
        within(place).or_else(|| architectures().find_map(|name| within(&format!("{place}/{name}"))))
    })
}

fn device(files: &Files<'_>, name: &str, own: Option<IpAddr>) -> Device {
    let at = format!("{DEVICES}/{name}");
    let number = |port: &String| port.parse::<u8>().ok();
    Device {
        name: name.to_owned(),
        software: !files.path(&format!("{at}/device")).exists(),
        driver: files.target(&format!("{at}/device/driver")),
        firmware: files.read(&format!("{at}/fw_ver")),
        // −1 where there are no nodes.
        numa_node: files.number(&format!("{at}/device/numa_node")),
        file: file(files, name),
        ports: files
            .names(&format!("{at}/ports"))
            .iter()
            .filter_map(number)
            .map(|number| port(files, &at, number, own))
            .collect(),
    }
}

/// The file through which programs use a device.
fn file(files: &Files<'_>, device: &str) -> Option<String> {
    const AT: &str = "sys/class/infiniband_verbs";
    let names = files.names(AT);
    let name =
        names.iter().find(|name| files.read(&format!("{AT}/{name}/ibdev")).as_deref() == Some(device))?;
    let path = format!("dev/infiniband/{name}");
    files.path(&path).exists().then(|| format!("/{path}"))
}

fn port(files: &Files<'_>, device: &str, number: u8, own: Option<IpAddr>) -> RdmaPort {
    let at = format!("{device}/ports/{number}");
    let state = files.read(&format!("{at}/state")).unwrap_or_default();
    let ethernet = files.read(&format!("{at}/link_layer")).as_deref() == Some("Ethernet");
    let all = gids(files, &at, ethernet);
    let index = if ethernet { gid::choose(&all, own).index } else { None };
    let taken = all.iter().find(|gid| Some(gid.index) == index);
    let network_device = taken.or(all.first()).and_then(|gid| gid.network_device.clone());
    let network_mtu =
        network_device.as_ref().and_then(|name| files.number(&format!("sys/class/net/{name}/mtu")));
    RdmaPort {
        number,
        // `4: ACTIVE`
        state: state.split_once(':').map_or(state.as_str(), |(_, word)| word).trim().to_owned(),
        ethernet,
        rate: files.read(&format!("{at}/rate")),
        network_device,
        network_mtu,
        mtu: network_mtu.filter(|_| ethernet).and_then(payload),
        gids: all
            .iter()
            .map(|gid| GidEntry {
                index: gid.index,
                address: gid.address(),
                own: Some(gid.address()) == own,
                network_device: gid.network_device.clone(),
                taken: Some(gid.index) == index,
                why: if ethernet { gid.merit(own).1 } else { "InfiniBand, where the LID addresses a peer" },
            })
            .collect(),
    }
}

/// The payload of an RDMA packet for frames of so many bytes: a power of two from 256 to 4,096.
fn payload(frame: u64) -> Option<u64> {
    [4096, 2048, 1024, 512, 256].into_iter().find(|size| size + HEADERS <= frame)
}

fn gids(files: &Files<'_>, port: &str, ethernet: bool) -> Vec<Gid> {
    let read = |name: &String| {
        let index: usize = name.parse().ok()?;
        let text = files.read(&format!("{port}/gids/{name}"))?;
        let bytes = text.parse::<Ipv6Addr>().ok()?.octets();
        let attribute = |what| files.read(&format!("{port}/gid_attrs/{what}/{name}"));
        let kind = GidKind::read(attribute("types").as_deref(), ethernet);
        (bytes != [0; 16]).then(|| Gid { index, bytes, kind, network_device: attribute("ndevs") })
    };
    files.names(&format!("{port}/gids")).iter().take(gid::MOST).filter_map(read).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::super::tests::tree;
    use super::*;

    /// Devices in a tree: a card with a RoCE port that is up and has two addresses, and RDMA in software on a device that is down.
    pub(in super::super) fn machine() -> tempfile::TempDir {
        let card = "sys/class/infiniband/mlx5_0";
        let soft = "sys/class/infiniband/rxe0";
        let root = tree(&[
            (&format!("{card}/fw_ver"), "16.35.4030"),
            (&format!("{card}/device/numa_node"), "1"),
            (&format!("{card}/ports/1/state"), "4: ACTIVE"),
            (&format!("{card}/ports/1/link_layer"), "Ethernet"),
            (&format!("{card}/ports/1/rate"), "100 Gb/sec (4X EDR)"),
            (&format!("{card}/ports/1/gids/0"), "fe80:0000:0000:0000:0000:00ff:fe00:0001"),
            (&format!("{card}/ports/1/gid_attrs/types/0"), "IB/RoCE v1"),
            (&format!("{card}/ports/1/gid_attrs/ndevs/0"), "ens1"),
            (&format!("{card}/ports/1/gids/1"), "0000:0000:0000:0000:0000:0000:0000:0000"),
            (&format!("{card}/ports/1/gids/2"), "0000:0000:0000:0000:0000:ffff:0a00:0001"),
            (&format!("{card}/ports/1/gid_attrs/types/2"), "RoCE v2"),
            (&format!("{card}/ports/1/gid_attrs/ndevs/2"), "ens1"),
            ("sys/class/net/ens1/mtu", "1500"),
            ("sys/class/infiniband_verbs/uverbs0/ibdev", "mlx5_0"),
            ("sys/class/infiniband_verbs/abi_version", "6"),
            ("dev/infiniband/uverbs0", ""),
            (&format!("{soft}/ports/1/state"), "1: DOWN"),
            (&format!("{soft}/ports/1/link_layer"), "Ethernet"),
            ("usr/lib/x86_64-linux-gnu/libibverbs.so.1", ""),
            ("etc/libibverbs.d/mlx5.driver", "driver mlx5"),
        ]);
        let driver = root.path().join(card).join("device/driver");
        std::os::unix::fs::symlink("../../bus/pci/drivers/mlx5_core", driver).unwrap();
        root
    }

    #[test]
    fn a_card_is_read_with_its_ports_and_addresses() {
        let rdma = read(&Files::new(machine().path()), None);
        assert!(rdma.kernel && rdma.providers);
        assert_eq!(rdma.library.as_deref(), Some("/usr/lib/x86_64-linux-gnu/libibverbs.so.1"));
        let [card, soft] = &rdma.devices[..] else { panic!("two devices in {rdma:?}") };
        assert_eq!((card.name.as_str(), card.software, card.numa_node), ("mlx5_0", false, Some(1)));
        assert_eq!(
            (card.driver.as_deref(), card.file.as_deref()),
            (Some("mlx5_core"), Some("/dev/infiniband/uverbs0"))
        );
        let port = &card.ports[0];
        assert!(port.is_active() && port.ethernet);
        assert_eq!(
            (port.network_device.as_deref(), port.network_mtu, port.mtu),
            (Some("ens1"), Some(1500), Some(1024))
        );
        let gids: Vec<_> = port.gids.iter().map(|gid| (gid.index, gid.taken)).collect();
        assert_eq!(gids, [(0, false), (2, true)]);
        assert!(soft.software && soft.file.is_none() && !soft.ports[0].is_active());
    }

    #[test]
    fn the_outlet_is_what_a_node_would_take_or_the_reason_why_there_is_none() {
        let root = machine();
        let read = |own| Rdma { built: true, ..read(&Files::new(root.path()), own) };
        let told = |rdma: &Rdma| rdma.outlet().map(|outlet| outlet.to_string());
        assert_eq!(
            told(&read(None)).unwrap(),
            "mlx5_0 port 1, GID 2 (10.0.0.1): RoCE v2 with an IPv4 address"
        );
        let own = read(Some("10.0.0.1".parse().unwrap()));
        assert_eq!(
            told(&own).unwrap(),
            "mlx5_0 port 1, GID 2 (10.0.0.1): RoCE v2 with this node's own address"
        );
        let without = |change: fn(&mut Rdma)| {
            let mut rdma = read(None);
            change(&mut rdma);
            told(&rdma).unwrap_err()
        };
        assert!(without(|rdma| rdma.built = false).contains("--features verbs"));
        assert_eq!(without(|rdma| rdma.library = None), "libibverbs is not here");
        assert_eq!(without(|rdma| rdma.kernel = false), "the kernel has no RDMA");
        assert_eq!(without(|rdma| rdma.devices.clear()), "there is no RDMA device");
        let fault = without(|rdma| rdma.devices[0].ports[0].gids.clear());
        assert_eq!(
            fault,
            "port 1 of mlx5_0 has no address (GID) that will do; no port of rxe0 carries traffic"
        );
        fs::remove_file(root.path().join("dev/infiniband/uverbs0")).unwrap();
        assert!(told(&read(None)).unwrap_err().starts_with("mlx5_0 has no file in /dev/infiniband"));
    }

    #[test]
    fn frames_are_filled_with_powers_of_two() {
        let payloads = [100, 1_500, 2_200, 4_191, 4_192, 9_000].map(payload);
        assert_eq!(payloads, [None, Some(1024), Some(2048), Some(2048), Some(4096), Some(4096)]);
    }
}
