//! Networks of a scenario's own: every node in a network namespace, all of them plugged into a bridge in one more.
//!
//! The namespaces have no names. Each is held by a process that does nothing but wait for the end of its input, so they are
//! gone with it, however the test ends.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the first node listens, and the others at the ports that follow; hosts have addresses of their own.
const PORT: u16 = 7000;

/// A network namespace, as long as it is held.
struct Namespace(Child);

/// Nodes 1, 2, … and the wires between them.
pub(super) struct Network {
    nodes: Vec<Namespace>,
    _hub: Namespace,
}

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// It can't be made here, and why.
    pub(super) fn new(size: u8) -> Result<Self, String> {
        let hub = Namespace::new()?;
        hub.run("ip", "link add bridge type bridge\nlink set bridge up\n")?;
        let mut nodes = Vec::new();
        for node in 1..=size {
            let place = Namespace::new()?;
            let pid = place.0.id();
            let wire = format!(
                "link add port{node} type veth peer name wire netns {pid}\n\
                 link set port{node} master bridge\nlink set port{node} up\n"
            );
            hub.run("ip", &wire)?;
            let ip = ip(node);
            let up = format!("addr add {ip}/24 dev wire\nlink set lo up\nlink set wire up\n");
            place.run("ip", &up)?;
            place.run("nft", "list ruleset\n")?;
            nodes.push(place);
        }
        Ok(Self { nodes, _hub: hub })
    }

    /// For each node its address, and the words that start a command where it lives.
    pub(super) fn places(&self) -> Vec<(SocketAddr, Vec<String>)> {
        let each: Vec<u8> = (1..).take(self.nodes.len()).collect();
        self.places_on(&each)
    }

    /// The same where nodes share hosts: for each node the one on which it lives.
    pub(super) fn places_on(&self, hosts: &[u8]) -> Vec<(SocketAddr, Vec<String>)> {
        let place = |(port, host): (u16, &u8)| ((ip(*host), port).into(), self.place(*host).enter());
        (PORT..).zip(hosts).map(place).collect()
    }

    /// Does something on a host, in a thread of its own.
    pub(super) fn inside<T: Send>(&self, host: u8, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.place(host).0.id())).unwrap();
        std::thread::scope(|scope| {
            let body = move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            };
            scope.spawn(body).join().unwrap()
        })
    }

    /// From now on `node` hears nothing of these; they hear it.
    pub(super) fn deafen(&self, node: u8, to: &[u8]) {
        let from: Vec<String> = to.iter().map(|node| ip(*node).to_string()).collect();
        let rules = format!(
            "table inet cut {{ chain input {{ type filter hook input priority 0; ip saddr {{ {} }} drop; }}; }}\n",
            from.join(", ")
        );
        self.place(node).run("nft", &rules).unwrap();
    }

    /// From now on none of these hears any of those, nor the other way round.
    pub(super) fn part(&self, these: &[u8], those: &[u8]) {
        these.iter().for_each(|node| self.deafen(*node, those));
        those.iter().for_each(|node| self.deafen(*node, these));
    }

    /// Everyone hears everyone.
    pub(super) fn heal(&self) {
        self.nodes.iter().for_each(|place| place.run("nft", "flush ruleset\n").unwrap());
    }

    /// Pulls the node's plug, or puts it in again.
    pub(super) fn plug(&self, node: u8, state: &str) {
        self.place(node).run("ip", &format!("link set wire {state}\n")).unwrap();
    }

    fn place(&self, node: u8) -> &Namespace {
        &self.nodes[usize::from(node) - 1]
    }
}

fn ip(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, node)
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let mut child = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|cause| format!("unshare: {cause}"))?;
        // It answers from within, so it is there.
        let asked = child.stdin.as_mut().map(|stdin| stdin.write_all(b"?"));
        let answered = child.stdout.as_mut().map(|stdout| stdout.read_exact(&mut [0]));
        let held = Self(child);
        match (asked, answered) {
            (Some(Ok(())), Some(Ok(()))) => Ok(held),
            _ => Err("no network namespace can be made".to_owned()),
        }
    }

    fn enter(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.0.id())]
    }

    /// Runs `ip` or `nft` in it, with these lines as its input.
    fn run(&self, tool: &str, lines: &str) -> Result<(), String> {
        let (enter, from_input) = (self.enter(), if tool == "ip" { ["-batch", "-"] } else { ["-f", "-"] });
        let mut child = Command::new(&enter[0])
            .args(&enter[1..])
            .arg(tool)
            .args(from_input)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|cause| format!("nsenter: {cause}"))?;
        // What could not be written is told by the end.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
        let ended = child.wait_with_output().map_err(|cause| format!("{tool}: {cause}"))?;
        if ended.status.success() {
            return Ok(());
        }
        Err(format!("{tool}: {}", String::from_utf8_lossy(&ended.stderr).trim()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
