//! NATS JetStream with three replicas of a stream, in memory or in files.
//!
//! A request is a publication, and its answer the stream's acknowledgement: the leader and one more server have the message. Nobody
//! subscribes. In files a message is written before it is acknowledged but flushed to the disk only every two minutes, unless a newer
//! server than Debian's is told otherwise.

use std::path::Path;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};
use bytes::Bytes;

use super::{in_runtime, measure, ports, program, until_ready};
use crate::child::{Server, tied};
use crate::failure::Failure;
use crate::figures::Figures;
use crate::plan::Plan;

const STREAM: &str = "peers";

/// What the stream may hold; old messages go then, so that memory and disk stay small.
const STREAM_BYTES: i64 = 256 << 20;

fn failed(doing: &str, cause: impl std::fmt::Display) -> Failure {
    Failure::run(format!("NATS: can't {doing}: {cause}"), "run it again, on a machine with less to do")
}

/// Measures a stream in memory.
///
/// # Errors
/// The servers don't start or form no cluster, or a publication fails.
pub(crate) fn in_memory(plan: &Plan) -> Result<Figures, Failure> {
    run(plan, &plan.memory, StorageType::Memory)
}

/// Measures a stream in files on the disk.
///
/// # Errors
/// As those of [`in_memory`].
pub(crate) fn in_files(plan: &Plan) -> Result<Figures, Failure> {
    run(plan, &plan.disk, StorageType::File)
}

fn run(plan: &Plan, place: &Path, storage: StorageType) -> Result<Figures, Failure> {
    let directory = tempfile::tempdir_in(place).map_err(|cause| Failure::file("use", place, cause))?;
    let [a, b, c, x, y, z] = ports()?;
    let (clients, routes) = ([a, b, c], [x, y, z]);
    let others = routes.map(|port| format!("nats://127.0.0.1:{port}")).join(",");
    let nats = program("nats-server")?;
    let mut servers = Vec::new();
    for (number, (client, route)) in clients.iter().zip(routes).enumerate() {
        let name = format!("n{number}");
        let mut command = tied(&nats);
        command.args(["--server_name", &name, "--addr", "127.0.0.1", "--port", &client.to_string()]);
        command.arg("-js").arg("--store_dir").arg(directory.path().join(&name));
        command.args(["--cluster_name", "peers", "--cluster", &format!("nats://127.0.0.1:{route}")]);
        command.args(["--routes", &others]);
        servers.push(Server::start("nats-server", &mut command, &directory.path().join(name + ".log"))?);
    }
    in_runtime(async {
        let config = Config {
            name: STREAM.to_owned(),
            subjects: vec![STREAM.to_owned()],
            num_replicas: servers.len(),
            max_bytes: STREAM_BYTES,
            storage,
            ..Config::default()
        };
        let leader = until_ready(&mut servers, || leader(&clients, config.clone())).await?;
        let client = async_nats::connect(format!("127.0.0.1:{leader}")).await;
        let context = jetstream::new(client.map_err(|cause| failed("connect to the leader", cause))?);
        measure(plan, |size, number| publish(context.clone(), size, number)).await
    })
}

/// Makes the stream, if it isn't there, and finds the port of its leader: a request to another server would travel once more.
async fn leader(clients: &[u16], config: Config) -> Result<u16, Failure> {
    let client = async_nats::connect(format!("127.0.0.1:{}", clients[0])).await;
    let context = jetstream::new(client.map_err(|cause| failed("connect", cause))?);
    let mut stream =
        context.get_or_create_stream(config).await.map_err(|cause| failed("make a stream", cause))?;
    let info = stream.info().await.map_err(|cause| failed("ask for the stream's leader", cause))?;
    let name = info.cluster.as_ref().and_then(|cluster| cluster.leader.as_deref()).unwrap_or_default();
    let place = name.strip_prefix('n').and_then(|number| number.parse::<usize>().ok());
    let port = place.and_then(|place| clients.get(place)).copied();
    port.ok_or_else(|| failed("find the stream's leader", format!("it is `{name}`")))
}

async fn publish(context: jetstream::Context, size: usize, number: u64) -> Result<(), Failure> {
    let mut payload = vec![0x5a; size];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    let sent = context.publish(STREAM, Bytes::from(payload)).await;
    let acknowledged = sent.map_err(|cause| failed("publish", cause))?.await;
    acknowledged.map(drop).map_err(|cause| failed("publish", cause))
}
