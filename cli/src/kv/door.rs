//! The server's door: a thread for each client, which reads requests, does them on this node's replicas, and answers.

use std::io::{self, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use consort::object::{QueryError, Replica, UpdateError};
use consort::{Node, NodeId, ReadPointError, SendError, ShardId};

use super::store::{Directory, Hub, Notice, Reply, Store, Update};
use super::wire::{Answer, Request, line, read_line, shard_of};

/// So many clients at once, each with a thread.
const MOST_CLIENTS: usize = 512;

/// A client that takes no answer for so long is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// A client that asks nothing for so long is taken for gone.
const IDLE: Duration = Duration::from_secs(600);

/// How often a watcher that is told nothing is looked after: whether it is still there, and the shard still here.
const LOOK: Duration = Duration::from_millis(500);

/// What this node has.
pub(super) struct Server {
    pub(super) node: Arc<Node>,
    /// One for each shard, whether or not this node is a member of it.
    pub(super) shards: Vec<(ShardId, Replica<Store>)>,
    pub(super) directory: Arc<Replica<Directory>>,
    pub(super) hub: Arc<Hub>,
}

impl Server {
    /// Serves whoever comes, for ever.
    pub(super) fn welcome(self: &Arc<Self>, listener: &TcpListener) {
        let there = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let mut stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "can't take a client");
                    std::thread::sleep(LOOK); // out of descriptors: until some are free
                    continue;
                }
            };
            let place = Place(there.clone());
            if there.fetch_add(1, Ordering::Relaxed) >= MOST_CLIENTS {
                let error = format!("{MOST_CLIENTS} clients are served here already");
                let _ = stream.set_write_timeout(Some(LOOK));
                let _ = line(&Answer::Failed { error, unknown: false }).and_then(|it| stream.write_all(&it));
                continue;
            }
            let server = self.clone();
            let serve = move || {
                let _place = place;
                if let Err(error) = server.serve(stream) {
                    tracing::debug!(%error, "a client went away");
                }
            };
            if let Err(error) = std::thread::Builder::new().name("kv-client".to_owned()).spawn(serve) {
                tracing::warn!(%error, "no thread for a client");
            }
        }
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(WRITE_WITHIN))?;
        let mut from = BufReader::new(stream.try_clone()?);
        let mut to = stream;
        loop {
            let read = match read_line(&mut from) {
                Ok(Some(read)) => read,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Where the next request begins can't be known.
                    return to.write_all(&line(&Answer::Refused { error: error.to_string() })?);
                }
                Err(error) => return Err(error),
            };
            let request = match serde_json::from_slice::<Request>(&read) {
                Ok(request) => request.fault().map_or(Ok(request), Err),
                Err(error) => Err(format!("no request: {error}")),
            };
            match request {
                Err(error) => to.write_all(&line(&Answer::Refused { error })?)?,
                Ok(Request::Watch { key }) => return self.show(key.as_deref(), &mut to),
                Ok(request) => to.write_all(&line(&self.answer(request))?)?,
            }
        }
    }

    /// The replica of a key's shard.
    fn home(&self, key: &str) -> (usize, &Replica<Store>) {
        let shard = shard_of(key, self.shards.len());
        (shard, &self.shards[shard].1)
    }

    fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Get { key, local } => {
                let (shard, replica) = self.home(&key);
                let look = |store: &Store| store.look_up(&key);
                match if local { replica.query_local(look) } else { replica.query(look) } {
                    Ok(Some(found)) => Answer::Value { value: found.value, version: found.version },
                    Ok(None) => Answer::Absent,
                    Err(error) => self.unanswered(shard, &error),
                }
            }
            Request::Put { key, value, if_version } => {
                let shard = shard_of(&key, self.shards.len());
                self.update(shard, &Update::Put { key, value, if_version })
            }
            Request::Delete { key, if_version } => {
                let shard = shard_of(&key, self.shards.len());
                self.update(shard, &Update::Delete { key, if_version })
            }
            Request::Watch { .. } => Answer::Refused { error: "not here".to_owned() }, // `serve` takes it
        }
    }

    fn update(&self, shard: usize, update: &Update) -> Answer {
        match self.shards[shard].1.update(update) {
            Ok(Reply::Done(version)) => Answer::Done { version },
            Ok(Reply::Conflict(version)) => Answer::Conflict { version },
            Ok(Reply::Absent) => Answer::Absent,
            Err(UpdateError::NotSent(SendError::NotMember)) => self.elsewhere(shard),
            Err(error) => Answer::Failed { error: error.to_string(), unknown: error.may_be_applied() },
        }
    }

    fn unanswered(&self, shard: usize, error: &QueryError) -> Answer {
        match error {
            QueryError::NotMember | QueryError::NoPoints(ReadPointError::NotMember) => self.elsewhere(shard),
            error => Answer::Failed { error: error.to_string(), unknown: false },
        }
    }

    /// Who has that shard, as far as this node knows.
    fn elsewhere(&self, shard: usize) -> Answer {
        let view = self.node.status().view;
        let it = view.as_ref().and_then(|view| view.shard(self.shards[shard].0));
        let members: Vec<NodeId> = it.map(|it| it.members.clone()).unwrap_or_default();
        let servers = self
            .directory
            .query_local(|directory| members.iter().filter_map(|node| directory.of(node.0)).collect());
        let servers: Vec<SocketAddr> = servers.unwrap_or_default();
        let lost = it.is_some_and(consort::Shard::is_lost);
        Answer::Elsewhere { shard, shards: self.shards.len(), servers, lost }
    }

    /// Tells changes until the client goes away, falls behind, or the shard of its key isn't here any more.
    fn show(&self, key: Option<&str>, to: &mut TcpStream) -> io::Result<()> {
        let (watch, now) = match key {
            None => (self.hub.watch(None), None),
            Some(key) => {
                let (shard, replica) = self.home(key);
                // While the state is looked at no update is applied: none is missed, and none told twice.
                let begun = replica
                    .query_local(|store| (self.hub.watch(Some((shard, key.to_owned()))), store.look_up(key)));
                match begun {
                    Ok(begun) => begun,
                    Err(error) => return to.write_all(&line(&self.unanswered(shard, &error))?),
                }
            }
        };
        let here = self.shards.iter().enumerate().filter(|(_, (_, replica))| replica.is_member());
        let here = here.map(|(shard, _)| shard).collect();
        to.write_all(&line(&Answer::Watching { now, here, shards: self.shards.len() })?)?;
        loop {
            let answer = match watch.notices.recv_timeout(LOOK) {
                Ok(notice) => match Arc::unwrap_or_clone(notice) {
                    Notice::Change { key, version, value } => Answer::Change { key, value, version },
                    Notice::Restored { shard } => Answer::Restored { shard },
                },
                Err(RecvTimeoutError::Timeout) => {
                    let home = key.map(|key| self.home(key));
                    if let Some((shard, _)) = home.filter(|(_, replica)| !replica.is_member()) {
                        return to.write_all(&line(&self.elsewhere(shard))?);
                    }
                    to.write_all(b"\n")?; // fails if nobody is there
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let error = "this watcher fell behind, and changes were missed".to_owned();
                    return to.write_all(&line(&Answer::Failed { error, unknown: false })?);
                }
            };
            to.write_all(&line(&answer)?)?;
        }
    }
}

/// A client's place.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
