//! etcd with three members, its data on the disk or in a file system that is memory.
//!
//! A request is a put over gRPC to the leader, and its answer says that it is committed: a majority has flushed it. In memory the flush
//! costs nothing, and is still called for. Keys are a thousand, so that the store stays small.

use std::path::Path;

use etcd_client::{Client, KvClient};

use super::{in_runtime, measure, ports, program, until_ready};
use crate::child::{Server, tied};
use crate::failure::Failure;
use crate::figures::Figures;
use crate::plan::Plan;

const KEYS: u64 = 1024;

/// Connections that requests are spread over: one is soon limited by its own flow control.
const CONNECTIONS: usize = 4;

fn failed(doing: &str, cause: impl std::fmt::Display) -> Failure {
    Failure::run(format!("etcd: can't {doing}: {cause}"), "run it again, on a machine with less to do")
}

/// Measures with the data in memory.
///
/// # Errors
/// The members don't start or form no cluster, or a put fails.
pub(crate) fn in_memory(plan: &Plan) -> Result<Figures, Failure> {
    run(plan, &plan.memory)
}

/// Measures with the data on the disk.
///
/// # Errors
/// As those of [`in_memory`].
pub(crate) fn on_disk(plan: &Plan) -> Result<Figures, Failure> {
    run(plan, &plan.disk)
}

fn run(plan: &Plan, place: &Path) -> Result<Figures, Failure> {
    let directory = tempfile::tempdir_in(place).map_err(|cause| Failure::file("use", place, cause))?;
    let [a, b, c, x, y, z] = ports()?;
    let [clients, peers] = [[a, b, c], [x, y, z]].map(|it| it.map(|port| format!("http://127.0.0.1:{port}")));
    let cluster = peers.iter().enumerate().map(|(number, url)| format!("e{number}={url}"));
    let cluster = cluster.collect::<Vec<_>>().join(",");
    let etcd = program("etcd")?;
    let mut servers = Vec::new();
    for (number, (client, peer)) in clients.iter().zip(&peers).enumerate() {
        let name = format!("e{number}");
        let mut command = tied(&etcd);
        command
            .args(["--name", &name, "--log-level", "error", "--data-dir"])
            .arg(directory.path().join(&name));
        command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &cluster, "--initial-cluster-state", "new"]);
        command.args(["--quota-backend-bytes", &(8_u64 << 30).to_string()]);
        servers.push(Server::start("etcd", &mut command, &directory.path().join(name + ".log"))?);
    }
    in_runtime(async {
        let leader = until_ready(&mut servers, || leader(&clients)).await?;
        let mut connections: Vec<KvClient> = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = Client::connect([&leader], None).await;
            connections.push(client.map_err(|cause| failed("connect to the leader", cause))?.kv_client());
        }
        measure(plan, |size, number| {
            let spread = usize::try_from(number).unwrap_or(0) % CONNECTIONS;
            put(connections[spread].clone(), size, number)
        })
        .await
    })
}

/// Finds the leader: a request to another member would travel once more.
async fn leader(clients: &[String]) -> Result<String, Failure> {
    for url in clients {
        let client = Client::connect([url], None).await;
        let mut client = client.map_err(|cause| failed("connect", cause))?;
        let status = client.status().await.map_err(|cause| failed("ask for the leader", cause))?;
        if status.header().is_some_and(|header| header.member_id() == status.leader()) {
            return Ok(url.clone());
        }
    }
    Err(failed("find the leader", "there is none"))
}

async fn put(mut connection: KvClient, size: usize, number: u64) -> Result<(), Failure> {
    let mut value = vec![0x5a; size];
    value[..8].copy_from_slice(&number.to_le_bytes());
    let done = connection.put(format!("key{}", number % KEYS), value, None).await;
    done.map(drop).map_err(|cause| failed("put", cause))
}
