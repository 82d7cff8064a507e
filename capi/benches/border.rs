//! What the border costs: the same exchange in C (`examples/ping.c`) and in Rust, by turns, between two processes each.
//!
//! ```text
//! cargo bench -p consort-capi -- --rounds 20 [--fabric tcp]
//! ```
//! Latency is of one 64-byte message after the other; throughput of as many at once as a window lets. Both drive their nodes
//! themselves. What the machine does meanwhile falls on both, so each round's figures are compared with each other, and the median of the
//! rounds' ratios counts. Where it does much, look at what a member that is alone costs in processor time: nobody is waited for there.
//! Where it does very much, count instructions: `--instructions` does, where there is a valgrind, of a member that is alone over TCP. That takes
//! a build that makes its system calls through libc, for valgrind hides the kernel's own page from a process:
//!
//! ```text
//! RUSTFLAGS="--cfg rustix_use_libc" cargo bench -p consort-capi --target-dir target/valgrind -- --instructions
//! ```
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark: it tells, and what goes wrong ends it"
)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use consort::{DrivenNode, FabricChoice, Incoming, NodeBuilder, SendError, Sender};

/// What a run is told: messages, and how many may be under way.
#[derive(Clone, Copy)]
struct Load {
    count: u64,
    window: u64,
    how: How,
}

/// How messages are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Written in place, between two calls.
    InPlace,
    /// Copied, by one call each.
    Copied,
    /// Copied, by one call for so many.
    InBatches(usize),
}

impl How {
    const ALL: [Self; 3] = [Self::Copied, Self::InPlace, Self::InBatches(64)];

    fn name(self) -> &'static str {
        match self {
            Self::InPlace => "in place",
            Self::Copied => "copied",
            Self::InBatches(_) => "in batches",
        }
    }
}

impl Load {
    /// What both programs are told of it.
    fn arguments(self) -> Vec<String> {
        let (copies, batch) = match self.how {
            How::InPlace => (0, 1),
            How::Copied => (1, 1),
            How::InBatches(batch) => (1, batch),
        };
        let all = [
            ("--count", self.count),
            ("--window", self.window),
            ("--copy", copies),
            ("--batch", batch as u64),
        ];
        all.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect()
    }
}

/// Messages a second, and the median latency in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    median: f64,
    /// Nanoseconds of processor time for each message.
    busy: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|it| it == name)?;
        arguments.get(at + 1)
    };
    if let Some(id) = value("--id") {
        let number = |name: &str| value(name).and_then(|it| it.parse().ok());
        let load = Load {
            count: number("--count").unwrap_or(0),
            window: number("--window").unwrap_or(1),
            how: match (number("--batch"), number("--copy")) {
                (Some(batch), _) if batch > 1 => How::InBatches(batch as usize),
                (_, Some(1)) => How::Copied,
                _ => How::InPlace,
            },
        };
        let listen = value("--listen").unwrap().parse().unwrap();
        let builder = NodeBuilder::new(id.parse().unwrap()).listen(listen);
        let builder = match value("--fabric").map(String::as_str) {
            Some("tcp") => builder.fabric(FabricChoice::Tcp),
            Some("shm") => builder.fabric(FabricChoice::Shm),
            Some("auto") | None => builder,
            Some(other) => panic!("--fabric {other}: take auto, shm or tcp"),
        };
        let builder = match value("--peer").and_then(|it| it.split_once('=')) {
            Some((peer, address)) => builder.peer(peer.parse().unwrap(), address.parse().unwrap()),
            None => builder,
        };
        return member(builder.driven().unwrap(), load);
    }
    // `cargo bench -- --test` and `cargo test --benches` only see that it works.
    let tiny = !arguments.iter().any(|it| it == "--bench") || arguments.iter().any(|it| it == "--test");
    let rounds = value("--rounds").and_then(|it| it.parse().ok()).unwrap_or(if tiny { 1 } else { 10 });
    let scale = if tiny { 1 } else { 100 };
    if tiny {
        println!("Testing border");
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("border");
    let (c, rust) = (compile(&directory, tiny), std::env::current_exe().unwrap());
    if arguments.iter().any(|it| it == "--instructions") {
        for how in How::ALL {
            let (in_c, in_rust) = (count(&c, how), count(&rust, how));
            let (name, ratio) = (how.name(), in_c as f64 / in_rust as f64);
            println!(
                "{name}: {in_c} instructions a message in C, {in_rust} in Rust: {ratio:.3} times as many"
            );
        }
        return;
    }
    let programs = Programs { c: &c, rust: &rust, fabric: value("--fabric").map_or("auto", String::as_str) };
    for how in How::ALL {
        let load = Load { count: 20_000 * scale, window: 2_000, how };
        compare(&format!("alone, {}", how.name()), programs, load, rounds, 1, |it| it.busy);
    }
    for how in How::ALL {
        let name = how.name();
        if !matches!(how, How::InBatches(_)) {
            let load = Load { count: 1_000 * scale, window: 1, how };
            compare(&format!("latency, {name}"), programs, load, rounds, 2, |it| it.median);
        }
        let load = Load { count: 10_000 * scale, window: 2_000, how };
        compare(&format!("throughput, {name}"), programs, load, rounds, 2, |it| 1e9 / it.rate);
    }
    if tiny {
        println!("Success"); // as Criterion says it, for who counts
    }
}

/// What is compared, and over which fabric.
#[derive(Clone, Copy)]
struct Programs<'a> {
    c: &'a Path,
    rust: &'a Path,
    fabric: &'a str,
}

/// Runs both by turns, and prints the costs of a message in nanoseconds.
fn compare(
    what: &str,
    Programs { c, rust, fabric }: Programs<'_>,
    load: Load,
    rounds: usize,
    members: usize,
    cost: fn(Figures) -> f64,
) {
    let run = |program: &Path, load: Load| run((program, fabric), load, members);
    let mut ratios = Vec::new();
    for round in 0..rounds {
        // Who goes first has it warmer, or colder.
        let (in_c, in_rust) = if round % 2 == 0 {
            let first = run(c, load);
            (first, run(rust, load))
        } else {
            let first = run(rust, load);
            (run(c, load), first)
        };
        let (in_c, in_rust) = (cost(in_c), cost(in_rust));
        println!("{what}: {in_c:.0} ns a message in C, {in_rust:.0} in Rust");
        ratios.push(in_c / in_rust);
    }
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    println!(
        "{what}: in C {:.3} times what it costs in Rust (median of {rounds}; {least:.3} to {most:.3})",
        ratios[ratios.len() / 2]
    );
}

/// The library as it is installed: with what beside the benchmark is built for Rust programs too, cargo optimizes nothing across crates.
fn build(target: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["rustc", "--quiet", "--package", "consort-capi", "--lib", "--crate-type", "cdylib"]);
    cargo.args(["--profile", "release", "--target-dir"]).arg(target);
    assert!(cargo.status().unwrap().success(), "{cargo:?}");
}

fn compile(directory: &Path, is_tiny: bool) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let exe = std::env::current_exe().unwrap();
    if !is_tiny {
        // TARGET/release/deps/border-…
        build(exe.ancestors().nth(3).unwrap());
    }
    std::fs::create_dir_all(directory).unwrap();
    for name in ["libconsort.so", "libconsort.so.0"] {
        let _ = std::fs::remove_file(directory.join(name));
        std::os::unix::fs::symlink(exe.parent().unwrap().join("libconsort_c.so"), directory.join(name))
            .unwrap();
    }
    let program = directory.join("ping");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c99", "-D_GNU_SOURCE", "-O2", "-I"]).arg(here.join("include"));
    compiler.arg(here.join("examples/ping.c")).arg("-o").arg(&program).arg("-L").arg(directory);
    compiler
        .args(["-fno-inline-functions-called-once", "-lconsort", "-pthread"])
        .arg(format!("-Wl,-rpath,{}", directory.display()));
    assert!(compiler.status().unwrap().success(), "{compiler:?}");
    program
}

/// Instructions of `exchange` for each message, those of the warming up among them.
fn count(program: &Path, how: How) -> u64 {
    let load = Load { count: 40_000, window: 2_000, how };
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--toggle-collect=*exchange*", "--callgrind-out-file=/dev/null"]);
    command.arg(program).args(["--id", "1", "--listen", "127.0.0.1:0", "--fabric", "tcp"]);
    let output = command.args(load.arguments()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let collected = told.lines().find_map(|line| line.split_once("Collected :"));
    let collected: u64 = collected.unwrap_or_else(|| panic!("{told}")).1.trim().parse().unwrap();
    assert!(output.status.success() && collected > 0, "{told}");
    collected / (load.count / 10 + load.count)
}

/// A process that ends with the benchmark.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One exchange between two new processes, or what one does by itself.
fn run((program, fabric): (&Path, &str), load: Load, members: usize) -> Figures {
    // Ports that were free a moment ago.
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = sockets.map(|socket| socket.local_addr().unwrap());
    let start = |at: usize| {
        let mut command = Command::new(program);
        command.args(["--id", &(at + 1).to_string(), "--listen", &addresses[at].to_string()]);
        command.args(["--fabric", fabric]);
        if members > 1 {
            command.args(["--peer", &format!("{}={}", 2 - at, addresses[1 - at])]);
        }
        if at == 0 {
            command.args(load.arguments());
        }
        let child = command.env_remove("LD_LIBRARY_PATH").stdout(Stdio::piped()).spawn().unwrap();
        Running(child)
    };
    let (pinger, other) = (start(0), (members > 1).then(|| start(1)));
    let said = |mut it: Running| {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut it.0.stdout.take().unwrap(), &mut said).unwrap();
        assert!(it.0.wait().unwrap().success(), "{said}");
        said
    };
    let line = said(pinger);
    other.map(said);
    // 1000 messages of 64 bytes: 123456 a second, median 1234 ns, p99 2345 ns, takes 123 ns of processor time each
    let after = |mark: &str| {
        let word = line.split_once(mark).unwrap().1.split_whitespace().next();
        word.unwrap().parse().unwrap()
    };
    Figures { rate: after("bytes: "), median: after("median "), busy: after(" takes ") }
}

/// What a member was told.
#[derive(Default)]
struct Course {
    has_view: bool,
    has_ended: bool,
    /// Own messages that came back.
    delivered: u64,
}

/// Goes on until there is something, or for a tenth of a second.
fn turn(node: &mut DrivenNode, me: u32, course: &mut Course) {
    let told = node.drive(Duration::from_millis(100), &mut |_, incoming| match incoming {
        Incoming::View(_) => course.has_view = true,
        Incoming::Message(message) if message.sender.0 == me => course.delivered += 1,
        Incoming::Ended(_) => course.has_ended = true,
        _ => {}
    });
    told.unwrap();
}

/// Sends as many messages as there is room for, at most `most`.
fn send_some(sender: &Sender, load: Load, copied: &[u8; 64], most: u64, fill: u8) -> Result<u64, SendError> {
    if let How::InBatches(batch) = load.how {
        let mut sent = 0;
        let most = batch.min(most as usize);
        return match sender.try_send_many((0..most).map(|_| &copied[..]), |_| sent += 1) {
            Err(error) if sent == 0 => Err(error),
            _ => Ok(sent),
        };
    }
    let mut room = sender.try_reserve(64)?;
    if load.how == How::Copied {
        room.copy_from_slice(copied);
    } else {
        room.fill(fill);
    }
    room.send();
    Ok(1)
}

fn busy() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// `exchange` of ping.c, line by line.
#[inline(never)]
fn exchange(
    node: &mut DrivenNode,
    (sender, me): (&Sender, u32),
    course: &mut Course,
    load: Load,
    took: &mut [u64],
) -> (u64, u64) {
    let (warm, most) = (load.count / 10, load.count / 10 + load.count);
    let (mut sent, mut turned, mut began, mut was_busy) = (0, 0, 0, 0);
    let copied = std::hint::black_box([0; 64]);
    let clock = Instant::now();
    let now = || clock.elapsed().as_nanos() as u64;
    while course.delivered < most {
        let under_way = sent - course.delivered;
        if sent < most && under_way < load.window {
            let at = now();
            let end = most.min(sent + load.window - under_way);
            match send_some(sender, load, &copied, end - sent, sent as u8) {
                Ok(more) => {
                    for _ in 0..more {
                        if sent == warm {
                            (began, was_busy) = (at, busy());
                        }
                        if sent >= warm {
                            took[(sent - warm) as usize] = at;
                        }
                        sent += 1;
                    }
                    if load.window > 1 && sent - turned < 64 {
                        continue;
                    }
                }
                Err(SendError::Full | SendError::Changing) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let before = course.delivered;
        turn(node, me, course);
        turned = sent;
        let there = now();
        for at in before.max(warm)..course.delivered {
            took[(at - warm) as usize] = there - took[(at - warm) as usize];
        }
    }
    (now() - began, busy() - was_busy)
}

/// `main` of ping.c.
fn member(mut node: DrivenNode, load: Load) {
    let sender = node.sender();
    let me = if load.count > 0 { 1 } else { 2 };
    let mut course = Course::default();
    while !course.has_view {
        turn(&mut node, me, &mut course);
    }
    if load.count > 0 {
        let mut took = vec![0; load.count as usize];
        let (all, busy) = exchange(&mut node, (&sender, me), &mut course, load, &mut took);
        let rate = load.count as f64 / (all as f64 / 1e9);
        took.sort_unstable();
        let (median, p99) = (took[took.len() / 2], took[took.len() / 100 * 99]);
        let each = busy / load.count;
        println!(
            "{} messages of 64 bytes: {rate:.0} a second, median {median} ns, p99 {p99} ns, takes {each} ns of processor time each",
            load.count
        );
        while sender.end() == Err(SendError::WouldDeadlock) {
            turn(&mut node, me, &mut course);
        }
    }
    while !course.has_ended {
        turn(&mut node, me, &mut course);
    }
    node.close(Duration::from_secs(10), &mut |_| {}).unwrap();
}
