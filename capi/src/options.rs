//! Options, from structs of C to a [`NodeBuilder`].

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use consort::{
    Domain, FabricChoice, GroupConfig, Guarantee, NodeBuilder, SharedKey, SlowPolicy, Topology, WaitStrategy,
};

use crate::border::{In, Out, export, listener_of};
use crate::error::{Error, Status};
use crate::layout::{
    ADAPTIVE, AGREED, ATOMIC, AUTO, BLOCK, CHAIN, DATA, DIRECT, DURABLE, FIFO, GroupOptions, LOGGED, Machine,
    NodeOptions, SHM, SPIN, TCP, VERBS, WITNESS,
};

export! {
    fn consort_node_options_init(struct_size: usize, options: Out<NodeOptions>) {
        init(struct_size, options, "options", NodeOptions { struct_size, ..NodeOptions::DEFAULT })
    }

    fn consort_group_options_init(struct_size: usize, options: Out<GroupOptions>) {
        init(struct_size, options, "options", GroupOptions { struct_size, ..GroupOptions::DEFAULT })
    }

    fn consort_machine_init(struct_size: usize, machine: Out<Machine>) {
        init(struct_size, machine, "machine", Machine { struct_size, ..Machine::DEFAULT })
    }
}

/// Defaults, as far as the program's struct goes. One of a newer header is refused: the rest of it would be left as it was.
fn init<T: Copy>(struct_size: usize, out: Out<T>, name: &str, defaults: T) -> Result<(), Error> {
    let out = out.check(name)?;
    let size = out.fits(struct_size, name)?;
    out.set_sized(size, defaults);
    Ok(())
}

/// A builder of what the options say; and how often digests of a replica are taken.
pub(crate) fn builder(options: In<NodeOptions>) -> Result<(NodeBuilder, u64), Error> {
    let options = options.sized(NodeOptions::DEFAULT, "options")?;
    unknown_yet(options.reserved, "options.reserved")?;
    let mut builder = match options.config_file.optional("config_file")? {
        Some(file) => {
            NodeBuilder::from_toml(Path::new(file)).map_err(|error| Error::new(Status::Config, error))?
        }
        None if options.id == 0 => {
            return Err(Error::new(
                Status::Config,
                "`id` is 0, which is no node: number them from 1, or give a config_file",
            ));
        }
        None => NodeBuilder::new(options.id),
    };
    if options.config_file.optional("config_file")?.is_some()
        && options.id != 0
        && builder.config().id.0 != options.id
    {
        return Err(Error::new(
            Status::Config,
            format_args!(
                "`id` is {}, and the config_file is of node {}: leave `id` 0",
                options.id,
                builder.config().id
            ),
        ));
    }
    if let Some(cluster) = options.cluster.optional("cluster")? {
        builder = builder.cluster(cluster);
    }
    if let Some(listen) = options.listen.optional("listen")? {
        builder = builder.listen(address("listen", listen)?);
    }
    if let Some(advertise) = options.advertise.optional("advertise")? {
        builder = builder.advertise(address("advertise", advertise)?);
    }
    for peer in options.peers.slice(options.peers_len, "peers")? {
        builder = builder.peer(peer.id, address("peers", peer.address.required("peers.address")?)?);
    }
    for at in options.join.slice(options.join_len, "join")? {
        builder = builder.join(address("join", at.required("join")?)?);
    }
    for group in groups(&options)? {
        builder = builder.group(group);
    }
    if options.key_len > 0 {
        let key = options.key.slice(options.key_len, "key")?;
        builder = builder.shared_key(SharedKey::new(key).map_err(|error| Error::new(Status::Config, error))?);
    }
    if let Some(domain) = options.domain.optional("domain")? {
        builder = builder.domain(Domain::new(domain).map_err(|error| Error::new(Status::Config, error))?);
    }
    if let Some(directory) = options.data.optional("data")? {
        builder = builder.data(directory);
    }
    if options.ring_bytes > 0 {
        builder = builder.ring_bytes(bytes("ring_bytes", options.ring_bytes)?);
    }
    let ms = |it| (it > 0).then(|| Duration::from_millis(it));
    if let Some(bound) = ms(options.silence_ms) {
        builder = builder.silence(bound);
    }
    if let Some(within) = ms(options.quorum_within_ms) {
        builder = builder.quorum_within(within);
    }
    if let Some(within) = ms(options.start_within_ms) {
        builder = builder.start_within(within);
    }
    if let Some(after) = ms(options.slow_evict_ms) {
        builder = builder.slow(SlowPolicy::Evict(after));
    }
    // 0 is what nothing was said of, so a file keeps what it says.
    builder = match options.role {
        DATA => builder,
        WITNESS => builder.witness(),
        other => return Err(unknown("role", other, "CONSORT_DATA or CONSORT_WITNESS")),
    };
    builder = match options.fabric {
        AUTO => builder,
        SHM => builder.fabric(FabricChoice::Shm),
        TCP => builder.fabric(FabricChoice::Tcp),
        VERBS => builder.fabric(FabricChoice::Verbs),
        other => return Err(unknown("fabric", other, "one of CONSORT_AUTO, _SHM, _TCP, _VERBS")),
    };
    if options.guarantee != ATOMIC {
        builder = builder.guarantee(guarantee(options.guarantee)?);
    }
    if options.topology != DIRECT {
        builder = builder.topology(topology(options.topology)?);
    }
    builder = match options.wait {
        ADAPTIVE => builder,
        SPIN => builder.wait(WaitStrategy::Spin),
        BLOCK => builder.wait(WaitStrategy::Block),
        other => return Err(unknown("wait", other, "one of CONSORT_ADAPTIVE, _SPIN, _BLOCK")),
    };
    if options.state != 0 {
        builder = builder.state(true);
    }
    if options.snapshot_every != 0 {
        builder = builder.snapshot_every(options.snapshot_every);
    }
    if options.rejoin != 0 {
        builder = builder.rejoin(true);
    }
    if options.listen_fd >= 0 {
        let listener: TcpListener = listener_of(options.listen_fd)?;
        builder = builder.listener(listener);
    }
    Ok((builder, options.digest_every))
}

fn groups(options: &NodeOptions) -> Result<Vec<GroupConfig>, Error> {
    if options.groups_len == 0 {
        return Ok(Vec::new());
    }
    // The array's stride is what the program takes for the size of one.
    let stride = options.groups.struct_size("groups")?;
    let of = |at: usize| {
        let it = options.groups.beyond(at * stride).sized(GroupOptions::DEFAULT, "groups")?;
        unknown_yet(it.reserved, "groups.reserved")?;
        let mut group = GroupConfig::new(it.name.required("groups.name")?)
            .guarantee(guarantee(it.guarantee)?)
            .topology(topology(it.topology)?);
        if it.ring_bytes > 0 {
            group = group.ring_bytes(bytes("groups.ring_bytes", it.ring_bytes)?);
        }
        if it.nodes_len > 0 && it.shards > 0 {
            return Err(Error::new(
                Status::Config,
                format_args!(
                    "group {} has both `nodes` and `shards`: a group in shards is laid out by the library; leave one",
                    group.name
                ),
            ));
        }
        if it.nodes_len > 0 {
            group = group.nodes(it.nodes.slice(it.nodes_len, "groups.nodes")?.iter().copied());
        }
        if it.shards > 0 {
            group = group.sharded(it.shards as usize, it.replicas as usize);
        }
        if let Some(policy) = slow(it.slow_evict_ms)? {
            group = group.slow(policy);
        }
        Ok(group.state(it.state != 0))
    };
    (0..options.groups_len).map(of).collect()
}

/// What a group says of slow members; `None`: what its node says.
fn slow(evict_ms: i64) -> Result<Option<SlowPolicy>, Error> {
    match (evict_ms, u64::try_from(evict_ms)) {
        (0, _) => Ok(None),
        (-1, _) => Ok(Some(SlowPolicy::Wait)),
        (_, Ok(after)) => Ok(Some(SlowPolicy::Evict(Duration::from_millis(after)))),
        (_, Err(_)) => Err(Error::invalid(format_args!(
            "`groups.slow_evict_ms` is {evict_ms}: take a time in milliseconds, -1 to wait for slow members, or 0 for what the node says"
        ))),
    }
}

fn guarantee(number: u32) -> Result<Guarantee, Error> {
    match number {
        ATOMIC => Ok(Guarantee::Atomic),
        AGREED => Ok(Guarantee::Agreed),
        FIFO => Ok(Guarantee::Fifo),
        DURABLE => Ok(Guarantee::Durable),
        LOGGED => Ok(Guarantee::Logged),
        other => Err(unknown("guarantee", other, "one of CONSORT_ATOMIC, _AGREED, _FIFO, _DURABLE, _LOGGED")),
    }
}

fn topology(number: u32) -> Result<Topology, Error> {
    match number {
        DIRECT => Ok(Topology::Direct),
        CHAIN => Ok(Topology::Chain),
        other => Err(unknown("topology", other, "CONSORT_DIRECT or CONSORT_CHAIN")),
    }
}

/// Its number in the header.
pub(crate) fn number_of(guarantee: Guarantee) -> u32 {
    match guarantee {
        Guarantee::Agreed => AGREED,
        Guarantee::Fifo => FIFO,
        Guarantee::Durable => DURABLE,
        Guarantee::Logged => LOGGED,
        _ => ATOMIC,
    }
}

fn bytes(name: &str, bytes: u64) -> Result<usize, Error> {
    usize::try_from(bytes)
        .map_err(|_| Error::new(Status::Config, format_args!("`{name}`: {bytes} are more than memory holds")))
}

/// An address and a port. Names are looked up, which may block.
pub(crate) fn address(name: &str, text: &str) -> Result<SocketAddr, Error> {
    let found = text.to_socket_addrs().map(|mut all| all.next());
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(Error::new(Status::Config, format_args!("`{name}`: {text:?} has no address"))),
        Err(cause) => Err(Error::new(
            Status::Config,
            format_args!("`{name}`: {text:?} is no address ({cause}): write it like 10.0.0.1:7101"),
        )),
    }
}

/// A word that a newer header may give a meaning, which would be passed over here.
fn unknown_yet(word: u32, name: &str) -> Result<(), Error> {
    if word == 0 {
        return Ok(());
    }
    Err(Error::invalid(format_args!(
        "`{name}` is {word}: set the struct up with the function that ends in _init; if your consort.h has a name for it, install the \
         library that this came with"
    )))
}

fn unknown(name: &str, number: u32, instead: &str) -> Error {
    Error::invalid(format_args!("`{name}` is {number}, which means nothing: take {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::border::Text;

    #[test]
    fn a_group_says_of_slow_members_what_its_node_says_or_something_of_its_own() {
        let of = |slow_evict_ms| {
            let name = Text::of(c"orders");
            let group = GroupOptions { name, slow_evict_ms, ..GroupOptions::DEFAULT };
            let options =
                NodeOptions { groups: In::of(&raw const group), groups_len: 1, ..NodeOptions::DEFAULT };
            groups(&options).map(|groups| groups[0].slow).map_err(|error| error.status())
        };
        assert_eq!(of(0), Ok(None));
        assert_eq!(of(-1), Ok(Some(SlowPolicy::Wait)));
        assert_eq!(of(1500), Ok(Some(SlowPolicy::Evict(Duration::from_millis(1500)))));
        assert_eq!(of(-2), Err(Status::Invalid));
    }

    #[test]
    fn groups_of_an_older_header_are_read_as_far_as_they_go() {
        // All that is there of each is its size and its name.
        #[repr(C)]
        struct Old(usize, *const std::ffi::c_char);
        let old = [Old(16, c"orders".as_ptr()), Old(16, c"trades".as_ptr())];
        let groups_of = |old: &[Old]| {
            let options = In::<GroupOptions>::of(old.as_ptr().cast());
            groups(&NodeOptions { groups: options, groups_len: old.len(), ..NodeOptions::DEFAULT })
        };
        let names: Vec<_> = groups_of(&old).unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["orders", "trades"]);
        let none = groups_of(&[Old(0, std::ptr::null())]);
        assert_eq!(none.unwrap_err().status(), Status::Invalid);
    }
}
