//! One host: its address, its directories, its Corosync, and the client of it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::hub::{ip, run};
use super::{Phase, Setting, Task, said};
use crate::child::{Server, tied};
use crate::failure::Failure;
use crate::plan::MEMBERS;
use crate::process::{Orders, say};
use crate::servers::program;

/// How long Corosync may take to start and to find the others.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process: hears who it is, then parts, one after the other, and says how each went.
///
/// # Errors
/// Nobody talks with it. Other failures are said.
pub(crate) fn process() -> Result<(), Failure> {
    let mut orders = Orders::begin();
    say(&said(Ok(())))?;
    let (number, task): (usize, Task) = orders.next()?;
    let (mut corosync, mut client) = match start(number, &task) {
        Ok(started) => {
            say(&said(Ok(())))?;
            started
        }
        Err(failure) => return say(&said::<()>(Err(failure))),
    };
    loop {
        // Ends when nobody has anything more to say: that is how the hub ends.
        let Ok(phase) = orders.next::<Phase>() else { return Ok(()) };
        let outcome = corosync.runs().and_then(|()| client.take_part(&phase));
        say(&said(outcome))?;
    }
}

fn start(number: usize, task: &Task) -> Result<(Server, Client), Failure> {
    ip("link set lo up")?;
    ip(&format!("addr add 10.77.0.{number}/24 dev eth0"))?;
    if task.setting.tuned {
        ip("link set eth0 mtu 9000")?;
    }
    ip("link set eth0 up")?;
    // What it writes there, and the memory that it shares with its clients, goes with this process.
    for place in ["/run", "/var/lib/corosync", "/dev/shm"] {
        run("mount", &format!("-t tmpfs none {place}"))?;
    }
    let file = Path::new("/run/corosync-peers.conf");
    std::fs::write(file, configuration(task.setting)).map_err(|cause| Failure::file("write", file, cause))?;
    let mut command = tied(program("corosync")?);
    command.arg("-f").arg("-c").arg(file);
    let log = Path::new("/run/corosync-peers.log");
    let mut corosync = Server::start("corosync", &mut command, log)?;
    let until = Instant::now() + PATIENCE;
    let mut client = loop {
        match Client::join(number) {
            Ok(client) => break client,
            Err(failure) if Instant::now() > until => return Err(failure),
            Err(_) => {
                corosync.runs()?;
                thread::sleep(Duration::from_millis(50));
            }
        }
    };
    while !client.sees(MEMBERS)? {
        corosync.runs()?;
        if Instant::now() > until {
            return Err(Failure::run(
                format!("Corosync's hosts did not find each other in {} s", PATIENCE.as_secs()),
                "see that bridges and veth pairs work here, and that no firewall is in the namespaces",
            ));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok((corosync, client))
}

/// A corosync.conf(5) that says only what must be said, and what is tuned.
fn configuration(setting: Setting) -> String {
    let transport = if setting.knet { "knet" } else { "udpu" };
    let tuning = match setting {
        Setting { tuned: false, .. } => "",
        Setting { knet: true, .. } => "window_size: 150\n  max_messages: 100",
        Setting { knet: false, .. } => "netmtu: 8900\n  window_size: 50\n  max_messages: 50",
    };
    let nodes = (1..=MEMBERS)
        .map(|n| format!("  node {{\n    ring0_addr: 10.77.0.{n}\n    nodeid: {n}\n    name: h{n}\n  }}\n"));
    format!(
        "totem {{\n  version: 2\n  cluster_name: peers\n  transport: {transport}\n  {tuning}\n}}\n\
         nodelist {{\n{}}}\n\
         logging {{\n  to_stderr: yes\n  to_syslog: no\n  to_logfile: no\n}}\n",
        nodes.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corosync::{KNET, UDPU_TUNED};

    #[test]
    fn settings_are_said() {
        let own = configuration(KNET);
        assert!(own.contains("transport: knet") && !own.contains("window_size"));
        assert_eq!(own.matches("ring0_addr").count(), MEMBERS);
        assert!(configuration(UDPU_TUNED).contains("transport: udpu\n  netmtu: 8900\n"));
        assert_eq!(own.matches('{').count(), own.matches('}').count());
    }
}
