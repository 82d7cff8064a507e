//! The store that speaks the protocol of Redis: what each command answers, at whichever replica, also when one is killed; and the tools of
//! Redis themselves, where they are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::kit::{Build, Process, compile, has, here, member, sockets};

/// Three replicas, and the ports at which they serve.
fn replicas(build: Build, more: &[&str]) -> (Vec<Process>, Vec<u16>) {
    let program = compile(&here().join("examples/resp"), build);
    let sockets = sockets(3);
    let more: Vec<_> = ["--port", "0"].into_iter().chain(more.iter().copied()).collect();
    let mut replicas: Vec<_> = (0..3).map(|at| member(&program, at, &sockets, &more)).collect();
    let port = |replica: &mut Process| {
        let line = replica.line();
        line.rsplit_once(':').unwrap().1.parse().unwrap()
    };
    let ports = replicas.iter_mut().map(port).collect();
    (replicas, ports)
}

/// A client that reads answers whole.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(port: u16) -> Self {
        Self(BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap()))
    }

    fn send(&mut self, words: &[&str]) {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// An answer, in short: `OK`, `:5`, `nothing`, `[a b]`, `-ERR …`, or the string itself.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let line = line.trim_end();
        match (line.chars().next(), line.get(1..).unwrap_or_default()) {
            (Some('+'), text) => text.to_owned(),
            (Some('$'), "-1") => "nothing".to_owned(),
            (Some('$'), len) => {
                let mut bytes = vec![0; len.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bytes).unwrap();
                String::from_utf8(bytes).unwrap().trim_end().to_owned()
            }
            (Some('*'), count) => {
                let all: Vec<_> = (0..count.parse::<usize>().unwrap()).map(|_| self.answer()).collect();
                format!("[{}]", all.join(" "))
            }
            _ => line.to_owned(),
        }
    }

    fn ask(&mut self, words: &str) -> String {
        self.send(&words.split(' ').collect::<Vec<_>>());
        self.answer()
    }
}

fn end(mut replicas: Vec<Process>) {
    for replica in &mut replicas {
        replica.terminate();
    }
    for replica in replicas {
        assert!(replica.end().0.success());
    }
}

#[test]
fn every_command_answers_as_redis_does_at_any_replica_under_sanitizers() {
    let (replicas, ports) = replicas(Build::Sanitized, &["--reads", "linearizable", "--digest-every", "10"]);
    let mut clients: Vec<_> = ports.iter().map(|port| Client::of(*port)).collect();
    let script = [
        ("PING", "PONG"),
        ("SET colour red", "OK"),
        ("GET colour", "red"),
        ("GET nothing", "nothing"),
        ("MSET a 1 b 2", "OK"),
        ("MGET a b c colour", "[1 2 nothing red]"),
        ("INCR a", ":2"),
        ("INCRBY a 40", ":42"),
        ("DECR a", ":41"),
        ("INCR colour", "-ERR value is not an integer or out of range"),
        ("SET most 9223372036854775807", "OK"),
        ("INCR most", "-ERR increment or decrement would overflow"),
        ("EXISTS a b c", ":2"),
        ("DEL a c", ":1"),
        ("LPUSH list b a", ":2"),
        ("RPUSH list c d", ":4"),
        ("LRANGE list 0 -1", "[a b c d]"),
        ("LRANGE list -2 100", "[c d]"),
        ("LRANGE list 3 1", "[]"),
        ("LPOP list", "a"),
        ("RPOP list", "d"),
        ("LLEN list", ":2"),
        ("GET list", "-WRONGTYPE Operation against a key holding the wrong kind of value"),
        ("SADD set x y x", ":2"),
        ("SISMEMBER set x", ":1"),
        ("SMEMBERS set", "[x y]"),
        ("SREM set x", ":1"),
        ("SPOP set", "y"),
        ("SCARD set", ":0"),
        ("TYPE set", "none"),
        ("HSET hash f 1 g 2", ":2"),
        ("HSET hash g 3", ":0"),
        ("HGET hash g", "3"),
        ("HGETALL hash", "[f 1 g 3]"),
        ("HDEL hash f g", ":2"),
        ("HLEN hash", ":0"),
        ("DBSIZE", ":4"),
        ("SET colour", "-ERR wrong number of arguments"),
        ("HSET hash f", "-ERR wrong number of arguments"),
        ("FROBNICATE", "-ERR unknown command, or wrong arguments"),
        ("CONFIG GET save", "[save ]"),
        ("COMMAND DOCS", "[]"),
        ("FLUSHALL", "OK"),
        ("DBSIZE", ":0"),
    ];
    // One command here, the next there: each sees what the one before did.
    for (at, (words, answer)) in script.iter().enumerate() {
        assert_eq!(clients[at % 3].ask(words), *answer, "{words}");
    }
    // Pipelined: answers come in the order of the commands, reads among writes.
    let client = &mut clients[0];
    for number in 0..500 {
        client.send(&["RPUSH", "line", &number.to_string()]);
        client.send(&["LRANGE", "line", "-1", "-1"]);
        client.send(&["PING"]);
    }
    for number in 0..500 {
        let answers = [client.answer(), client.answer(), client.answer()];
        assert_eq!(answers, [format!(":{}", number + 1), format!("[{number}]"), "PONG".to_owned()]);
    }
    // What is no command ends the connection that it came by, and no other.
    let mut other = Client::of(ports[0]);
    other.0.get_mut().write_all(b"*1\r\n$-5\r\n").unwrap();
    assert_eq!(other.answer(), "-ERR Protocol error");
    assert_eq!(other.0.read(&mut [0]).unwrap(), 0);
    assert_eq!(client.ask("PING"), "PONG");
    drop(clients);
    end(replicas);
}

#[test]
fn clients_of_the_others_go_on_when_a_replica_is_killed() {
    let (mut replicas, ports) = replicas(Build::Sanitized, &[]);
    let mut clients: Vec<_> = ports.iter().map(|port| Client::of(*port)).collect();
    for client in &mut clients {
        client.ask("INCR n");
    }
    const EACH: usize = 2_000;
    for at in 0..EACH {
        for client in &mut clients[..2] {
            client.send(&["INCR", "n"]);
        }
        if at == EACH / 2 {
            replicas[2].kill();
        }
    }
    let mut seen: Vec<u64> = Vec::new();
    for client in &mut clients[..2] {
        for _ in 0..EACH {
            let answer = client.answer();
            seen.push(answer.strip_prefix(':').unwrap_or_else(|| panic!("{answer}")).parse().unwrap());
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (4..=3 + 2 * EACH as u64).collect::<Vec<_>>(), "each is counted once");
    replicas.pop();
    drop(clients);
    end(replicas);
}

#[test]
fn the_tools_of_redis_work_and_see_no_error_while_a_replica_is_killed() {
    if !has("redis-benchmark", "redis-tools") {
        return;
    }
    let (mut replicas, ports) = replicas(Build::Plain, &[]);
    let port = ports[0].to_string();
    let cli = |words: &[&str]| {
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((cli(&["SET", "colour", "red"]), cli(&["GET", "colour"])), ("OK".into(), "red".into()));

    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-p", &port, "-P", "16", "-c", "50", "-n", "20000", "--csv"]);
    benchmark.args(["-t", "ping,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,mset,lrange_100"]);
    let benchmark = crate::kit::run(benchmark, None);
    // In its midst: some of its writes are done, and most are not.
    let mut client = Client::of(ports[0]);
    let applied = |client: &mut Client| -> u64 {
        let text = client.ask("INFO");
        text.rsplit_once("applied:").unwrap().1.parse().unwrap()
    };
    while applied(&mut client) < 30_000 {
        std::thread::yield_now();
    }
    replicas[2].kill();
    let (status, lines) = benchmark.end();
    assert!(status.success(), "{status} {lines:?}");
    let tests = lines.iter().filter(|line| line.starts_with('"') && !line.contains("\"rps\""));
    assert_eq!(tests.count(), 15, "{lines:?}");
    assert!(!lines.iter().any(|line| line.to_lowercase().contains("err")), "{lines:?}");
    assert!(applied(&mut client) > 150_000);
    replicas.pop();
    drop(client);
    end(replicas);
}
