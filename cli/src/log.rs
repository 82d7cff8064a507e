//! `consort log`: the logs in a data directory, read (`verify`, `dump`, `stat`, `follow`) and mended (`repair`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use comfy_table::Table;
use consort::log::meta::{Mark, NAME};
use consort::log::{
    Condition, Directory, DiskError, DiskTrouble, From, Index, LogKind, Meta, ReadError, Reader,
    RecordHeader, Scan, Spot, Stamp, repair, scan_each, snapshot,
};
use serde::Serialize;

use crate::args::{LogArgs, LogCommand, LogDumpArgs};
use crate::failure::Failure;
use crate::text::{count, print};

/// How long `follow` waits before it looks again.
const AGAIN: Duration = Duration::from_millis(100);

/// Runs one of them.
///
/// # Errors
/// It can't be read or written; or it is not sound.
pub(crate) fn run(command: &LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Verify(args) => verify(args),
        LogCommand::Stat(args) => stat(args),
        LogCommand::Dump(args) => dump(args, false),
        LogCommand::Follow(args) => dump(args, true),
        LogCommand::Repair(args) => mend(args),
    }
}

/// What a data directory has.
#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Owner>,
    /// A process has it open.
    in_use: bool,
    sound: bool,
    shards: Vec<Shard>,
}

/// Whose it is.
#[derive(Serialize)]
struct Owner {
    cluster: String,
    node: u32,
    view: u64,
    mark: &'static str,
}

/// One log.
#[derive(Serialize)]
struct Shard {
    directory: String,
    records: u64,
    messages: u64,
    payload_bytes: u64,
    views: u64,
    first: u64,
    last: u64,
    /// Of the last record: its view, and how many messages of that view there are up to it.
    view: u64,
    in_view: u64,
    /// Seconds since 1970 of the first record and the last.
    since: Option<f64>,
    until: Option<f64>,
    condition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Place>,
    segments: Vec<Segment>,
    snapshots: Vec<Snapshot>,
    /// Messages and bytes by sender.
    senders: BTreeMap<u32, (u64, u64)>,
}

/// Where it isn't sound.
#[derive(Serialize)]
struct Place {
    file: String,
    byte: u64,
    record: u64,
    why: String,
}

#[derive(Serialize)]
struct Segment {
    file: String,
    first: u64,
    records: u64,
    used: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Snapshot {
    index: u64,
    bytes: u64,
    sound: bool,
}

fn refused(error: &DiskError) -> Failure {
    let remedy = match error.trouble {
        DiskTrouble::Missing => {
            "give a node's data directory (its --data), or one shard's directory in it".to_owned()
        }
        DiskTrouble::InUse => "stop the node first: only it may write there while it runs".to_owned(),
        _ => error.remedy().to_owned(),
    };
    Failure::File { doing: "read", what: error.what.clone(), cause: std::io::Error::other("refused"), remedy }
}

/// The shards' directories in a data directory, or that directory itself if it is one.
fn shards(dir: &Path) -> Result<Vec<(u32, PathBuf)>, Failure> {
    let entries = std::fs::read_dir(dir).map_err(|cause| Failure::file("read", dir, cause))?;
    let mut found = Vec::new();
    let mut is_one = false;
    for entry in entries {
        let entry = entry.map_err(|cause| Failure::file("read", dir, cause))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix("shard-").and_then(|number| number.parse().ok()) {
            found.push((number, entry.path()));
        }
        is_one |= consort::log::segment_number(&name).is_some();
    }
    found.sort_unstable();
    if found.is_empty() && is_one {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let number = name.strip_prefix("shard-").and_then(|number| number.parse().ok()).unwrap_or(0);
        return Ok(vec![(number, dir.to_owned())]);
    }
    if found.is_empty() {
        return Err(Failure::usage(
            format!("there is no log in {}", dir.display()),
            "give a node's data directory (its --data), or one shard's directory in it, `shard-0`",
        ));
    }
    Ok(found)
}

fn seconds(stamp: Stamp) -> f64 {
    // Microseconds are exact in a double for some centuries yet.
    (stamp.0 / 1000) as f64 / 1e6
}

fn condition(scan: &Scan) -> (&'static str, Option<&Spot>) {
    match &scan.condition {
        Condition::Sound => ("sound", None),
        Condition::Torn(spot) => ("torn", Some(spot)),
        Condition::Damaged(spot) => ("damaged", Some(spot)),
    }
}

/// Reads all of a data directory.
fn look(dir: &Path) -> Result<Found, Failure> {
    let mut sound = true;
    let mut all = Vec::new();
    let mut in_use = Directory::is_in_use(dir);
    let meta =
        Directory::look(dir).and_then(|mut disk| Meta::read(&mut disk)).map_err(|error| refused(&error))?;
    for (_, path) in shards(dir)? {
        in_use |= Directory::is_in_use(&path);
        let shard = look_at(&path).map_err(|error| refused(&error))?;
        sound &= shard.condition == "sound" && shard.snapshots.iter().all(|snapshot| snapshot.sound);
        all.push(shard);
    }
    let node = meta.map(|meta| Owner {
        mark: mark(&meta),
        cluster: meta.cluster,
        node: meta.node.0,
        view: meta.view.0,
    });
    sound &= node.as_ref().is_none_or(|node| node.mark != DAMAGED);
    Ok(Found { node, in_use, sound, shards: all })
}

const DAMAGED: &str = "damaged";

fn mark(meta: &Meta) -> &'static str {
    match meta.mark {
        _ if !meta.damaged.is_empty() => DAMAGED,
        Mark::Open => "open",
        _ => "left",
    }
}

fn look_at(path: &Path) -> Result<Shard, DiskError> {
    let mut disk = Directory::look(path)?;
    let mut senders: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let scan = scan_each(&mut disk, &mut |header, payload| {
        if header.kind == LogKind::Message {
            let of = senders.entry(header.sender.0).or_default();
            *of = (of.0 + 1, of.1 + payload.len() as u64);
        }
    })?;
    let mut snapshots = Vec::new();
    for (index, bytes) in snapshot::list(&mut disk)? {
        let sound = snapshot::read(&disk, index, &mut |_| {}).is_ok();
        snapshots.push(Snapshot { index: index.0, bytes, sound });
    }
    let segments = scan.segments.iter().map(|segment| Segment {
        file: segment.name.clone(),
        first: segment.first.0,
        records: segment.records,
        used: segment.end,
        bytes: segment.bytes,
    });
    let (condition, spot) = condition(&scan);
    Ok(Shard {
        directory: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        records: scan.segments.iter().map(|segment| segment.records).sum(),
        messages: scan.messages.0,
        payload_bytes: scan.messages.1,
        views: scan.views,
        first: scan.segments.first().map_or(0, |segment| segment.first.0),
        last: scan.tip.index.0,
        view: scan.tip.view.0,
        in_view: scan.tip.next_seq.0,
        since: scan.since.map(seconds),
        until: scan.since.map(|_| seconds(scan.tip.stamp)),
        condition,
        at: spot.map(|spot| Place {
            file: spot.name.clone(),
            byte: spot.at,
            record: spot.index.0,
            why: spot.why.clone(),
        }),
        segments: segments.collect(),
        snapshots,
        senders,
    })
}

fn verify(args: &LogArgs) -> Result<(), Failure> {
    let found = look(&args.dir)?;
    print(&found, args.json, verify_text)?;
    judge(&found, &args.dir)
}

/// Whether all is sound; if not, what to do.
fn judge(found: &Found, dir: &Path) -> Result<(), Failure> {
    if found.sound {
        return Ok(());
    }
    let is = |condition: &str| found.shards.iter().any(|shard| shard.condition == condition);
    let dir = dir.display();
    let (what, remedy) = if is("damaged") {
        let remedy = format!(
            "run `consort log repair {dir}` and start the node again: it gets from the other members what is missing; if they are all \
             down, start them with it"
        );
        ("damaged", remedy)
    } else if is("torn") {
        let remedy = if found.in_use {
            "a node writes here just now: look again, or stop it first".to_owned()
        } else {
            format!("start the node: it cuts off what was never flushed; or run `consort log repair {dir}`")
        };
        ("torn", remedy)
    } else if found.shards.iter().any(|shard| shard.snapshots.iter().any(|snapshot| !snapshot.sound)) {
        (
            "missing a snapshot",
            format!("run `consort log repair {dir}`: it removes the snapshot that is damaged"),
        )
    } else {
        (
            "marked as lacking something",
            "start the node: it gets from the other members what it lacks".to_owned(),
        )
    };
    Err(Failure::unsound(format!("the log in {dir} is {what}"), remedy))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    table
}

fn verify_text(found: &Found) -> String {
    let mut text = String::new();
    if let Some(Owner { cluster, node, view, mark }) = &found.node {
        let _ = writeln!(text, "node {node} of cluster {cluster:?}, last in view {view}, marked {mark}");
    }
    let mut rows = table(&["log", "records", "first", "last", "view", "segments", "snapshots", "condition"]);
    for shard in &found.shards {
        rows.add_row([
            shard.directory.clone(),
            count(shard.records),
            count(shard.first),
            count(shard.last),
            count(shard.view),
            count(shard.segments.len() as u64),
            count(shard.snapshots.len() as u64),
            shard.condition.to_owned(),
        ]);
    }
    let _ = write!(text, "{rows}");
    for shard in &found.shards {
        if let Some(Place { file, byte, record, why }) = &shard.at {
            let directory = &shard.directory;
            let _ =
                write!(text, "\n{directory}: {file} at byte {byte}, where record {record} should be: {why}");
        }
        for Snapshot { index, .. } in shard.snapshots.iter().filter(|snapshot| !snapshot.sound) {
            let _ = write!(text, "\n{}: the snapshot behind record {index} is damaged", shard.directory);
        }
    }
    text
}

fn stat(args: &LogArgs) -> Result<(), Failure> {
    let found = look(&args.dir)?;
    print(&found, args.json, |found| {
        let mut text = verify_text(found);
        for shard in &found.shards {
            let _ = write!(
                text,
                "\n\n{}: {} messages of {} bytes, {} views",
                shard.directory,
                count(shard.messages),
                count(shard.payload_bytes),
                count(shard.views)
            );
            if let (Some(since), Some(until)) = (shard.since, shard.until) {
                let _ = write!(text, ", from {since:.6} to {until:.6} (seconds since 1970)");
            }
            let mut rows = table(&["segment", "first", "records", "used", "of bytes"]);
            for Segment { file, first, records, used, bytes } in &shard.segments {
                rows.add_row([file.clone(), count(*first), count(*records), count(*used), count(*bytes)]);
            }
            let _ = write!(text, "\n{rows}");
            let mut rows = table(&["sender", "messages", "bytes"]);
            for (sender, (messages, bytes)) in &shard.senders {
                rows.add_row([sender.to_string(), count(*messages), count(*bytes)]);
            }
            let _ = write!(text, "\n{rows}");
        }
        text
    })
}

/// One record, for who reads JSON.
#[derive(Serialize)]
struct Record<'a> {
    index: u64,
    kind: &'static str,
    view: u64,
    seq: u64,
    sender: u32,
    time: f64,
    data: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

fn dump(args: &LogDumpArgs, follow: bool) -> Result<(), Failure> {
    let all = shards(&args.dir)?;
    let names = || all.iter().map(|(number, _)| number.to_string()).collect::<Vec<_>>().join(", ");
    let chosen = match args.shard {
        Some(shard) => all.iter().find(|(number, _)| *number == shard),
        None => all.first().filter(|_| all.len() == 1),
    };
    let Some((_, path)) = chosen else {
        return Err(Failure::usage(
            format!("{} has the logs of several shards, or not of that one", args.dir.display()),
            format!("name one with --shard: {}", names()),
        ));
    };
    let from = match (args.from, args.since) {
        (Some(index), _) => From::Index(Index(index)),
        (None, Some(since)) => From::Time(Stamp((since.max(0.0) * 1e6) as u64 * 1000)),
        (None, None) => From::Index(Index(0)),
    };
    let disk = Directory::look(path).map_err(|error| refused(&error))?;
    let mut reader = Reader::open(Box::new(disk), from).map_err(|error| unread(&error))?;
    let mut out = std::io::stdout().lock();
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        match reader.read().map_err(|error| unread(&error))? {
            Some((header, payload)) => {
                left -= 1;
                let line = if args.json { json_line(&header, payload) } else { text_line(&header, payload) };
                writeln!(out, "{line}").map_err(unwritten)?;
            }
            None if follow => {
                out.flush().map_err(unwritten)?;
                std::thread::sleep(AGAIN);
            }
            None => break,
        }
    }
    out.flush().map_err(unwritten)?;
    match reader.stopped() {
        Some(why) if !follow && left > 0 => Err(Failure::unsound(
            format!("the log goes on behind record {}, but not soundly: {why}", reader.tip().index),
            format!("run `consort log verify {}` to see whether it is torn or damaged", args.dir.display()),
        )),
        _ => Ok(()),
    }
}

fn unwritten(cause: std::io::Error) -> Failure {
    Failure::stream("write", "standard output", cause)
}

fn unread(error: &ReadError) -> Failure {
    match error {
        ReadError::Disk(error) => refused(error),
        ReadError::Gone(_, first) => Failure::usage(error.to_string(), format!("begin with --from {first}")),
        _ => Failure::unsound(
            error.to_string(),
            "stop the node and run `consort log repair` on its data directory",
        ),
    }
}

fn kind(header: &RecordHeader) -> &'static str {
    match header.kind {
        LogKind::Message => "message",
        LogKind::View => "view",
        _ => "other",
    }
}

fn json_line(header: &RecordHeader, payload: &[u8]) -> String {
    let (data, encoding) = match std::str::from_utf8(payload) {
        Ok(text) if header.kind == LogKind::Message => (text.into(), None),
        _ => (BASE64_STANDARD.encode(payload).into(), Some("base64")),
    };
    let record = Record {
        index: header.index.0,
        kind: kind(header),
        view: header.view.0,
        seq: header.seq.0,
        sender: header.sender.0,
        time: seconds(header.stamp),
        data,
        encoding,
    };
    serde_json::to_string(&record).unwrap_or_default() // numbers and text can always be written
}

fn text_line(header: &RecordHeader, payload: &[u8]) -> String {
    let RecordHeader { index, view, seq, sender, stamp, len, .. } = header;
    let time = seconds(*stamp);
    match header.kind {
        LogKind::Message => {
            let shown = String::from_utf8_lossy(payload);
            format!(
                "{index}  {time:.6}  view {view} #{seq}  from {sender}  {len} bytes  {}",
                shown.escape_debug()
            )
        }
        _ => format!("{index}  {time:.6}  view {view} begins"),
    }
}

fn mend(args: &LogArgs) -> Result<(), Failure> {
    let failed = |error: &DiskError| refused(error);
    let all = shards(&args.dir)?;
    // A shard's own directory: that of its node is the one around it.
    let around = || args.dir.canonicalize().ok()?.parent().map(Path::to_owned);
    let is_home = all.iter().all(|(_, path)| *path != args.dir);
    let place =
        if is_home { Some(args.dir.clone()) } else { around().filter(|around| around.join(NAME).exists()) };
    // Whose node runs is not to be touched; its meta says first what the logs will lack.
    let mut home = place.map(|place| Directory::open(&place)).transpose().map_err(|error| failed(&error))?;
    let mut before = Vec::new();
    let mut lacks = Vec::new();
    let mut disks = Vec::new();
    for (number, path) in all {
        let disk = Directory::open(&path).map_err(|error| failed(&error))?;
        let shard = look_at(&path).map_err(|error| failed(&error))?;
        if shard.condition == DAMAGED {
            lacks.push(number);
        }
        before.push(shard);
        disks.push(disk);
    }
    let meta = match &mut home {
        Some(home) => Meta::read(home).map_err(|error| {
            Failure::unsound(
                error.to_string(),
                "nothing was changed; move the directory out of the way and start the node with an empty one: it joins the others anew",
            )
        })?,
        None => None,
    };
    match (&mut home, meta) {
        _ if lacks.is_empty() => {}
        (Some(home), Some(mut meta)) => {
            lacks.into_iter().for_each(|shard| meta.set_damaged(shard));
            meta.write(home).map_err(|error| failed(&error))?;
        }
        _ => {
            return Err(Failure::usage(
                format!(
                    "there is no `{NAME}` that could say what the log in {} lacks from now on",
                    args.dir.display()
                ),
                "nothing was changed; a node would take what is left for all that it ever had: repair the node's data directory as a whole, \
                 or start the node with an empty one",
            ));
        }
    }
    for disk in &mut disks {
        repair(disk, Index(0)).map_err(|error| failed(&error))?;
    }
    drop((disks, home));
    let found = look(&args.dir)?;
    print(&found, args.json, |found| {
        let mut text = verify_text(found);
        for shard in &before {
            let what = match shard.condition {
                DAMAGED => {
                    "what was damaged is removed; the log lacks something now, and its node gets that from the others"
                }
                "torn" => "what was never flushed is removed; nothing that was durable is missing",
                _ if shard.snapshots.iter().any(|snapshot| !snapshot.sound) => {
                    "the damaged snapshot is removed; the log holds all that it told"
                }
                _ => "nothing to repair",
            };
            let _ = write!(text, "\n{}: {what}", shard.directory);
        }
        text
    })
}
