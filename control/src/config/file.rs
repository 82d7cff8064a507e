//! The configuration as a TOML file. The parser's own errors and ours carry the line that they are about.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use consort_dataplane::names::NodeId;
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use super::{ConfigError, GroupConfig, GroupMembers, NodeConfig, Place, SharedKey, SlowPolicy};

/// The file's shape. Values that aren't plain numbers come as text, so that what is wrong with them is said here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    cluster: Option<Spanned<String>>,
    id: Spanned<u32>,
    listen: Spanned<String>,
    advertise: Option<Spanned<String>>,
    fabric: Option<Spanned<String>>,
    guarantee: Option<Spanned<String>>,
    topology: Option<Spanned<String>>,
    wait: Option<Spanned<String>>,
    ring: Option<Spanned<Size>>,
    start_within: Option<Spanned<String>>,
    key_file: Option<Spanned<String>>,
    #[serde(default)]
    join: Vec<Spanned<String>>,
    rejoin: Option<bool>,
    state: Option<bool>,
    snapshot_every: Option<Spanned<Size>>,
    role: Option<Spanned<String>>,
    silence: Option<Spanned<String>>,
    quorum_within: Option<Spanned<String>>,
    slow: Option<Spanned<String>>,
    domain: Option<Spanned<String>>,
    data: Option<Spanned<PathBuf>>,
    #[serde(default)]
    groups: BTreeMap<Spanned<String>, RawGroup>,
    #[serde(default)]
    peers: BTreeMap<Spanned<String>, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    nodes: Option<Spanned<Vec<u32>>>,
    shards: Option<Spanned<usize>>,
    replicas: Option<Spanned<usize>>,
    guarantee: Option<Spanned<String>>,
    topology: Option<Spanned<String>>,
    ring: Option<Spanned<Size>>,
    state: Option<bool>,
    slow: Option<Spanned<String>>,
}

/// Bytes, as a number or with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
    /// Neither, which is said where it stands.
    Other(IgnoredAny),
}

impl NodeConfig {
    /// Reads a file as the [module](super) shows it and checks it. Blocks to read it. `fabrics` are the names that
    /// `fabric` may have.
    ///
    /// # Errors
    /// Names file, line and key, and what to write instead.
    pub fn from_file(file: &Path, fabrics: &[&str]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|cause| ConfigError::Read { file: file.to_owned(), cause })?;
        Self::from_toml(&text, file, fabrics)
    }

    /// As [`NodeConfig::from_file`], from the file's text. Reads the key file, if there is one.
    ///
    /// # Errors
    /// As there.
    pub fn from_toml(text: &str, file: &Path, fabrics: &[&str]) -> Result<Self, ConfigError> {
        let source = Source { text, file };
        let raw: Raw = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            place: source.place(&error.span().unwrap_or(0..0)),
            message: error.message().to_owned(),
        })?;
        // Where each setting was, for the errors of `check`.
        let mut spans =
            BTreeMap::from([("id".to_owned(), raw.id.span()), ("listen".to_owned(), raw.listen.span())]);
        let mut config = Self::new(NodeId(*raw.id.get_ref()));
        config.listen =
            source.parse("listen", &raw.listen, "an address and a port, such as \"10.0.0.1:7101\"")?;
        if let Some(value) = &raw.cluster {
            spans.insert("cluster".to_owned(), value.span());
            config.cluster.clone_from(value.get_ref());
        }
        if let Some(value) = &raw.advertise {
            spans.insert("advertise".to_owned(), value.span());
            config.advertise =
                Some(source.parse("advertise", value, "an address and a port, such as \"10.0.0.1:7101\"")?);
        }
        if let Some(value) = &raw.fabric {
            if !fabrics.contains(&value.get_ref().as_str()) {
                let problem =
                    format!("no fabric is called {:?}; take {}", value.get_ref(), fabrics.join(", "));
                return Err(source.fault("fabric", &value.span(), problem));
            }
            config.fabric.clone_from(value.get_ref());
        }
        if let Some(value) = &raw.guarantee {
            config.guarantee = source.named("guarantee", value)?;
        }
        if let Some(value) = &raw.topology {
            config.topology = source.named("topology", value)?;
        }
        if let Some(value) = &raw.wait {
            config.wait = source.named("wait", value)?;
        }
        if let Some(value) = &raw.ring {
            spans.insert("ring".to_owned(), value.span());
            config.ring_bytes =
                size(value.get_ref()).map_err(|problem| source.fault("ring", &value.span(), problem))?;
        }
        if let Some(value) = &raw.start_within {
            let within = duration(value.get_ref());
            config.start_within =
                Some(within.map_err(|problem| source.fault("start_within", &value.span(), problem))?);
        }
        for value in &raw.join {
            spans.insert("join".to_owned(), value.span());
            let address = source.parse("join", value, "some member's `listen`, such as \"10.0.0.2:7101\"")?;
            config.join.push(address);
        }
        if let Some(value) = &raw.data {
            spans.insert("data".to_owned(), value.span());
            let mut directory = value.get_ref().clone();
            if !directory.as_os_str().is_empty() {
                // Beside the file: which no name at all isn't.
                directory = file.parent().unwrap_or(Path::new("")).join(directory);
            }
            config.data = Some(directory);
        }
        config.rejoin = raw.rejoin.unwrap_or(false);
        config.state = raw.state.unwrap_or(false);
        if let Some(value) = &raw.snapshot_every {
            let key = "snapshot_every";
            spans.insert(key.to_owned(), value.span());
            let bytes = size(value.get_ref()).map_err(|problem| source.fault(key, &value.span(), problem))?;
            config.snapshot_every = bytes as u64;
        }
        if let Some(value) = &raw.role {
            config.role = source.named("role", value)?;
        }
        let times = [("silence", &raw.silence), ("quorum_within", &raw.quorum_within)];
        for (key, value) in times {
            let Some(value) = value else { continue };
            spans.insert(key.to_owned(), value.span());
            let time = duration(value.get_ref());
            let time = time.map_err(|problem| source.fault(key, &value.span(), problem))?;
            if key == "silence" { config.silence = time } else { config.quorum_within = time }
        }
        if let Some(value) = &raw.slow {
            config.slow = source.slow("slow", value)?;
        }
        if let Some(value) = &raw.key_file {
            let beside = file.parent().unwrap_or(Path::new("")).join(value.get_ref());
            let key = SharedKey::from_file(&beside);
            config.key =
                Some(key.map_err(|error| source.fault("key_file", &value.span(), error.to_string()))?);
        }
        for (name, address) in &raw.peers {
            let key = format!("peers.{}", name.get_ref());
            let node = name.get_ref().parse().ok().filter(|node: &u32| node.to_string() == *name.get_ref());
            let node = node.ok_or_else(|| {
                source.fault(&key, &name.span(), "a peer's key is its id, a number from 1".to_owned())
            })?;
            spans.insert(format!("peers.{node}"), name.span());
            let address = source.parse(&key, address, "that node's `listen`, such as \"10.0.0.2:7101\"")?;
            config.peers.insert(NodeId(node), address);
        }
        if let Some(value) = &raw.domain {
            config.domain = source.named("domain", value)?;
        }
        for (name, group) in &raw.groups {
            let group = source.group(name, group, &mut spans)?;
            config.groups.push(group);
        }
        match config.first_fault() {
            None => Ok(config),
            Some((key, problem)) => Err(match spans.get(&key) {
                Some(span) => source.fault(&key, span, problem),
                None => ConfigError::Value { place: None, key, problem },
            }),
        }
    }
}

struct Source<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Source<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place { file: self.file.to_owned(), line }
    }

    fn fault(&self, key: &str, span: &Range<usize>, problem: String) -> ConfigError {
        ConfigError::Value { place: Some(self.place(span)), key: key.to_owned(), problem }
    }

    fn parse<T: FromStr>(&self, key: &str, value: &Spanned<String>, wanted: &str) -> Result<T, ConfigError> {
        let problem = || format!("{:?} isn't {wanted}", value.get_ref());
        value.get_ref().parse().map_err(|_| self.fault(key, &value.span(), problem()))
    }

    /// One table of `[groups]`.
    fn group(
        &self,
        name: &Spanned<String>,
        raw: &RawGroup,
        spans: &mut BTreeMap<String, Range<usize>>,
    ) -> Result<GroupConfig, ConfigError> {
        let mut group = GroupConfig::new(name.get_ref());
        let key = |key: &str| format!("groups.{}.{key}", name.get_ref());
        spans.insert(key("name"), name.span());
        group.members = match (&raw.nodes, &raw.shards, &raw.replicas) {
            (None, None, None) => GroupMembers::All,
            (Some(nodes), None, None) => {
                spans.insert(key("nodes"), nodes.span());
                GroupMembers::Nodes(nodes.get_ref().iter().copied().map(NodeId).collect())
            }
            (None, Some(shards), Some(replicas)) => {
                spans.insert(key("shards"), shards.span());
                spans.insert(key("replicas"), replicas.span());
                GroupMembers::Sharded { shards: *shards.get_ref(), replicas: *replicas.get_ref() }
            }
            _ => {
                let problem =
                    "give `nodes`, or `shards` and `replicas`, or none of them: then all nodes are in it";
                return Err(self.fault(
                    &format!("groups.{}", name.get_ref()),
                    &name.span(),
                    problem.to_owned(),
                ));
            }
        };
        if let Some(value) = &raw.guarantee {
            group.guarantee = self.named(&key("guarantee"), value)?;
        }
        if let Some(value) = &raw.topology {
            group.topology = self.named(&key("topology"), value)?;
        }
        if let Some(value) = &raw.ring {
            spans.insert(key("ring"), value.span());
            group.ring_bytes =
                size(value.get_ref()).map_err(|problem| self.fault(&key("ring"), &value.span(), problem))?;
        }
        group.state = raw.state.unwrap_or(false);
        group.slow = raw.slow.as_ref().map(|value| self.slow(&key("slow"), value)).transpose()?;
        Ok(group)
    }

    fn slow(&self, key: &str, value: &Spanned<String>) -> Result<SlowPolicy, ConfigError> {
        match value.get_ref().as_str() {
            "wait" => Ok(SlowPolicy::Wait),
            time => {
                let after = duration(time).map_err(|problem| self.fault(key, &value.span(), problem))?;
                Ok(SlowPolicy::Evict(after))
            }
        }
    }

    fn named<T: FromStr<Err: Display>>(&self, key: &str, value: &Spanned<String>) -> Result<T, ConfigError> {
        value.get_ref().parse().map_err(|error: T::Err| self.fault(key, &value.span(), error.to_string()))
    }
}

/// `"4 MiB"`, `"64 KiB"`, `4194304`.
fn size(value: &Size) -> Result<usize, String> {
    let bytes = match value {
        Size::Bytes(bytes) => Some(*bytes),
        Size::Other(_) => None,
        Size::Text(text) => split(text).and_then(|(number, unit)| {
            let shift = match unit {
                "" | "B" => 0,
                "KiB" => 10,
                "MiB" => 20,
                "GiB" => 30,
                _ => return None,
            };
            number.checked_mul(1 << shift)
        }),
    };
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| "write bytes, or \"4 MiB\"".to_owned())
}

/// `"30s"`, `"1500 ms"`, `"5m"`.
fn duration(text: &str) -> Result<Duration, String> {
    let within = split(text).and_then(|(number, unit)| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    });
    within
        .filter(|within| !within.is_zero())
        .ok_or_else(|| "write a time such as \"30s\", \"1500ms\" or \"5m\"".to_owned())
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use consort_dataplane::plan::Topology;

    use super::*;
    use crate::config::WaitStrategy;
    use consort_dataplane::plan::Guarantee;

    const FABRICS: &[&str] = &["auto", "shm", "tcp"];

    fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::from_toml(text, Path::new("node.toml"), FABRICS)
    }

    const SOUND: &str = r#"
cluster = "orders"
id = 1
listen = "127.0.0.1:7101"
fabric = "tcp"
guarantee = "agreed"
wait = "block"
ring = "64 KiB"
start_within = "1500 ms"

[peers]
2 = "127.0.0.1:7102"
3 = "127.0.0.1:7103"
"#;

    #[test]
    fn a_file_says_it_all() {
        let config = parse(SOUND).unwrap();
        assert_eq!((config.cluster.as_str(), config.fabric.as_str()), ("orders", "tcp"));
        assert_eq!((config.guarantee, config.wait), (Guarantee::Agreed, WaitStrategy::Block));
        assert_eq!((config.ring_bytes, config.start_within), (65536, Some(Duration::from_millis(1500))));
        assert_eq!(config.members(), [NodeId(1), NodeId(2), NodeId(3)]);
    }

    #[test]
    fn the_least_is_id_and_listen() {
        let config = parse("id = 9\nlisten = \"[::1]:1\"").unwrap();
        assert_eq!((config.id, config.peers.len()), (NodeId(9), 0));
    }

    #[test]
    fn every_error_names_the_line_and_the_remedy() {
        let change = |from: &str, to: &str| {
            assert!(SOUND.contains(from), "{from}");
            SOUND.replacen(from, to, 1)
        };
        for (text, place, remedy) in [
            (change("id = 1", "id = 0"), ":3: `id`: ", "from 1"),
            (change("id = 1", "id = -1"), ":3: ", "invalid value"),
            (change("id = 1", "idd = 1"), ":3: ", "unknown field `idd`, expected one of"),
            (change("id = 1\n", ""), "", "missing field `id`"),
            (change("id = 1", "id = 2"), ":12: `peers.2`: ", "list only the others"),
            (change("127.0.0.1:7101", "localhost"), ":4: `listen`: ", "an address and a port"),
            (change("\"tcp\"", "\"carrier pigeon\""), ":5: `fabric`: ", "take auto, shm, tcp"),
            (
                change("agreed", "exactly-once"),
                ":6: `guarantee`: ",
                "take fifo, agreed, atomic, durable or logged",
            ),
            (change("block", "sleep"), ":7: `wait`: ", "take spin, adaptive or block"),
            (change("64 KiB", "65 KiB"), ":8: `ring`: ", "power of two"),
            (change("64 KiB", "64 kb"), ":8: `ring`: ", "\"4 MiB\""),
            (change("\"64 KiB\"", "-5"), ":8: `ring`: ", "\"4 MiB\""),
            (change("\"64 KiB\"", "99999999999999999999"), ":8: ", ""),
            (change("1500 ms", "soon"), ":9: `start_within`: ", "\"30s\""),
            (change("1500 ms", "0s"), ":9: `start_within`: ", "\"30s\""),
            (change("3 = \"127.0.0.1:7103\"", "2 = \"127.0.0.1:7103\""), ":13: ", "duplicate key"),
            (
                change("3 = \"127.0.0.1:7103\"", "02 = \"127.0.0.1:7103\""),
                ":13: `peers.02`: ",
                "a number from 1",
            ),
            (change("3 = ", "three = "), ":13: `peers.three`: ", "a number from 1"),
            (change("127.0.0.1:7103", "127.0.0.1:7102"), ":13: `peers.3`: ", "already node 2's"),
            (change("[peers]", "[peers"), ":11: ", ""),
            (change("wait = \"block\"", "data = \"\""), ":7: `data`: ", "name a directory"),
            (
                change("start_within = \"1500 ms\"", "key_file = \"no/such/key\""),
                ":9: `key_file`: ",
                "can't read",
            ),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("node.toml{place}")) && error.contains(remedy),
                "{place} {error}"
            );
        }
    }

    #[test]
    fn a_group_says_which_way_its_messages_go() {
        let of = |topology: &str| parse(&format!("{SOUND}\n[groups.big]\n{topology}"));
        let words = |config: &NodeConfig| config.groups_in_words();
        let (chain, default) = (of("topology = \"chain\"").unwrap(), of("").unwrap());
        assert_eq!(
            (chain.groups[0].topology, default.groups[0].topology),
            (Topology::Chain, Topology::Direct)
        );
        assert_eq!(chain.shapes()[1].topology, Topology::Chain);
        assert_ne!(words(&chain), words(&default), "nodes that differ in it are not one group");
        let main = parse(&format!("topology = \"chain\"\n{SOUND}")).unwrap();
        assert_eq!((main.topology, main.shapes()[0].topology), (Topology::Chain, Topology::Chain));
        assert_ne!(words(&main), words(&parse(SOUND).unwrap()));
        let error = of("topology = \"star\"").unwrap_err().to_string();
        assert!(
            error.contains(":16: `groups.big.topology`: ") && error.contains("direct or chain"),
            "{error}"
        );
    }

    // V9
    #[test]
    fn a_group_says_what_becomes_of_who_is_slow() {
        const GROUPS: &str =
            "[groups.b]\nslow = \"wait\"\n[groups.a]\n[groups.c]\nshards = 2\nreplicas = 1\nslow = \"3s\"";
        let of = |top: &str, groups: &str| parse(&format!("{top}\n{SOUND}\n{groups}"));
        let (five, three) =
            (SlowPolicy::Evict(Duration::from_secs(5)), SlowPolicy::Evict(Duration::from_secs(3)));
        // The main group, then the others by name and shard.
        let with = of("slow = \"5s\"", GROUPS).unwrap().slow_by_shard();
        assert_eq!(with, [five, five, SlowPolicy::Wait, three, three]);
        let without = of("", GROUPS).unwrap();
        let wait = SlowPolicy::Wait;
        assert_eq!(without.slow_by_shard(), [wait, wait, wait, three, three]);
        let other = of("", &GROUPS.replace("3s", "4s")).unwrap();
        assert_eq!(without.groups_in_words(), other.groups_in_words(), "nodes may differ in it");
        let error = of("", "[groups.big]\nslow = \"never\"").unwrap_err().to_string();
        assert!(error.contains(":17: `groups.big.slow`: "), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = NodeConfig::from_file(Path::new("/nonexistent/node.toml"), FABRICS).unwrap_err();
        assert!(error.to_string().starts_with("can't read /nonexistent/node.toml: "), "{error}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("cluster.key");
        std::fs::write(&key, "  0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, "id = 1\nlisten = \"[::1]:1\"\nkey_file = \"cluster.key\"").unwrap();
        let error = NodeConfig::from_file(&file, FABRICS).unwrap_err().to_string();
        assert!(error.contains(":3: `key_file`: ") && error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = NodeConfig::from_file(&file, FABRICS).unwrap();
        assert_eq!(config.key, SharedKey::new("0123456789abcdef0123456789abcdef").ok());
    }
}
