//! What clients of the key-value store see while servers are killed is one history: each key behaves as a register that is in one place.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::kv::Servers;
use crate::linear::{self, Kind, Operation};
use crate::process::PATIENCE;

const CLIENTS: u64 = 6;
/// So many rounds of a client are of the same keys.
const ROUNDS: u64 = 240;
const KEYS: u64 = 4;

/// A client that speaks to one server at a time.
struct Client {
    servers: Vec<SocketAddr>,
    /// Which of them, and the connection to it.
    at: usize,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn connect(&mut self) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.servers[self.at])?;
            stream.set_read_timeout(Some(PATIENCE))?;
            self.stream = Some(BufReader::new(stream));
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.stream = None;
        self.at = (self.at + 1) % self.servers.len();
    }

    /// The answer to a request; none if it was sent and isn't known to have been done, or not done.
    fn ask(&mut self, request: &Value) -> Option<Value> {
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            if self.connect().is_err() {
                self.leave();
                continue;
            }
            let stream = self.stream.as_mut().unwrap();
            let mut answer = String::new();
            let said = stream.get_mut().write_all(format!("{request}\n").as_bytes());
            let heard = said.and_then(|()| stream.read_line(&mut answer));
            let Some(answer) = heard.ok().and_then(|_| serde_json::from_str::<Value>(&answer).ok()) else {
                self.leave();
                return None;
            };
            match answer["is"].as_str().unwrap() {
                "elsewhere" => {
                    assert_eq!(answer["lost"], false, "{answer}");
                    self.leave();
                }
                "failed" if answer["unknown"] == true => return None,
                "failed" => self.leave(),
                "refused" => panic!("{answer}"),
                _ => return Some(answer),
            }
        }
        panic!("no server does it: {request}")
    }
}

/// Ends the clients with the scope that it is in, however that ends.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients at all servers put and get, and two servers are killed, one after the other: with three replicas of each shard a majority of
/// five goes on, and every key's history is linearizable.
fn histories_are_linearizable(fabric: &str, more: &[&str]) {
    let mut servers = Servers::found(5, fabric, more);
    servers.done(&servers.all(), &["put", "ready", "yes"]);
    let addresses: Vec<SocketAddr> = (1..=5).map(|id| servers.clients(id)).collect();
    // Moments, in an order that all threads agree on.
    let clock = AtomicU64::new(0);
    let now = || clock.fetch_add(1, Ordering::SeqCst);
    let (is_finished, (tell, told)) = (AtomicBool::new(false), channel());
    let operations: Vec<(String, Operation)> = thread::scope(|scope| {
        let finish = Finish(&is_finished);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (now, is_finished, tell, servers) = (&now, &is_finished, tell.clone(), addresses.clone());
                scope.spawn(move || {
                    let at = client as usize % servers.len();
                    let mut store = Client { servers, at, stream: None };
                    let mut done = Vec::new();
                    for round in 0u64.. {
                        if is_finished.load(Ordering::Relaxed) {
                            break;
                        }
                        if client == 0 && round % 50 == 0 {
                            let _ = tell.send(()); // the other end is left when enough was seen
                        }
                        // New keys from time to time, so that no history is too long to be checked.
                        let key = format!("register-{}-{}", round / ROUNDS, (round / 2 + client) % KEYS);
                        let call = now();
                        let (kind, end) = if (round + client) % 3 == 0 {
                            let value = client << 32 | round;
                            let put = json!({"do": "put", "key": key, "value": value.to_string()});
                            (Kind::Write(value), store.ask(&put).map(|_| now()))
                        } else {
                            let Some(found) = store.ask(&json!({"do": "get", "key": key})) else { continue };
                            let value = found["value"].as_str().map(|it| it.parse().unwrap());
                            (Kind::Read(value), Some(now()))
                        };
                        done.push((key, Operation { call, end, kind }));
                    }
                    done
                })
            })
            .collect();
        let some_are_done = || {
            while told.try_recv().is_ok() {}
            (0..2).for_each(|_| told.recv_timeout(PATIENCE).unwrap());
        };
        some_are_done();
        servers.kill(2);
        some_are_done();
        // Who goes next must not have the last of a shard.
        servers.wait_until_whole(1, 2);
        servers.kill(4);
        some_are_done();
        servers.wait_until_whole(1, 4);
        some_are_done();
        drop(finish);
        clients.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    let mut registers: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for (key, operation) in operations {
        registers.entry(key).or_default().push(operation);
    }
    assert!(!registers.is_empty());
    for (key, history) in registers {
        linear::check(&history).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
}

#[test]
fn histories_over_kills_are_linearizable_over_shared_memory() {
    histories_are_linearizable("shm", &[]);
}

#[test]
fn histories_over_kills_are_linearizable_over_tcp() {
    histories_are_linearizable("tcp", &[]);
}

#[test]
fn histories_over_kills_are_linearizable_along_chains() {
    histories_are_linearizable("tcp", &["--topology", "chain"]);
}
