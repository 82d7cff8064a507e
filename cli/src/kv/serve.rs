//! `consort kv serve`: a node that has replicas of the shards the view gives it, and a door for clients.
//!
//! The main group has an object of its own, the [`Directory`] of where each server's clients are served, so that a server can say where
//! a shard is that it hasn't got. Every shard has its replica at every node: which of them are members, the view says, and changes.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use consort::object::{Options, QueryError, Replica, ReplicaError};
use consort::{ConfigError, Domain, GroupConfig, Node, NodeBuilder, StartError};

use super::door::Server;
use super::store::{Directory, Hub, Store};
use crate::args::KvServeArgs;
use crate::failure::Failure;
use crate::group;
use crate::node::{read_key, watch_signals};

/// The group's name, in `consort status`.
const GROUP: &str = "kv";

/// How often the main thread looks for a signal, a new view, or an end.
const LOOK: Duration = Duration::from_millis(100);

/// How long a node may take to leave, once told.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// How long a client's address waits to be told again, after the group went on without this node.
const AGAIN: Duration = Duration::from_millis(200);

/// Serves until a signal comes or the node stops.
///
/// # Errors
/// It can't start, or is stopped.
pub(super) fn run(args: &KvServeArgs) -> Result<(), Failure> {
    let builder = configure(args)?;
    let signalled = watch_signals()?;
    let (listener, address) = door(args)?;
    let node = builder.start().map_err(|error| match error {
        StartError::Config(error) => not_configured(&error),
        other => group::not_started(args.id, &other),
    })?;
    let server = replicas(args, node)?;
    let node = server.node.clone();
    announce(args.id, server.directory.clone(), address);
    {
        let server = server.clone();
        std::thread::spawn(move || server.welcome(&listener));
    }
    say(&format!("server {} is at {address} for clients", args.id))?;
    let mut view = None;
    loop {
        if let Some(name) = signalled.get() {
            tracing::info!("{name}: leaving");
            if let Err(error) = node.leave(LEAVE_WITHIN).wait() {
                tracing::warn!("server {} did not leave in order: {}", args.id, group::chain(&error));
            }
            return Ok(());
        }
        if let Some(failure) = ended(args.id, &server) {
            return Err(failure);
        }
        if let Some(now) = node.status().view.filter(|now| Some(now.id) != view) {
            let members: Vec<_> = now.nodes().iter().map(ToString::to_string).collect();
            let mine = server.shards.iter().enumerate().filter(|(_, (id, _))| {
                now.shard(*id).is_some_and(|shard| shard.members.contains(&node.id()))
            });
            let mine: Vec<_> = mine.map(|(shard, _)| shard.to_string()).collect();
            say(&format!(
                "view {}: servers {}; shards here: {}",
                now.id.0,
                members.join(", "),
                if mine.is_empty() { "none".to_owned() } else { mine.join(", ") }
            ))?;
            view = Some(now.id);
        }
        std::thread::sleep(LOOK);
    }
}

fn configure(args: &KvServeArgs) -> Result<NodeBuilder, Failure> {
    if !args.join.is_empty() && !args.peers.is_empty() {
        return Err(Failure::usage(
            "--join and --peer don't go together",
            "give --join with the address of some server to join a store that runs, or --peer for each of the others to found one",
        ));
    }
    let kv = GroupConfig::new(GROUP).sharded(args.shards, args.replicas).state(true);
    let kv = kv.topology(args.topology.into());
    let mut builder = NodeBuilder::new(args.id)
        .listen(args.listen)
        .fabric(args.fabric.into())
        .state(true)
        .rejoin(args.rejoin)
        .group(kv);
    builder = args.join.iter().fold(builder, |builder, address| builder.join(*address));
    builder = args.peers.iter().fold(builder, |builder, (id, address)| builder.peer(*id, *address));
    if let Some(name) = &args.domain {
        let domain = Domain::new(name).map_err(|error| {
            Failure::usage(
                format!("--domain: {error}"),
                format!("take at most {} characters, without spaces", Domain::LEN),
            )
        })?;
        builder = builder.domain(domain);
    }
    if let Some(bound) = args.silence {
        builder = builder.silence(bound);
    }
    if let Some(file) = &args.key_file {
        builder = builder.shared_key(read_key(file)?);
    }
    builder.config().check().map_err(|error| not_configured(&error))?;
    Ok(builder)
}

fn not_configured(error: &ConfigError) -> Failure {
    Failure::usage(
        group::chain(error),
        "write it as the message says; `consort kv serve --help` shows the flags",
    )
}

/// Where clients come in, and what they are told to connect to.
fn door(args: &KvServeArgs) -> Result<(TcpListener, SocketAddr), Failure> {
    let wanted = match args.clients {
        Some(address) => address,
        None => {
            let port = args.listen.port().checked_add(1000).ok_or_else(|| {
                Failure::usage(
                    format!("{} has no port 1000 above it for clients", args.listen),
                    "give --clients ADDRESS",
                )
            })?;
            SocketAddr::new(args.listen.ip(), port)
        }
    };
    let failed = |cause: std::io::Error| {
        Failure::start(
            format!("can't serve clients at {wanted}: {cause}"),
            "give --clients an address of this machine whose port is free",
        )
    };
    let listener = TcpListener::bind(wanted).map_err(failed)?;
    let mut told = listener.local_addr().map_err(failed)?;
    if told.ip().is_unspecified() {
        // Clients can't connect to all addresses.
        told.set_ip(args.listen.ip());
    }
    if told.ip().is_unspecified() {
        return Err(Failure::usage(
            format!("clients can't be told to connect to {told}"),
            "give --listen or --clients an address by which others reach this machine",
        ));
    }
    Ok((listener, told))
}

fn replicas(args: &KvServeArgs, node: Node) -> Result<Arc<Server>, Failure> {
    let node = Arc::new(node);
    let failed = |error: &ReplicaError| {
        Failure::start(
            format!("server {} can't start: {}", args.id, group::chain(error)),
            "see the reason above; --log debug tells more",
        )
    };
    let hub = Arc::<Hub>::default();
    let directory =
        Replica::on(&node, node.main(), Directory::default(), Options::default()).map_err(|e| failed(&e))?;
    let mut shards = Vec::new();
    let kv = node.group(GROUP);
    while let Some(shard) = kv.as_ref().and_then(|kv| kv.shard(shards.len())) {
        let store = Store::new(shards.len(), hub.clone());
        let replica = Replica::on(&node, &shard, store, Options::default()).map_err(|e| failed(&e))?;
        shards.push((shard.id(), replica));
    }
    Ok(Arc::new(Server { node, shards, directory: Arc::new(directory), hub }))
}

/// Keeps this server's address in the directory, over evictions, too.
fn announce(me: u32, directory: Arc<Replica<Directory>>, address: SocketAddr) {
    std::thread::spawn(move || {
        loop {
            match directory.update(&address) {
                Ok(()) => {}
                Err(error) if directory.halted().is_some() => {
                    tracing::debug!(%error, "the directory has ended");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the address for clients isn't told yet");
                    std::thread::sleep(AGAIN);
                    continue;
                }
            }
            loop {
                match directory.wait_for(|it| (it.of(me) != Some(address)).then_some(())) {
                    Ok(()) => break,
                    Err(QueryError::Stopped(_)) => return,
                    Err(_) => std::thread::sleep(AGAIN),
                }
            }
        }
    });
}

/// Why this server can't go on, if so.
fn ended(id: u32, server: &Server) -> Option<Failure> {
    let halted =
        server.shards.iter().find_map(|(_, it)| it.halted()).or_else(|| server.directory.halted())?;
    Some(match halted {
        consort::object::Halted::Node(stopped) => group::stopped(id, &stopped),
        other => Failure::lost(
            format!("server {id} was stopped: {other}"),
            "run the same release at all servers, and start this one again: it gets the state from the others",
        ),
    })
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|cause| Failure::stream("write", "standard output", cause))
}
