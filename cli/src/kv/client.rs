//! A client of the store: knows some servers, finds the one that has a key's shard, and says apart what was done, what wasn't, and what
//! nobody knows.
//!
//! A request that a server refused before it did anything is sent to the next one; so is a `get` of which nothing was heard. A change
//! that was sent and not answered may have been made: it is not sent again, and the error says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::wire::{Answer, Request, line, read_line, shard_of};
use crate::failure::Failure;

/// A server that isn't there is tried no longer than this.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// A server that doesn't answer a `get` for so long is left for another.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Between two rounds of all servers.
const PAUSE: Duration = Duration::from_millis(50);

/// See above.
pub(super) struct Client {
    /// Those that are known, the ones that were named first among them.
    servers: Vec<SocketAddr>,
    open: BTreeMap<SocketAddr, BufReader<TcpStream>>,
    /// How many shards there are, once a server has said so, and who has each.
    shards: Option<usize>,
    homes: BTreeMap<usize, SocketAddr>,
    /// Who answered last.
    last: Option<SocketAddr>,
    within: Duration,
}

/// How one attempt ended without an answer.
enum Missed {
    /// It wasn't sent, or not as a whole.
    Before(io::Error),
    /// It may have been read.
    After(io::Error),
}

impl Client {
    pub(super) fn new(servers: &[SocketAddr], within: Duration) -> Self {
        Self {
            servers: servers.to_vec(),
            open: BTreeMap::new(),
            shards: None,
            homes: BTreeMap::new(),
            last: None,
            within,
        }
    }

    /// The answer to a request: never [`Answer::Elsewhere`], [`Answer::Failed`] or [`Answer::Refused`].
    ///
    /// # Errors
    /// No server could do it, or it isn't known whether one has.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        if let Some(fault) = request.fault() {
            return Err(refused(&fault));
        }
        let until = Instant::now() + self.within;
        let mut why = Vec::new();
        loop {
            let lost = self.round(request, until, &mut why)?;
            match lost {
                Round::Answered(answer) => return Ok(answer),
                Round::Lost(shard) => return Err(gone(shard)),
                Round::Nobody if Instant::now() + PAUSE >= until => return Err(self.nobody(&why)),
                Round::Nobody => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Asks each server that is known, the likeliest first, and those that they name.
    fn round(&mut self, request: &Request, until: Instant, why: &mut Vec<String>) -> Result<Round, Failure> {
        why.clear();
        let home = self.home(request.key());
        let mut queue: Vec<SocketAddr> = self.servers.iter().rev().copied().chain(home).collect();
        let mut tried = BTreeSet::new();
        while let Some(server) = queue.pop() {
            if !tried.insert(server) {
                continue;
            }
            match self.exchange(server, request, until) {
                Ok(Answer::Elsewhere { shard, lost: true, .. }) => return Ok(Round::Lost(shard)),
                Ok(Answer::Elsewhere { shard, shards, servers, .. }) => {
                    self.shards = Some(shards);
                    self.homes.remove(&shard);
                    why.push(format!("{server}: it hasn't got the key's shard"));
                    queue.extend(servers.into_iter().rev().filter(|it| !tried.contains(it)));
                }
                Ok(Answer::Refused { error }) => return Err(refused(&error)),
                Ok(Answer::Failed { error, unknown: true }) => return Err(unknown(server, &error)),
                Ok(Answer::Failed { error, .. }) => {
                    self.open.remove(&server);
                    why.push(format!("{server}: {error}"));
                }
                Ok(answer) => {
                    self.learn(server, request.key());
                    return Ok(Round::Answered(answer));
                }
                Err(Missed::After(cause)) if request.changes() => {
                    return Err(unknown(server, &cause.to_string()));
                }
                Err(Missed::Before(cause) | Missed::After(cause)) => why.push(format!("{server}: {cause}")),
            }
        }
        Ok(Round::Nobody)
    }

    fn home(&self, key: Option<&str>) -> Option<SocketAddr> {
        self.homes.get(&shard_of(key?, self.shards?)).copied()
    }

    fn learn(&mut self, server: SocketAddr, key: Option<&str>) {
        if let (Some(key), Some(shards)) = (key, self.shards) {
            self.homes.insert(shard_of(key, shards), server);
        }
        if !self.servers.contains(&server) {
            self.servers.push(server);
        }
    }

    fn exchange(&mut self, server: SocketAddr, request: &Request, until: Instant) -> Result<Answer, Missed> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        // A connection from before may have ended meanwhile, which shows only when it is used: look first.
        let mut stream = match self.open.remove(&server).filter(|it| is_open(it.get_ref())) {
            Some(stream) => stream,
            None => connect(server, left).map_err(Missed::Before)?,
        };
        let wait = if request.changes() { left } else { left.min(ANSWER_WITHIN) };
        let sent = line(request).and_then(|it| {
            stream.get_ref().set_read_timeout(Some(wait))?;
            stream.get_mut().write_all(&it)
        });
        // Half a line is no request, so the server does nothing.
        sent.map_err(Missed::Before)?;
        let answer = next(&mut stream).map_err(Missed::After)?;
        self.open.insert(server, stream);
        self.last = Some(server);
        Ok(answer)
    }

    /// The connection that the last answer came by, for what follows it.
    pub(super) fn into_stream(mut self) -> Option<BufReader<TcpStream>> {
        self.open.remove(&self.last?)
    }

    fn nobody(&self, why: &[String]) -> Failure {
        Failure::start(
            format!("no server could do it within {:?}: {}", self.within, why.join("; ")),
            "give --server the addresses for clients of servers that run (what `consort kv serve` prints), or a longer --within",
        )
    }
}

/// How a round ended.
enum Round {
    Answered(Answer),
    /// All members of that shard are gone.
    Lost(usize),
    Nobody,
}

/// The next answer on a connection; empty lines only say that the server is there.
///
/// # Errors
/// It can't be read, or is none.
pub(super) fn next(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    loop {
        match read_line(stream)? {
            None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
            Some(line) if line.is_empty() => {}
            Some(line) => return Ok(serde_json::from_slice(&line)?),
        }
    }
}

fn connect(server: SocketAddr, left: Duration) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&server, left.min(CONNECT_WITHIN))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(CONNECT_WITHIN))?;
    Ok(BufReader::new(stream))
}

/// Whether the other side hasn't closed it. It says nothing unasked, so there is nothing to read.
fn is_open(stream: &TcpStream) -> bool {
    let look = || -> io::Result<usize> {
        stream.set_nonblocking(true)?;
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        seen
    };
    matches!(look(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn refused(fault: &str) -> Failure {
    Failure::usage(
        format!("the request makes no sense: {fault}"),
        "see `consort kv --help` for what it takes",
    )
}

fn gone(shard: usize) -> Failure {
    Failure::lost(
        format!("shard {shard} is lost: all servers that had it are gone, and what was in it with them"),
        "start the store anew, with more --replicas",
    )
}

fn unknown(server: SocketAddr, cause: &str) -> Failure {
    Failure::lost(
        format!("it isn't known whether the change was made: {server}: {cause}"),
        "get the key to see; a change with --if-version can be sent again without a thought",
    )
}
